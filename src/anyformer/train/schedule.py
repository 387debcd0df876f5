"""How an optimizer is set up and how its learning rate runs."""

import math
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, kw_only=True)
class WarmupCosine:
    """The factor on the learning rate: a straight rise from near 0, then half a cosine down to ``floor``.

    A pure function of the step, so that there is nothing to save. Loshchilov and Hutter, "SGDR", eq. 5, without
    restarts.

    Args:
        steps: Length of the run; the factor is ``floor`` from there on.
        warmup: Steps of the rise.
        floor: The factor at the end.
    """

    steps: int
    warmup: int = 0
    floor: float = 0.01

    def __call__(self, step: int) -> float:
        """The factor of a step, counted from 0."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = min(1.0, (step - self.warmup) / max(1, self.steps - self.warmup))
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done)) / 2


def adamw(model: nn.Module, learning_rate: float = 1e-3, weight_decay: float = 0.05) -> torch.optim.AdamW:
    """AdamW on the parameters that take gradients, without decay on those of one dimension or none (biases, norms).

    Matrices that their part declares ``undecayed`` have none either.
    """
    spared = {id(getattr(part, name)) for part in model.modules() for name in getattr(part, "undecayed", ())}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in trained if parameter.ndim > 1 and id(parameter) not in spared]
    others = [parameter for parameter in trained if parameter.ndim <= 1 or id(parameter) in spared]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    # The fused form is one call for all parameters instead of ten for each.
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=learning_rate, fused=True)
