"""The training loop: roles, each with a model, stepped in turn on every batch, and resumable to the same bits."""

import math
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.data.seeds import derive_seed
from anyformer.train import processes
from anyformer.train.averages import Average
from anyformer.train.chance import CPU, capture, preserved, restore, seeded
from anyformer.train.checkpoint import Checkpoints, CheckpointWarning
from anyformer.train.log import Log
from anyformer.train.sharding import is_cut, load_model, load_optimizer, same_everywhere, whole
from anyformer.train.signals import deferred_signals


class DivergenceError(AnyformerError):
    """A loss or a gradient is no number any more."""


@dataclass
class Role:
    """One model's part in an objective.

    Args:
        model: The model.
        optimizer: Of its parameters; a role without one (a teacher) is in evaluation mode and never changes.
        schedule: From the step to the factor on the optimizer's learning rates; a pure function.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer | None = None
    schedule: Callable[[int], float] = lambda _: 1.0


class Objective(Protocol):
    """What the roles are to reach."""

    def losses(self, role: str, models: Mapping[str, nn.Module], batch: Any, step: int) -> Tensor:
        """The scalar that the optimizer of ``role`` lessens on this batch; it reaches that role's parameters only."""
        ...


@dataclass
class Best:
    """The best evaluation so far and the weights evaluated: whole tensors, averages where the run keeps them."""

    score: float
    step: int
    weights: dict[str, dict[str, Tensor]]


