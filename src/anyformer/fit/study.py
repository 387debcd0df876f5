"""The training of the candidates, rung by rung."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer.core import serial
from anyformer.core.model import Model
from anyformer.core.store import create_model
from anyformer.data.augment import Augmentation
from anyformer.data.batches import Batches, normalize
from anyformer.data.images import ImageSet
from anyformer.data.seeds import derive_seed
from anyformer.data.split import Split
from anyformer.fit.candidates import Candidate
from anyformer.fit.costs import Costs
from anyformer.fit.memory import RunMemory
from anyformer.fit.plan import Rung, steps
from anyformer.train.chance import preserved
from anyformer.train.checkpoint import Checkpoints
from anyformer.train.classification import Classification, accuracy, predict_logits
from anyformer.train.log import Log
from anyformer.train.loop import Role, Trainer
from anyformer.train.schedule import WarmupCosine, adamw

BATCH = 32
LEARNING_RATE = 1e-3
AMID = 2.0  # more than any two scores differ by
WARMUP = 0.1  # of the steps of a rung
LOSS_WEIGHT = 0.1  # on few pictures the loss tells good models apart better than their accuracies, which hardly differ
SAVE_STEPS = 200  # between checkpoints


class Clock(Protocol):
    """The time of a run."""

    total: float

    @property
    def seconds(self) -> float:
        """Seconds used so far."""
        ...

    def say(self, what: str) -> None:
        """Tell what is being done."""
        ...


@dataclass
class Data:
    """The pictures, their split, and what a model must be told of them."""

    pictures: ImageSet
    split: Split
    config: dict[str, Any]
    candidates: dict[str, Candidate] = field(default_factory=dict)

    @property
    def batch(self) -> int:
        """Pictures a batch."""
        return min(BATCH, len(self.split.train))

    def part(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures and labels of a part."""
        return self.pictures.images[indices], self.pictures.labels[indices]

    def example(self) -> Tensor:
        """One normalised picture of the training part."""
        return normalize(self.pictures.images[self.split.train[:1]], self.config)

    def create(self, name: str, seed: int) -> Model:
        """A fresh model of a candidate, its weights a pure function of the seed."""
        with preserved():
            torch.manual_seed(derive_seed(seed, "weights", name))
            model = cast(Model, create_model(name, **self.candidates[name].options))
        model.data_config = self.config
        return model

    def batches(self, seed: int) -> Batches:
        """The training batches by step."""
        images, labels = self.part(self.split.train)
        return Batches(images, labels, self.config, size=self.batch, seed=seed, augmentation=Augmentation())

    def train_step(self, model: nn.Module) -> Callable[[], None]:
        """One training step of a model, as it will be trained, to be timed."""
        trainer = Trainer({"student": Role(model, adamw(model))}, Classification(), self.batches(0), every=10**9)

        def step() -> None:
            trainer.run(trainer.step + 1)

        return step


@dataclass(frozen=True)
class Restarts:
    """Warm-up and cosine anew in every rung (SGDR, arXiv:1608.03983): the factor on the learning rate by step."""

    bounds: tuple[int, ...]

    def __call__(self, step: int) -> float:
        """The factor of a step, counted from 0 over all rungs."""
        rung = min(bisect_right(self.bounds, step), len(self.bounds) - 1)
        first = self.bounds[rung - 1] if rung else 0
        length = self.bounds[rung] - first
        return WarmupCosine(steps=length, warmup=int(WARMUP * length))(step - first)


