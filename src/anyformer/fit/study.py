"""The training of the candidates, rung by rung."""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from anyformer.core import serial
from anyformer.core.errors import UsageError
from anyformer.core.model import Model
from anyformer.fit.clock import Clock
from anyformer.fit.costs import Costs
from anyformer.fit.material import Material
from anyformer.fit.memory import RunMemory
from anyformer.fit.plan import Rung, steps
from anyformer.train.checkpoint import Checkpoints
from anyformer.train.log import Log
from anyformer.train.loop import DivergenceError, Role, Trainer
from anyformer.train.schedule import WarmupCosine, adamw

AMID = 2.0  # more than any two scores of a kind differ by, where it matters
WARMUP = 0.1  # of the steps of a rung
LOST = -1e9  # the score of what diverged before it was looked at: below all others
SAVE_STEPS = 200  # between checkpoints
LOOK_SHARE = 0.05  # of a rung that evaluations may take
PASSES = 3  # a training step is worth so many passes forward


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

    What a candidate reaches in a rung is a pure function of the seed and the plan, whoever trains it and when.

    Args:
        folder: of the run; checkpoints lie under ``work``, logs under ``logs``.
        data: what to train on.
        costs: of the candidates within the budget.
        ladder: how many candidates train in each rung, and for how long.
        memory: what earlier calls have finished.
        seed: of weights, order and augmentation.
        bf16: train under bfloat16 autocast.
        clock: told what is going on.
        teacher: who teaches the finalists: its name, its costs and the steps it is trained for before.
    """

    def __init__(
        self,
        folder: Path,
        data: Material,
        costs: Mapping[str, Costs],
        ladder: Sequence[Rung],
        memory: RunMemory,
        seed: int,
        bf16: bool,
        clock: Clock,
        teacher: tuple[str, Costs, int] | None = None,
    ) -> None:
        self.teacher = teacher
        self._taught_by: Model | None = None
        self.folder, self.data, self.costs, self.ladder, self.memory = folder, data, costs, ladder, memory
        self.seed, self.bf16, self.clock = seed, bf16, clock
        self.trainers: dict[str, Trainer] = {}
        self.reached: dict[str, int] = {}
        self.diverged: dict[str, str] = {}
        self.stopped_by_clock = False
        self._held: dict[str, ExitStack] = {}

    def run(self, reserve: float = 0.0) -> None:
        """Train all rungs, or until ``reserve`` seconds are left of the clock.

        Raises:
            KeyboardInterrupt: after Ctrl-C, when the step at hand is saved.
        """
        deadline = self.clock.total - reserve
        last = len(self.ladder) - 1
        if self.teacher is not None and self.train(self.teacher[0], 0, lambda: self.clock.seconds > deadline) is None:
            self.stopped_by_clock = True
            return
        for number in range(len(self.ladder)):
            for name in self.entrants(number):
                trainer = self._trainer(name)
                score = self.memory.score(number, name)
                # What another process trained elsewhere is trained again here where it is needed: the same bits.
                if score is None or (number == last and trainer.best is None):
                    score = self.train(name, number, lambda: self.clock.seconds > deadline)
                    if score is None:
                        self.stopped_by_clock = True
                        return
                    self.memory.enter(number, name, score, self.clock.seconds)
                self.reached[name] = number

    def entrants(self, number: int) -> list[str]:
        """The candidates of a rung: all of them, then the best of the rung before, whose scores are known."""
        if number == 0:
            return list(self.costs)
        scores = self.memory.rungs[number - 1]
        return sorted(self.entrants(number - 1), key=lambda name: -scores[name])[: self.ladder[number].candidates]

    def missing(self) -> list[tuple[str, int]]:
        """Candidates and rung that come next: those of the first rung that is not finished."""
        for number in range(len(self.ladder)):
            left = [(name, number) for name in self.entrants(number) if self.memory.score(number, name) is None]
            if left:
                return left
        return []

    def train(self, name: str, number: int, should_stop: Callable[[], bool]) -> float | None:
        """Train a candidate to the end of a rung; its best score so far, or None when it was stopped before.

        One whose loss is no number any more keeps what it had reached, and ``diverged`` says so; the others go on.
        """
        _, bounds = self._bounds(name)
        trainer = self._trainer(name)
        doing = f"Training {name}, rung {number + 1} of {len(self.ladder)}"
        if self._teaches(name):
            doing = f"Training {name}, the teacher"
        self.clock.say(doing)

        def progress(step: int, losses: dict[str, float]) -> None:
            if step % 10 == 0:
                self.clock.say(f"{doing}, step {step}")

        try:
            if trainer.run(bounds[number], should_stop, progress) == "stopped":
                return None
        except DivergenceError as error:
            if self._teaches(name):
                raise
            self.diverged[name] = str(error)
        return trainer.best.score if trainer.best is not None else LOST

    def gather(self) -> None:
        """Take up what other processes have trained in the folder of the run, but for what they still hold."""
        for name in self.costs:
            rungs = [number for number in range(len(self.ladder)) if self.memory.score(number, name) is not None]
            if rungs and name not in self.trainers:
                with suppress(UsageError):
                    self._trainer(name)
                    self.reached[name] = rungs[-1]

    def standing(self) -> dict[str, float]:
        """The best score of every candidate within the budget that has one."""
        return {
            name: trainer.best.score
            for name, trainer in self.trainers.items()
            if trainer.best is not None and name in self.costs
        }

    def model(self, name: str) -> Model:
        """A candidate with its best weights, in eval mode."""
        best = self.trainers[name].best
        assert best is not None
        model = self.data.create(name, self.seed)
        model.load_state_dict(best.weights["student"])
        return model.eval()

    def release(self, name: str) -> None:
        """Let go of a candidate, so that another process may train it."""
        self.trainers.pop(name, None)
        held = self._held.pop(name, None)
        if held is not None:
            held.close()

    def close(self) -> None:
        """Let go of all checkpoint folders; what was found stays."""
        while self._held:
            self._held.popitem()[1].close()

    def _teaches(self, name: str) -> bool:
        return self.teacher is not None and self.teacher[0] == name

    def _taught(self) -> Model:
        """The trained teacher."""
        if self._taught_by is None:
            assert self.teacher is not None
            trained = self.trainers[self.teacher[0]].models["student"]
            self._taught_by = self.model(self.teacher[0]).to(next(trained.parameters()).device)
        return self._taught_by

    def _bounds(self, name: str) -> tuple[int, tuple[int, ...]]:
        """Steps between evaluations, and the step at which each rung ends: a whole number of evaluations."""
        if self.teacher is not None and self._teaches(name):
            counts = [self.teacher[2]]
        else:
            counts = [steps(rung, self.costs[name]) for rung in self.ladder]
            if self.teacher is not None:
                counts[-1] = steps(self.ladder[-1], self.costs[name], self.teacher[1])
        every = max(1, counts[0] // self._looks(counts[0]))
        bounds: list[int] = []
        for count in counts:
            bounds.append((bounds[-1] if bounds else 0) + count // every * every)
        return every, tuple(bounds)

    def _looks(self, count: int) -> int:
        """Evaluations in the first rung: as many as the data want, or fewer where they would take too much of its time."""
        evaluation = self.data.looked_at / (PASSES * self.data.batch)  # in training steps
        return next((n for n in range(self.data.looks, 1, -1) if n * evaluation <= LOOK_SHARE * count), 1)

    def _trainer(self, name: str) -> Trainer:
        if name in self.trainers:
            return self.trainers[name]
        every, bounds = self._bounds(name)
        model = self.data.start(name, self.seed)
        config = {
            "asked": self.memory.asked,
            "spec": serial.to_data(model.spec),
            "every": every,
            "bounds": bounds,
            "batch": self.data.batch,
            "start": self.data.origins.get(name),
            "teacher": self.teacher and self.teacher[0],
        }
        objective = self.data.objective()
        if self.teacher is not None and not self._teaches(name):
            objective = self.data.taught(bounds[-2] if len(bounds) > 1 else 0, self._taught)
        with ExitStack() as held:
            store = held.enter_context(Checkpoints(self.folder / "work" / name, config))
            (self.folder / "logs").mkdir(exist_ok=True)
            trainer = Trainer(
                {"student": Role(model, adamw(model, self.data.learning_rate(name, model)), Restarts(bounds))},
                objective,
                self.data.batches(self.seed),
                seed=self.seed,
                bf16=self.bf16,
                device=self.data.device,
                every=every,
                evaluate=lambda models: self._evaluate(models, annealed=trainer.step in bounds),
                store=store,
                save_every=SAVE_STEPS,
                log=Log(self.folder / "logs" / f"{name}.jsonl"),
            )
            self._held[name] = held.pop_all()
        self.trainers[name] = trainer
        return trainer

    def _evaluate(self, models: Mapping[str, nn.Module], *, annealed: bool) -> float:
        """The score on the validation part.

        Weights amid a rung, at a high learning rate, stand below all that ended one: the best of many such looks would be
        the luckiest.
        """
        score = self.data.score(models["student"])
        return score if annealed else score - AMID
