"""Labelled texts as the material of a fit: their division, and language models that give classes instead of tokens."""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from safetensors import torch as safetensors
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from anyformer.core.config import edit
from anyformer.core.model import Model
from anyformer.core.part import build
from anyformer.data.labelled_text import LabelledBatches, TextSet
from anyformer.data.seeds import derive_seed
from anyformer.data.split import Split
from anyformer.fit.aims import Aim, Learning, aim_of
from anyformer.fit.candidates import text_candidates
from anyformer.fit.costs import LATENCY_SECONDS, Costs, machine, time_steps
from anyformer.fit.decoding import multiply_adds
from anyformer.fit.language_material import WIDTH, longest
from anyformer.fit.material import Material
from anyformer.measure.latency import latency
from anyformer.parts.heads.classifier import MeanPoolHead
from anyformer.train.chance import preserved
from anyformer.train.loop import Objective

LONGEST = 1024  # tokens of a text that are read
BATCH = 16
TOGETHER = 32  # texts in one evaluation
VALIDATED = 2000  # validation texts that are looked at, at most, evenly spread
LEARNING_RATE = 3e-3  # of models 64 channels wide; of wider ones less in proportion
WORST_LOSS = 5.0  # that the score knows
LOSS_WEIGHT = 0.1  # of the loss in the score: of few texts it tells good models apart better than accuracies do


@dataclass
class TextClassesMaterial(Material):
    """Texts with classes, as bytes.

    Attributes:
        texts: all of them.
        split: which train, which choose and which test.
        aim: the classes and how they are weighed.
    """

    looks: ClassVar[int] = 8  # a clock that stops a run early then finds something

    texts: TextSet
    split: Split
    aim: Aim

    @classmethod
    def of(cls, texts: TextSet, seed: int, device: str | None = None) -> "TextClassesMaterial":
        """The texts, divided, and what follows from the training part alone."""
        split = texts.split(seed)
        aim = aim_of(texts.kind, texts.labels[split.train], texts.classes)
        aim = replace(aim, note=aim.note.replace("pictures", "texts"))
        description = {"tokenizer": "bytes", "vocabulary": 256, "longest": LONGEST, "classes": list(texts.classes)}
        return cls(texts, split, aim, config={**description, **aim.description()}, device=device)

    @property
    def batch(self) -> int:
        """Texts a batch."""
        return min(BATCH, len(self.split.train))

    @property
    def epoch(self) -> int:
        """Steps in which every training text is seen once."""
        return len(self.split.train) // self.batch

    @property
    def looked_at(self) -> int:
        """Texts of the validation part that are looked at."""
        return len(self._validation)

    @property
    def _validation(self) -> Tensor:
        part = self.split.validation
        return part[:: -(-len(part) // VALIDATED)]

    def choose(self, trials: int) -> None:
        """All small language models that take the longest text."""
        self.candidates = {c.name: c for c in text_candidates() if longest(c.name) >= LONGEST}

    def setting(self, runtime: str) -> dict[str, Any]:
        """Costs hold for the texts, a batch and the number of classes."""
        lengths = np.diff(self.texts.starts)
        sizes = {"texts": len(self.texts), "tokens": int(lengths.sum()), "classes": len(self.texts.classes)}
        return {**sizes, "batch": self.batch, "runtime": runtime, **machine()}

    def example(self) -> Tensor:
        """The tokens ``(1, length)`` of a text of the median length."""
        lengths = np.diff(self.texts.starts)
        position = int(np.argsort(lengths, kind="stable")[len(lengths) // 2])
        return self.texts.rows(torch.tensor([position])).ids

    def measure(self, name: str, work: Path, runtime: str) -> Costs:
        """Multiply-adds and time are those of a text of the median length."""
        started = time.perf_counter()
        model, ids = self.create(name, seed=0).eval(), self.example()
        macs, timed = multiply_adds(model, ids), time_text(model, ids, LATENCY_SECONDS)
        size = len(safetensors.save(model.state_dict()))
        step = time_steps(self.train_step(model))
        return Costs(
            params=sum(parameter.numel() for parameter in model.parameters()),
            macs=macs,
            size_bytes=size,
            latency_ms=timed,
            step_seconds=step,
            export_seconds=step * len(self.split.test) / self.batch,
            measure_seconds=time.perf_counter() - started,
        )

    def create(self, name: str, seed: int) -> Model:
        """A fresh language model with the mean of its features and classes in place of its head."""
        whole = super().create(name, seed)
        head = MeanPoolHead.Config(num_classes=len(self.texts.classes))
        with preserved():
            torch.manual_seed(derive_seed(seed, "weights", name))
            model = cast(Model, build(edit(whole.spec, {"head": head})))
        model.model_name, model.data_config = name, self.config
        return model

    def learning_rate(self, name: str, model: Any) -> float:
        """Less for wider models."""
        return LEARNING_RATE * min(1.0, WIDTH / model.config.dim)

    def objective(self) -> Objective:
        """See :class:`anyformer.fit.aims.Learning`."""
        return Learning(self.aim)

    def batches(self, seed: int) -> LabelledBatches:
        """The training batches by step."""
        return LabelledBatches(self.texts, self.split.train, size=self.batch, seed=seed)

    def outputs_of(self, model: nn.Module, positions: Tensor) -> Tensor:
        """A model's scores ``(n, classes)`` for texts, in evaluation mode, in which it is left."""
        model.eval()
        device = next(model.parameters()).device
        found: list[Tensor] = []
        with torch.no_grad():
            for some in positions.split(TOGETHER):
                rows = pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), self.texts.rows(some))
                found.append(model(rows).cpu())
        return torch.cat(found).float()

    def validated(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """A model's scores for the validation part, or many of it, and the classes there."""
        return self.outputs_of(model, self._validation), self.texts.labels[self._validation]

    def score(self, model: nn.Module) -> float:
        """The accuracy on the validation part, less a share of the loss there."""
        outputs, targets = self.validated(model)
        loss = min(self.aim.loss(outputs, targets).item(), WORST_LOSS)
        return self.aim.score(outputs, targets) - LOSS_WEIGHT * loss


def time_text(model: nn.Module, ids: Tensor, seconds: float) -> dict[str, float]:
    """Median, 10th and 90th percentile in milliseconds of one text through a model."""
    with torch.inference_mode():
        timed = latency(lambda: model(ids), seconds=seconds)
    return {"median": timed.median_ms, "p10": timed.p10_ms, "p90": timed.p90_ms}