class Study:
    """Candidates trained by successive halving, each resumable, compared on the validation part.

    Args:
        folder: of the run; checkpoints lie under ``work``, logs under ``logs``.
        data: what to train on.
        costs: of the candidates within the budget.
        memory: what earlier calls have finished.
        seed: of weights, order and augmentation.
        bf16: train under bfloat16 autocast.
        clock: says when to stop.
    """

    def __init__(
        self,
        folder: Path,
        data: Data,
        costs: Mapping[str, Costs],
        memory: RunMemory,
        seed: int,
        bf16: bool,
        clock: Clock,
    ) -> None:
        self.folder, self.data, self.costs, self.memory = folder, data, costs, memory
        self.seed, self.bf16, self.clock = seed, bf16, clock
        self.trainers: dict[str, Trainer] = {}
        self.reached: dict[str, int] = {}
        self.stopped_by_clock = False
        self._held = ExitStack()

    def run(self, rungs: Sequence[Rung], reserve: float = 0.0) -> None:
        """Train all rungs, or until ``reserve`` seconds are left of the clock.

        Raises:
            KeyboardInterrupt: after Ctrl-C, when the step at hand is saved.
        """
        names = list(self.costs)
        for number in range(len(rungs)):
            for name in names:
                if name not in self.trainers:
                    self.trainers[name] = self._trainer(name, *self._bounds(name, rungs))
                score = self.memory.score(number, name)
                if score is None:
                    score = self._train(name, rungs, number, reserve)
                    if score is None:
                        self.stopped_by_clock = True
                        return
                    self.memory.enter(number, name, score, self.clock.seconds)
                self.reached[name] = number
            if number + 1 < len(rungs):
                scores = self.memory.rungs[number]
                names = sorted(names, key=lambda name: -scores[name])[: rungs[number + 1].candidates]

    def standing(self) -> dict[str, float]:
        """The best score of every candidate that has one."""
        return {name: trainer.best.score for name, trainer in self.trainers.items() if trainer.best is not None}

    def model(self, name: str) -> Model:
        """A candidate with its best weights, in eval mode."""
        best = self.trainers[name].best
        assert best is not None
        model = self.data.create(name, self.seed)
        model.load_state_dict(best.weights["student"])
        return model.eval()

    def accuracy(self, name: str) -> float:
        """The accuracy of a candidate's best weights on the validation part."""
        images, labels = self.data.part(self.data.split.validation)
        return accuracy(predict_logits(self.model(name), images, self.data.config), labels)

    def close(self) -> None:
        """Let go of the checkpoint folders."""
        self._held.close()

    def _train(self, name: str, rungs: Sequence[Rung], number: int, reserve: float) -> float | None:
        _, bounds = self._bounds(name, rungs)
        trainer = self.trainers[name]
        self.clock.say(f"Training {name}, rung {number + 1} of {len(rungs)}")

        def progress(step: int, losses: dict[str, float]) -> None:
            if step % 10 == 0:
                self.clock.say(f"Training {name}, rung {number + 1} of {len(rungs)}, step {step}")

        deadline = self.clock.total - reserve
        outcome = trainer.run(bounds[number], lambda: self.clock.seconds > deadline, progress)
        if outcome == "stopped":
            return None
        assert trainer.best is not None
        return trainer.best.score

    def _bounds(self, name: str, rungs: Sequence[Rung]) -> tuple[int, tuple[int, ...]]:
        """Steps between evaluations, and the step at which each rung ends: a whole number of evaluations."""
        counts = [steps(rung, self.costs[name]) for rung in rungs]
        every = max(1, counts[0] // 2)
        bounds: list[int] = []
        for count in counts:
            bounds.append((bounds[-1] if bounds else 0) + count // every * every)
        return every, tuple(bounds)

    def _trainer(self, name: str, every: int, bounds: tuple[int, ...]) -> Trainer:
        model = self.data.create(name, self.seed)
        config = {
            "asked": self.memory.asked,
            "spec": serial.to_data(model.spec),
            "every": every,
            "bounds": bounds,
            "batch": self.data.batch,
        }
        store = self._held.enter_context(Checkpoints(self.folder / "work" / name, config))
        (self.folder / "logs").mkdir(exist_ok=True)
        return Trainer(
            {"student": Role(model, adamw(model, LEARNING_RATE), Restarts(bounds))},
            Classification(),
            self.data.batches(self.seed),
            seed=self.seed,
            bf16=self.bf16,
            every=every,
            evaluate=lambda models: self._evaluate(models, annealed=self.trainers[name].step in bounds),
            store=store,
            save_every=SAVE_STEPS,
            log=Log(self.folder / "logs" / f"{name}.jsonl"),
        )

    def _evaluate(self, models: Mapping[str, nn.Module], *, annealed: bool) -> float:
        """Accuracy on the validation part, less a tenth of the loss there.

        Weights amid a rung, at a high learning rate, stand below all that ended one: the best of many such looks would be
        the luckiest.
        """
        images, labels = self.data.part(self.data.split.validation)
        logits = predict_logits(models["student"], images, self.data.config)
        score = accuracy(logits, labels) - LOSS_WEIGHT * min(1.0, F.cross_entropy(logits, labels).item())
        return score if annealed else score - AMID
