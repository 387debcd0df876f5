"""What a fit works on: data, their division, and the candidates that learn them."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import nn

from anyformer.core.model import Model
from anyformer.core.store import create_model
from anyformer.data.seeds import derive_seed
from anyformer.fit.budget import Budget
from anyformer.fit.candidates import Candidate
from anyformer.fit.clock import Clock
from anyformer.fit.costs import Costs
from anyformer.fit.pretrained import Weights
from anyformer.train.chance import preserved
from anyformer.train.loop import Objective, Role, Trainer
from anyformer.train.schedule import adamw


@dataclass(kw_only=True)
class Material(ABC):
    """All that a fit must know of its data; whether these are pictures or texts, it asks no further.

    Attributes:
        config: what a model must be told of its input, as it travels with every model.
        weights: where candidates may start from.
        device: where training computes; the CPU when None.
        candidates: by name.
        origins: what each candidate that was started from weights, or should have been, started from.
    """

    looks: ClassVar[int] = 2  # evaluations in the first rung, where they do not take too long

    config: dict[str, Any]
    weights: Weights | None = None
    device: str | None = None
    candidates: dict[str, Candidate] = field(default_factory=dict)
    origins: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    @abstractmethod
    def batch(self) -> int:
        """Rows a batch."""

    @property
    @abstractmethod
    def epoch(self) -> int:
        """Steps in which all training data are seen once."""

    @property
    @abstractmethod
    def looked_at(self) -> int:
        """Rows of the validation part that are looked at in an evaluation."""

    @abstractmethod
    def choose(self, trials: int) -> None:
        """Enter so many candidates at most."""

    @abstractmethod
    def setting(self, runtime: str) -> dict[str, Any]:
        """What measured costs hold for, as JSON values."""

    @abstractmethod
    def measure(self, name: str, work: Path, runtime: str) -> Costs:
        """The costs of a candidate; files in between may lie in the folder ``work``."""

    def reduced(
        self, folder: Path, runtime: str, clock: Clock, costs: dict[str, Costs], budget: Budget
    ) -> dict[str, Costs]:
        """The costs, with those of a cheaper form where no candidate keeps the budget and there is such a form."""
        return costs

    def create(self, name: str, seed: int) -> Model:
        """A fresh model of a candidate, its weights a pure function of the seed."""
        with preserved():
            torch.manual_seed(derive_seed(seed, "weights", name))
            model = cast(Model, create_model(name, **self.candidates[name].options))
        model.data_config = self.config
        return model

    def start(self, name: str, seed: int) -> Model:
        """A candidate as it enters training."""
        return self.create(name, seed)

    @abstractmethod
    def learning_rate(self, name: str, model: nn.Module) -> float:
        """The highest learning rate of a candidate that has been started."""

    @abstractmethod
    def objective(self) -> Objective:
        """What the role ``student`` is to reach."""

    def taught(self, since: int, teacher: Callable[[], nn.Module]) -> Objective:
        """The objective of a student that from a step on learns from a teacher, too; where models can be taught."""
        raise NotImplementedError

    @abstractmethod
    def batches(self, seed: int) -> Callable[[int], Any]:
        """The training batches by step."""

    @abstractmethod
    def score(self, model: nn.Module) -> float:
        """What a model reaches on the validation part, as candidates are compared: more is better, by less than 2."""

    def train_step(self, model: nn.Module) -> Callable[[], None]:
        """One training step of a model, as it will be trained, to be timed."""
        trainer: Trainer | None = None

        def step() -> None:
            nonlocal trainer
            if trainer is None:  # not before: it moves the model to the device
                roles = {"student": Role(model, adamw(model))}
                trainer = Trainer(roles, self.objective(), self.batches(0), every=10**9, device=self.device)
            trainer.run(trainer.step + 1)

        return step
