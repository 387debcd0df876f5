"""Pictures as the material of a fit: their division, what is learnt of them, and the candidates that learn it."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.errors import AnyformerError
from anyformer.core.model import Model
from anyformer.core.part import Norm
from anyformer.data.batches import Batches, data_config, normalize
from anyformer.data.imageset import ImageSet
from anyformer.data.pixels import Pixels
from anyformer.data.seeds import derive_seed
from anyformer.data.split import Split
from anyformer.fit.aims import Aim, Learning, aim_of
from anyformer.fit.augmenting import augmentation
from anyformer.fit.budget import Budget
from anyformer.fit.candidates import candidates
from anyformer.fit.clock import Clock
from anyformer.fit.costs import Costs, measure_candidate, setting_of
from anyformer.fit.int8 import in_int8
from anyformer.fit.material import Material
from anyformer.fit.pretrained import Weights
from anyformer.fit.teaching import Teaching
from anyformer.parts.norms.batch_norm import BatchNorm
from anyformer.train.chance import preserved
from anyformer.train.loop import Objective

BATCH = 32
TOGETHER = 256  # pictures in one evaluation
LEARNING_RATE = 1e-3
NORMED_RATE = 6e-3  # of networks whose norms are batch norms, which bear it and then learn several times faster
MIXED_RATE = 1.5e-3  # where other norms stand beside them
FINE_TUNING = 3e-4  # of weights that know something already
VALIDATED = 5000  # validation pictures that are looked at, at most, evenly spread
LOSS_WEIGHT = 0.1  # on few pictures the loss tells good models apart better than their accuracies, which hardly differ
LOSS_PICTURES = 5.0  # over the number of validation pictures, is added to that: one picture more or less is chance


@dataclass
class PictureMaterial(Material):
    """The pictures, their split, and what a model must be told of them: mean, deviation, size and the like.

    Attributes:
        pictures: all of them.
        split: which train, which choose and which test.
        aim: what is to be predicted and how that is scored; of what is learnt.
    """

    pictures: ImageSet
    split: Split
    aim: Aim

    @classmethod
    def of(
        cls, pictures: ImageSet, seed: int, weights: Weights | None = None, device: str | None = None
    ) -> "PictureMaterial":
        """The pictures, divided, and what follows from the training part alone."""
        split = pictures.split(seed)
        images, targets = pictures.part(split.train)
        aim = aim_of(pictures.kind, targets, pictures.classes)
        config = {**data_config(images), "classes": list(pictures.classes), **aim.description()}
        return cls(pictures, split, aim, config=config, weights=weights, device=device)

    @property
    def batch(self) -> int:
        """Pictures a batch."""
        return min(BATCH, len(self.split.train))

    @property
    def epoch(self) -> int:
        """Steps in which every training picture is seen once."""
        return len(self.split.train) // self.batch

    @property
    def looked_at(self) -> int:
        """Pictures of the validation part that are looked at."""
        return len(self._validation)

    @property
    def outputs(self) -> int:
        """Scores or numbers that a model gives."""
        return len(self.pictures.classes)

    @property
    def _validation(self) -> Tensor:
        part = self.split.validation
        return part[:: -(-len(part) // VALIDATED)]

    def choose(self, trials: int) -> None:
        """Those that weights lie ready for first; see :func:`anyformer.fit.candidates.candidates`."""
        wanted = candidates(
            size=self.pictures.size,
            channels=self.pictures.channels,
            classes=self.outputs,
            trials=trials,
            weights=self.weights.names if self.weights else (),
        )
        self.candidates = {candidate.name: candidate for candidate in wanted}

    def setting(self, runtime: str) -> dict[str, Any]:
        """See :func:`anyformer.fit.costs.setting_of`."""
        return setting_of(self.example(), self.outputs, self.batch, runtime)

    def measure(self, name: str, work: Path, runtime: str) -> Costs:
        """See :func:`anyformer.fit.costs.measure_candidate`."""
        model = self.create(name, seed=0)
        return measure_candidate(model, self.example(), self.train_step(model), work / f"{name}.onnx", runtime)

    def reduced(
        self, folder: Path, runtime: str, clock: Clock, costs: dict[str, Costs], budget: Budget
    ) -> dict[str, Costs]:
        """In int8."""
        return in_int8(folder, self, runtime, clock, costs, budget)

    def part(self, indices: Tensor) -> tuple[Pixels, Tensor]:
        """Pictures, read when they are indexed, and targets of a part."""
        return self.pictures.part(indices)

    def example(self) -> Tensor:
        """One normalised picture of the training part."""
        return normalize(self.part(self.split.train[:1])[0][:], self.config)

    def start(self, name: str, seed: int) -> Model:
        """A candidate as it enters training: from pretrained weights where there are some, else fresh."""
        if self.weights is None:
            return self.create(name, seed)
        reason = self.weights.reason(name)
        if name in self.weights.names:
            try:
                with preserved():
                    torch.manual_seed(derive_seed(seed, "weights", name))
                    model = self.weights.start(name, self.candidates[name].options)
            except AnyformerError as error:
                reason = str(error)
            else:
                model.data_config = self.config
                self.origins[name] = {
                    "pretrained": True,
                    "from": f"{self.weights.source}: {name}",
                    "sha": digest(model),
                }
                return model
        self.origins[name] = {"pretrained": False, "reason": reason}
        return self.create(name, seed)

    def learning_rate(self, name: str, model: nn.Module) -> float:
        """The highest learning rate of a candidate that has been started."""
        if self.origins.get(name, {}).get("pretrained"):
            return FINE_TUNING
        normed = [isinstance(part, BatchNorm) for part in model.modules() if isinstance(part, Norm)]
        return NORMED_RATE if normed and all(normed) else MIXED_RATE if any(normed) else LEARNING_RATE

    def outputs_of(self, model: nn.Module, indices: Tensor) -> Tensor:
        """A model's outputs ``(n, k)`` for a part, in evaluation mode, in which it is left."""
        model.eval()
        device = next(model.parameters()).device
        images, _ = self.part(indices)
        with torch.no_grad():
            parts = (model(normalize(some, self.config).to(device)) for some in images.split(TOGETHER))
            return torch.cat([outputs.float().cpu() for outputs in parts])

    def validated(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """A model's outputs for the validation part, or many of it, and the targets there."""
        return self.outputs_of(model, self._validation), self.pictures.labels[self._validation]

    def objective(self) -> Objective:
        """See :class:`anyformer.fit.aims.Learning`."""
        return Learning(self.aim)

    def taught(self, since: int, teacher: Callable[[], nn.Module]) -> Objective:
        """See :class:`anyformer.fit.teaching.Teaching`."""
        return Teaching(self.aim, since, teacher)

    def score(self, model: nn.Module) -> float:
        """The score on the validation part, less a share of the loss there: a tenth, and more where few pictures tell."""
        outputs, targets = self.validated(model)
        with torch.no_grad():
            loss = self.aim.loss(outputs, targets).item()
        # Early on, where all accuracies are chance, the loss alone tells who has begun to learn.
        weight = LOSS_WEIGHT + LOSS_PICTURES / len(targets)
        return self.aim.score(outputs, targets) - weight * (loss if loss < 1 else 1 + math.log(loss))

    def batches(self, seed: int) -> Batches:
        """The training batches by step."""
        images, labels = self.part(self.split.train)
        return Batches(
            images, labels, self.config, size=self.batch, seed=seed, augmentation=augmentation(self.pictures.size)
        )


def digest(model: nn.Module) -> str:
    """The first 16 digits of the SHA-256 of a model's weights."""
    seal = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        seal.update(name.encode())
        seal.update(tensor.detach().contiguous().view(torch.uint8).numpy().data)
    return seal.hexdigest()[:16]