class Trainer:
    """A run: its roles, where it stands, and what it has found.

    A run is a pure function of its arguments. It has random states of its own, so that runs may take turns in one
    process; with ``store`` it goes on from the newest good checkpoint, to the same bits as if never stopped. Several
    processes (:mod:`anyformer.train.processes`) make the same calls; each computes its share of every batch, and the
    first writes.

    Args:
        roles: By name, stepped in this order.
        objective: What they are to reach.
        batches: From the step, counted from 0, to its batch; a pure function.
        seed: Of dropout and all else that models draw.
        clip: Largest norm of a role's gradient.
        bf16: Whether losses are computed under bfloat16 autocast; parameters and optimizers stay as they are.
        accumulate: Parts that each process cuts its share of a batch into, to bound memory; their gradients add up to
            that of the batch where its loss is a mean over rows.
        ema: The share of a moving average of the weights that a step keeps, say 0.999. The averages belong to the run's
            state; they are what is evaluated and kept as the best.
        device: Where to compute, as ``processes.pick_device`` takes it; where the models are when absent.
        every: Steps between evaluations, each with a line in the log.
        evaluate: From the models, in evaluation mode, to a score where more is better.
        store: Where checkpoints go; held by the caller.
        save_every: Steps between checkpoints, besides the one at the end of each ``run``.
        log: Where lines of step, mean loss and learning rate by role, score and seconds go.

    Raises:
        UsageError: ``accumulate`` or ``ema`` is out of range, there is no such device, or the checkpoint is of another
            run.
    """

    def __init__(
        self,
        roles: dict[str, Role],
        objective: Objective,
        batches: Callable[[int], Any],
        *,
        seed: int = 0,
        clip: float = 1.0,
        bf16: bool = False,
        accumulate: int = 1,
        ema: float | None = None,
        device: str | torch.device | None = None,
        every: int = 100,
        evaluate: Callable[[Mapping[str, nn.Module]], float] | None = None,
        store: Checkpoints | None = None,
        save_every: int = 1000,
        log: Log | None = None,
    ):
        if accumulate < 1 or (ema is not None and not 0 <= ema < 1):
            raise UsageError(f"accumulate must be at least 1 and ema in [0, 1), got {accumulate} and {ema}")
        self.roles, self.objective, self.batches = roles, objective, batches
        self.clip, self.bf16, self.every, self.evaluate = clip, bf16, every, evaluate
        self.store, self.save_every, self.log, self.accumulate = store, save_every, log, accumulate
        self.device = processes.pick_device(str(device)) if device is not None else None
        self.models = {name: role.model for name, role in roles.items()}
        self.step, self.seconds = 0, 0.0
        self.best: Best | None = None
        for role in roles.values():
            if self.device is not None:
                role.model.to(self.device)
            same_everywhere(role.model)
            for group in role.optimizer.param_groups if role.optimizer else ():
                group.setdefault("initial_lr", group["lr"])
        trained = {name: role for name, role in roles.items() if role.optimizer}
        self._averages = {name: Average(role.model, ema) for name, role in trained.items()} if ema is not None else {}
        # The first process draws what a process alone would draw, the others something else.
        place = ("models", processes.rank()) if processes.rank() else ("models",)
        self._chance = seeded(derive_seed(seed, *place), self._drawn_on)
        self._losses: dict[str, list[float]] = {name: [] for name in trained}
        saved = store.load() if store else None
        if saved is not None:
            self._restore(saved[1])
        if log:
            processes.by_first(lambda: log.forget_after(self.step))

    @property
    def _drawn_on(self) -> torch.device:
        """The device whose random numbers the models draw."""
        return self.device or next((p.device for model in self.models.values() for p in model.parameters()), CPU)

    def run(
        self,
        steps: int,
        should_stop: Callable[[], bool] = lambda: False,
        progress: Callable[[int, dict[str, float]], None] = lambda step, losses: None,
    ) -> Literal["steps", "stopped"]:
        """Trains until ``steps`` steps are done in all, or until ``should_stop()``; says which.

        Args:
            steps: Counted from the very start of the run.
            should_stop: Asked before every step; a deadline, say. All processes stop when one says so.
            progress: Told after every step the steps done and the losses by role.

        Raises:
            DivergenceError: A loss or gradient is not finite.
            AnyformerError: A file cannot be written.
            KeyboardInterrupt: After Ctrl-C, when the step is finished and saved.
            SystemExit: After SIGTERM, likewise, with code 143.
        """
        with deferred_signals() as signals, preserved(self._drawn_on):
            restore(self._chance, self._drawn_on)
            self._set_modes()
            while self.step < steps:
                received, stop = processes.largest(signals.received or 0, should_stop())
                if received:
                    signals.received = received  # whichever process it came to
                if received or stop:
                    break
                started = time.monotonic()
                losses = self._advance()
                if self.step % self.every == 0:
                    self._report(time.monotonic() - started)
                self.seconds += time.monotonic() - started
                progress(self.step, losses)
                if self.step % self.save_every == 0:
                    self._save()
            self._chance = capture(self._drawn_on)
            self._save()
        signals.deliver()
        return "steps" if self.step >= steps else "stopped"

    def weights(self, role: str) -> dict[str, Tensor]:
        """A role's state dict for use: the averages where the run keeps them, whole where the model is cut, copied.

        All processes must call it.
        """
        state = self.models[role].state_dict() | (self._averages[role].values if role in self._averages else {})
        return {key: value.detach().clone() for key, value in whole(dict(state)).items()}

    def _advance(self) -> dict[str, float]:
        """One batch: every role that has an optimizer, in order; gives their losses."""
        parts = processes.shares(self.batches(self.step), self.accumulate, self.device)
        losses = {}
        for name, role in self.roles.items():
            if role.optimizer is None:
                continue
            losses[name] = self._learn(name, role.optimizer, role.schedule(self.step), parts)
            self._losses[name].append(losses[name])
            if processes.count() > 1:  # running statistics are those of the whole batch
                processes.average([buffer for buffer in role.model.buffers() if buffer.is_floating_point()])
            if name in self._averages:
                self._averages[name].update(self.step)
        self.step += 1
        return losses

    def _learn(
        self, name: str, optimizer: torch.optim.Optimizer, factor: float, parts: list[tuple[float, Any]]
    ) -> float:
        """Steps a role's optimizer on the parts of a batch; gives the loss of the whole."""
        groups = optimizer.param_groups
        parameters = [parameter for group in groups for parameter in group["params"] if parameter.requires_grad]
        own = [parameter for parameter in parameters if not is_cut(parameter)]
        losses = []
        optimizer.zero_grad()
        for share, part in parts:
            with torch.autocast(parameters[0].device.type, torch.bfloat16, enabled=self.bf16):
                loss = self.objective.losses(name, self.models, part, self.step)
            loss = loss * (share * processes.count())  # for the mean over the processes
            # The other roles' gradients are neither needed nor disturbed. Cut parameters are no leaves of the graph, so
            # with them the others' gradients are made too, and dropped when their turn comes.
            loss.backward(inputs=own if len(own) == len(parameters) else None)
            losses.append(loss.detach())
        total = torch.stack(losses).sum()
        processes.average_gradients(own)
        processes.average([total])
        norm = whole(nn.utils.clip_grad_norm_(parameters, self.clip)).item()
        value = total.item()
        if not math.isfinite(value) or not math.isfinite(norm):
            raise DivergenceError(
                f"the loss of the {name} is {value:g} and its gradient {norm:g} at step {self.step}; lower the "
                f"learning rate"
            )
        for group in groups:
            group["lr"] = group["initial_lr"] * factor
        optimizer.step()
        return value

    def _report(self, seconds: float) -> None:
        """Evaluates, keeps the best, writes a line and begins a new mean of losses."""
        score = None
        if self.evaluate:
            for model in self.models.values():
                model.eval()
            with ExitStack() as averaged:
                for average in self._averages.values():
                    averaged.enter_context(average.in_place())
                score = processes.of_all(self.evaluate(self.models))[0]
            self._set_modes()
            if self.best is None or score > self.best.score:
                self.best = Best(score, self.step, {name: self.weights(name) for name in self.roles})
        rates = {name: role.optimizer.param_groups[0]["lr"] for name, role in self.roles.items() if role.optimizer}
        means = {name: math.fsum(values) / len(values) for name, values in self._losses.items()}
        self._losses = {name: [] for name in self._losses}
        if self.log:
            log, seconds = self.log, round(self.seconds + seconds, 3)
            line = {"step": self.step, "loss": means, "lr": rates, "score": score, "seconds": seconds}
            processes.by_first(lambda: log.write(line))

    def _set_modes(self) -> None:
        for role in self.roles.values():
            role.model.train(role.optimizer is not None)

    def _save(self) -> None:
        if self.store is None:
            return
        roles = {
            name: {
                "model": dict(role.model.state_dict()),
                "optimizer": role.optimizer.state_dict() if role.optimizer else None,
                "average": self._averages[name].values if name in self._averages else None,
            }
            for name, role in self.roles.items()
        }
        state = {
            "roles": whole(roles),
            "step": self.step,
            "seconds": self.seconds,
            "losses": self._losses,
            "chance": processes.of_all(capture(self._drawn_on)),
            "device": self._drawn_on.type,
            "best": vars(self.best) if self.best else None,
        }
        self.store.save(self.step, state)

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            for name, role in self.roles.items():
                saved = state["roles"][name]
                load_model(role.model, saved["model"])
                if role.optimizer:
                    load_optimizer(role.optimizer, saved["optimizer"])
                if (saved["average"] is None) == (name in self._averages):
                    raise ValueError("one of them has moving averages of weights and the other has none")
                if name in self._averages:
                    self._averages[name].load(saved["average"])
        except (LookupError, RuntimeError, ValueError, TypeError) as error:
            raise UsageError(
                f"the checkpoint is of other roles, models or optimizers than this run: {error}"
            ) from error
        self.step, self.seconds, self._losses = state["step"], state["seconds"], state["losses"]
        self._chance = dict(enumerate(state["chance"])).get(processes.rank(), self._chance)
        self.best = Best(**state["best"]) if state["best"] else None
        if state["device"] != self._drawn_on.type:
            warnings.warn(
                f"the checkpoint was made on {state['device']}, this is {self._drawn_on.type}: the run goes on, but not "
                f"to the same bits",
                CheckpointWarning,
                stacklevel=3,
            )
