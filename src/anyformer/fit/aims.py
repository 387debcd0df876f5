"""What is learnt from pictures: one class of several, any number of labels, or numbers; and how each is scored."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anyformer.data import balance
from anyformer.data.batches import Batch
from anyformer.data.targets import Kind
from anyformer.train.classification import accuracy

POWER = 0.5  # how far the loss makes up for uneven classes: 0 not at all, 1 wholly
MOST_WEIGHT = 10.0
SMOOTHING = 0.1  # of classes (Szegedy et al. 2015, section 7)
THRESHOLD = 0.5  # of belief, from which a label is given
METRICS = {
    "classes": "accuracy",
    "multilabel": "mean average precision",
    "regression": "R\N{SUPERSCRIPT TWO}",
}
TINY = 1e-12


@dataclass(frozen=True)
class Aim:
    """What is to be predicted, and what learning it must know of the training part.

    Attributes:
        kind: ``classes``, ``multilabel`` or ``regression``.
        weights: what the loss of each class, or of having each label, is multiplied by; None where they are balanced.
        center: the mean of each number in training; of regression alone.
        spread: likewise, the standard deviation.
        note: how evenly the classes occur and what was done about it, as a sentence; "" for numbers.
    """

    kind: Kind
    weights: Tensor | None = None
    center: Tensor | None = None
    spread: Tensor | None = None
    note: str = ""

    @property
    def metric(self) -> str:
        """The words for the score, of which more is better and 1 is perfect."""
        return METRICS[self.kind]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean loss of outputs ``(n, k)``: cross entropy, binary cross entropy, or Huber's of standardized numbers."""
        match self.kind:
            case "classes":
                return F.cross_entropy(outputs, targets)
            case "multilabel":
                return F.binary_cross_entropy_with_logits(outputs, targets)
            case _:
                return F.huber_loss(outputs, self.standardized(targets))

    def training_loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss with smoothed classes, and with rare ones weighted up."""
        weights = None if self.weights is None else self.weights.to(outputs.device)
        match self.kind:
            case "classes":
                return F.cross_entropy(outputs, targets, weight=weights, label_smoothing=SMOOTHING)
            case "multilabel":
                return F.binary_cross_entropy_with_logits(outputs, targets, pos_weight=weights)
            case _:
                return self.loss(outputs, targets)

    def score(self, outputs: Tensor, targets: Tensor) -> float:
        """Accuracy, mean average precision, or the mean coefficient of determination."""
        match self.kind:
            case "classes":
                return accuracy(outputs, targets)
            case "multilabel":
                return mean_average_precision(outputs, targets)
            case _:
                return determination(outputs, self.standardized(targets))

    def standardized(self, targets: Tensor) -> Tensor:
        """Numbers as a model gives them: mean 0 and deviation 1 over the training part."""
        assert self.center is not None
        assert self.spread is not None
        return (targets - self.center.to(targets.device)) / self.spread.to(targets.device)

    def description(self) -> dict[str, Any]:
        """What a prediction must know, as JSON values for the model's data configuration."""
        if self.center is None or self.spread is None:
            return {"kind": self.kind}
        return {"kind": self.kind, "center": self.center.tolist(), "spread": self.spread.tolist()}


def aim_of(kind: Kind, targets: Tensor, names: tuple[str, ...]) -> Aim:
    """The aim that follows from the training part.

    Weights are inverse square roots of how common a class or label is: full balance would pay for the rare ones with
    many more mistakes among the common ones.

    Args:
        kind: of target.
        targets: ``labels`` of ``ImageSet``.
        names: of the classes, labels or numbers.
    """
    if kind == "regression":
        return Aim(kind, None, targets.mean(0), targets.std(0, correction=0).clamp(min=TINY))
    said = balance.said(targets, kind, names)
    if kind == "classes" and "uneven" not in said:
        return Aim(kind, note=said)
    weights = balance.weights(targets, kind, len(names), power=POWER).clamp(max=MOST_WEIGHT)
    return Aim(kind, weights, note=f"{said}; the loss weighs them {weights.min():.2f} to {weights.max():.2f}")


@dataclass(frozen=True)
class Learning:
    """The objective of one role, ``student``, for any aim."""

    aim: Aim

    def losses(self, role: str, models: Mapping[str, nn.Module], batch: Batch, step: int) -> Tensor:
        """The mean loss of the batch, a float32 scalar whatever the data type of the outputs."""
        outputs = models[role](batch.images)
        if isinstance(outputs, tuple):  # two heads of a network made for distillation, of which the mean is used
            return torch.stack([self.aim.training_loss(head.float(), batch.labels) for head in outputs]).mean()
        return self.aim.training_loss(outputs.float(), batch.labels)


def mean_average_precision(outputs: Tensor, targets: Tensor) -> float:
    """The mean over labels that occur of the average precision: ``(n, k)`` scores and zeros or ones to [0, 1].

    Average precision is the mean, over the pictures that have a label, of the share of such pictures among all that
    score at least as high. Takes O(k n log n).
    """
    found: list[Tensor] = []
    for scores, truth in zip(outputs.T, (targets > 0).T, strict=True):
        if truth.any():
            ordered, order = scores.sort(descending=True)
            right = truth[order].double().cumsum(0)
            last = ordered.unique_consecutive(return_counts=True)[1].cumsum(0) - 1  # of those that score alike
            gained = right[last].diff(prepend=right.new_zeros(1))
            found.append((gained * right[last] / (last + 1)).sum() / right[-1])
    return torch.stack(found).mean().item() if found else 0.0


def determination(outputs: Tensor, targets: Tensor) -> float:
    """The mean over columns of 1 - squared error / squared deviation from the mean, of ``(n, k)`` each; may be negative."""
    outputs, targets = outputs.double(), targets.double()
    error = (outputs - targets).square().sum(0)
    deviation = (targets - targets.mean(0)).square().sum(0).clamp(min=TINY)
    return (1 - error / deviation).mean().item()
