"""The training loop: roles, each with a model, stepped in turn on every batch, and resumable to the same bits."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.data.seeds import derive_seed
from anyformer.train.chance import capture, preserved, restore, seeded
from anyformer.train.checkpoint import Checkpoints
from anyformer.train.log import Log
from anyformer.train.signals import deferred_signals


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
    """The best evaluation so far and the models' state dicts at that step."""

    score: float
    step: int
    weights: dict[str, dict[str, Tensor]]


class Trainer:
    """A run: its roles, where it stands, and what it has found.

    A run is a pure function of its arguments. It has random states of its own, so that runs may take turns in one
    process; with ``store`` it goes on from the newest good checkpoint, to the same bits as if never stopped.

    Args:
        roles: By name, stepped in this order.
        objective: What they are to reach.
        batches: From the step, counted from 0, to its batch; a pure function.
        seed: Of dropout and all else that models draw.
        clip: Largest norm of a role's gradient.
        bf16: Whether losses are computed under bfloat16 autocast; parameters and optimizers stay as they are.
        every: Steps between evaluations, each with a line in the log.
        evaluate: From the models, in evaluation mode, to a score where more is better.
        store: Where checkpoints go; held by the caller.
        save_every: Steps between checkpoints, besides the one at the end of each ``run``.
        log: Where lines of step, mean loss and learning rate by role, score and seconds go.
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
        every: int = 100,
        evaluate: Callable[[Mapping[str, nn.Module]], float] | None = None,
        store: Checkpoints | None = None,
        save_every: int = 1000,
        log: Log | None = None,
    ):
        self.roles, self.objective, self.batches = roles, objective, batches
        self.clip, self.bf16, self.every, self.evaluate = clip, bf16, every, evaluate
        self.store, self.save_every, self.log = store, save_every, log
        self.models = {name: role.model for name, role in roles.items()}
        self.step, self.seconds = 0, 0.0
        self.best: Best | None = None
        self._chance = seeded(derive_seed(seed, "models"))
        self._losses: dict[str, list[float]] = {name: [] for name, role in roles.items() if role.optimizer}
        for role in roles.values():
            for group in role.optimizer.param_groups if role.optimizer else ():
                group.setdefault("initial_lr", group["lr"])
        saved = store.load() if store else None
        if saved is not None:
            self._restore(saved[1])
        if log:
            log.forget_after(self.step)

    def run(
        self,
        steps: int,
        should_stop: Callable[[], bool] = lambda: False,
        progress: Callable[[int, dict[str, float]], None] = lambda step, losses: None,
    ) -> Literal["steps", "stopped"]:
        """Trains until ``steps`` steps are done in all, or until ``should_stop()``; says which.

        Args:
            steps: Counted from the very start of the run.
            should_stop: Asked before every step; a deadline, say.
            progress: Told after every step the steps done and the losses by role.

        Raises:
            AnyformerError: A loss or gradient is not finite, or a file cannot be written.
            KeyboardInterrupt: After Ctrl-C, when the step is finished and saved.
            SystemExit: After SIGTERM, likewise, with code 143.
        """
        with deferred_signals() as signals, preserved():
            restore(self._chance)
            self._set_modes()
            while self.step < steps and signals.received is None and not should_stop():
                started = time.monotonic()
                losses = self._advance()
                if self.step % self.every == 0:
                    self._report(time.monotonic() - started)
                self.seconds += time.monotonic() - started
                progress(self.step, losses)
                if self.step % self.save_every == 0:
                    self._save()
            self._chance = capture()
            self._save()
        signals.deliver()
        return "steps" if self.step >= steps else "stopped"

    def _advance(self) -> dict[str, float]:
        """One batch: every role that has an optimizer, in order; gives their losses."""
        batch = self.batches(self.step)
        losses = {}
        for name, role in self.roles.items():
            if role.optimizer is None:
                continue
            groups = role.optimizer.param_groups
            parameters = [parameter for group in groups for parameter in group["params"] if parameter.requires_grad]
            with torch.autocast(parameters[0].device.type, torch.bfloat16, enabled=self.bf16):
                loss = self.objective.losses(name, self.models, batch, self.step)
            role.optimizer.zero_grad()
            loss.backward(inputs=parameters)  # the other roles' gradients are neither needed nor disturbed
            norm = nn.utils.clip_grad_norm_(parameters, self.clip)
            value = loss.item()
            if not math.isfinite(value) or not math.isfinite(norm.item()):
                raise AnyformerError(
                    f"the loss of the {name} is {value:g} and its gradient {norm.item():g} at step {self.step}; lower "
                    f"the learning rate"
                )
            factor = role.schedule(self.step)
            for group in groups:
                group["lr"] = group["initial_lr"] * factor
            role.optimizer.step()
            losses[name] = value
            self._losses[name].append(value)
        self.step += 1
        return losses

    def _report(self, seconds: float) -> None:
        """Evaluates, keeps the best, writes a line and begins a new mean of losses."""
        score = None
        if self.evaluate:
            for model in self.models.values():
                model.eval()
            score = self.evaluate(self.models)
            self._set_modes()
            if self.best is None or score > self.best.score:
                weights = {
                    name: {key: value.detach().clone() for key, value in model.state_dict().items()}
                    for name, model in self.models.items()
                }
                self.best = Best(score, self.step, weights)
        rates = {name: role.optimizer.param_groups[0]["lr"] for name, role in self.roles.items() if role.optimizer}
        means = {name: math.fsum(values) / len(values) for name, values in self._losses.items()}
        self._losses = {name: [] for name in self._losses}
        if self.log:
            seconds = round(self.seconds + seconds, 3)
            self.log.write({"step": self.step, "loss": means, "lr": rates, "score": score, "seconds": seconds})

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
            }
            for name, role in self.roles.items()
        }
        state = {
            "roles": roles,
            "step": self.step,
            "seconds": self.seconds,
            "losses": self._losses,
            "chance": capture(),
            "best": vars(self.best) if self.best else None,
        }
        self.store.save(self.step, state)

    def _restore(self, state: dict[str, Any]) -> None:
        try:
            for name, role in self.roles.items():
                saved = state["roles"][name]
                role.model.load_state_dict(saved["model"], strict=True)
                if role.optimizer:
                    role.optimizer.load_state_dict(saved["optimizer"])
        except (LookupError, RuntimeError, ValueError) as error:
            raise UsageError(
                f"the checkpoint is of other roles, models or optimizers than this run: {error}"
            ) from error
        self.step, self.seconds, self._losses = state["step"], state["seconds"], state["losses"]
        self._chance = state["chance"]
        self.best = Best(**state["best"]) if state["best"] else None
