"""What a fit works on: the pictures, their division, what is learnt of them, and the candidates that learn it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from anyformer.core.errors import AnyformerError
from anyformer.core.model import Model
from anyformer.core.part import Norm
from anyformer.core.store import create_model
from anyformer.data.batches import Batches, data_config, normalize
from anyformer.data.imageset import ImageSet
from anyformer.data.pixels import Pixels
from anyformer.data.seeds import derive_seed
from anyformer.data.split import Split
from anyformer.fit.aims import Aim, Learning, aim_of
from anyformer.fit.augmenting import augmentation
from anyformer.fit.candidates import Candidate
from anyformer.fit.pretrained import Weights
from anyformer.parts.norms.batch_norm import BatchNorm
from anyformer.train.chance import preserved
from anyformer.train.loop import Role, Trainer
from anyformer.train.schedule import adamw

BATCH = 32
TOGETHER = 256  # pictures in one evaluation
LEARNING_RATE = 1e-3
NORMED_RATE = 6e-3  # of networks whose norms are batch norms, which bear it and then learn several times faster
MIXED_RATE = 1.5e-3  # where other norms stand beside them
FINE_TUNING = 3e-4  # of weights that know something already


@dataclass
class Data:
    """The pictures, their split, and what a model must be told of them.

    Attributes:
        pictures: all of them.
        split: which train, which choose and which test.
        aim: what is to be predicted and how that is scored; of what is learnt.
        config: mean, deviation, size and the like, as it travels with every model.
        weights: where candidates may start from.
        device: where training computes; the CPU when None.
        candidates: by name.
        origins: what each candidate that was started from weights, or should have been, started from.
    """

    pictures: ImageSet
    split: Split
    aim: Aim
    config: dict[str, Any]
    weights: Weights | None = None
    device: str | None = None
    candidates: dict[str, Candidate] = field(default_factory=dict)
    origins: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, pictures: ImageSet, seed: int, weights: Weights | None = None, device: str | None = None) -> "Data":
        """The pictures, divided, and what follows from the training part alone."""
        split = pictures.split(seed)
        images, targets = pictures.part(split.train)
        aim = aim_of(pictures.kind, targets, pictures.classes)
        config = {**data_config(images), "classes": list(pictures.classes), **aim.description()}
        return cls(pictures, split, aim, config, weights, device)

    @property
    def batch(self) -> int:
        """Pictures a batch."""
        return min(BATCH, len(self.split.train))

    @property
    def epoch(self) -> int:
        """Steps in which every training picture is seen once."""
        return len(self.split.train) // self.batch

    @property
    def outputs(self) -> int:
        """Scores or numbers that a model gives."""
        return len(self.pictures.classes)

    def part(self, indices: Tensor) -> tuple[Pixels, Tensor]:
        """Pictures, read when they are indexed, and targets of a part."""
        return self.pictures.part(indices)

    def example(self) -> Tensor:
        """One normalised picture of the training part."""
        return normalize(self.part(self.split.train[:1])[0][:], self.config)

    def create(self, name: str, seed: int) -> Model:
        """A fresh model of a candidate, its weights a pure function of the seed."""
        with preserved():
            torch.manual_seed(derive_seed(seed, "weights", name))
            model = cast(Model, create_model(name, **self.candidates[name].options))
        model.data_config = self.config
        return model

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

    def batches(self, seed: int) -> Batches:
        """The training batches by step."""
        images, labels = self.part(self.split.train)
        return Batches(
            images, labels, self.config, size=self.batch, seed=seed, augmentation=augmentation(self.pictures.size)
        )

    def train_step(self, model: nn.Module) -> Callable[[], None]:
        """One training step of a model, as it will be trained, to be timed."""
        trainer: Trainer | None = None

        def step() -> None:
            nonlocal trainer
            if trainer is None:  # not before: it moves the model to the device
                roles = {"student": Role(model, adamw(model))}
                trainer = Trainer(roles, Learning(self.aim), self.batches(0), every=10**9, device=self.device)
            trainer.run(trainer.step + 1)

        return step


def digest(model: nn.Module) -> str:
    """The first 16 digits of the SHA-256 of a model's weights."""
    seal = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        seal.update(name.encode())
        seal.update(tensor.detach().contiguous().view(torch.uint8).numpy().data)
    return seal.hexdigest()[:16]
