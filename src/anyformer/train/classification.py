"""Learning to classify pictures, and asking what was learnt."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyformer.data.batches import Batch, normalize


@dataclass(frozen=True, kw_only=True)
class Classification:
    """The objective of one role, ``student``: cross entropy with label smoothing (Szegedy et al. 2015, section 7).

    Args:
        smoothing: The share of each label that is spread over all classes.
    """

    smoothing: float = 0.1

    def losses(self, role: str, models: Mapping[str, nn.Module], batch: Batch, step: int) -> Tensor:
        """The mean loss of the batch, a float32 scalar whatever the data type of the logits."""
        logits = models[role](batch.images)
        if isinstance(logits, tuple):  # of several heads, whose mean is the answer after training
            logits = torch.stack(logits).mean(0)
        return F.cross_entropy(logits.float(), batch.labels, label_smoothing=self.smoothing)


def predict_logits(model: nn.Module, images: Tensor, data_config: dict[str, Any], batch_size: int = 256) -> Tensor:
    """The model's logits, in evaluation mode, in which the model is left.

    Args:
        model: Maps ``(batch, channels, height, width)`` float32 to ``(batch, classes)``.
        images: ``(n, channels, height, width)`` uint8.
        data_config: What the model was trained with.
        batch_size: Pictures at a time, to bound memory.

    Returns:
        ``(n, classes)`` float32, where the pictures are.
    """
    model.eval()
    device = next((parameter.device for parameter in model.parameters()), images.device)
    with torch.no_grad():
        parts = [model(normalize(part, data_config).to(device)).float() for part in images.split(batch_size)]
    return torch.cat(parts).to(images.device)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of pictures whose largest logit is that of their label: ``(n, classes)`` and ``(n,)`` to [0, 1]."""
    return (logits.argmax(dim=1) == labels).double().mean().item()
