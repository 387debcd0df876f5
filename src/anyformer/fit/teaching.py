"""Distillation in a fit: the largest candidate beyond the budget is trained first and teaches the finalists."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from anyformer.data.batches import Batch
from anyformer.fit.aims import Aim, Learning
from anyformer.fit.budget import Budget
from anyformer.fit.costs import Costs
from anyformer.fit.plan import LEAST_LESSONS, TEACHER_SHARE, training_seconds
from anyformer.train.distillation import Distillation

SOFT = Distillation(kind="soft", by="class", temperature=3.0, weight=0.5)


@dataclass(frozen=True)
class Teaching:
    """The objective of a student that learns from labels, and from a step on from a teacher, too.

    Attributes:
        aim: what is to be predicted: classes.
        since: the first step with the teacher.
        teacher: gives the trained teacher, in evaluation mode.
    """

    aim: Aim
    since: int
    teacher: Callable[[], nn.Module]

    def losses(self, role: str, models: Mapping[str, nn.Module], batch: Batch, step: int) -> Tensor:
        """The mean loss of the batch, a float32 scalar."""
        if step < self.since:
            return Learning(self.aim).losses(role, models, batch, step)
        return SOFT.losses(role, {**models, "teacher": self.teacher()}, batch, step)


def pick_teacher(costs: Mapping[str, Costs], budget: Budget, minutes: float) -> str | None:
    """The candidate of most multiply-adds beyond the budget whose share of the time is enough to learn something."""
    seconds = TEACHER_SHARE * training_seconds(minutes, costs)
    able = [
        name for name, cost in costs.items() if budget.exceeded(cost) and seconds >= LEAST_LESSONS * cost.step_seconds
    ]
    return max(able, key=lambda name: costs[name].macs, default=None)
