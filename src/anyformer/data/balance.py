"""How evenly classes occur: counted, said, and made up for in the loss."""

import torch
from torch import Tensor

from anyformer.core.errors import UsageError
from anyformer.data.targets import Kind

EVEN = 1.5  # the ratio of the largest class to the smallest below which nothing need be said


def counts(labels: Tensor, kind: Kind, classes: int) -> Tensor:
    """Pictures of each class ``(classes,)`` int64, or on which each label is.

    Raises:
        UsageError: The targets are numbers.
    """
    if kind == "regression":
        raise UsageError("numbers have no classes to count; give classes or several labels")
    return labels.bincount(minlength=classes) if kind == "classes" else labels.sum(0).long()


def weights(labels: Tensor, kind: Kind, classes: int, power: float = 1.0) -> Tensor:
    """Weights ``(classes,)`` float32 for the loss, by which rare classes count as much as common ones.

    For classes, the ``weight`` of cross entropy: inverse to the class's count, with mean 1 over the pictures. For several
    labels, the ``pos_weight`` of binary cross entropy: pictures without the label over pictures with it.

    Args:
        labels: Of the training part.
        kind: Of target.
        classes: How many.
        power: 0 weighs all alike, 1 makes up for counts wholly; between them, partly.

    Raises:
        UsageError: The targets are numbers, or a class has no picture.
    """
    found = counts(labels, kind, classes).double()
    if (found == 0).any():
        raise UsageError(f"class {int(found.argmin())} has no picture to be weighed; add some or remove the class")
    if kind == "multilabel":
        return ((len(labels) - found) / found).pow(power).float()
    inverse = found.pow(-power)
    return (inverse * found.sum() / (inverse * found).sum()).float()


def said(labels: Tensor, kind: Kind, names: tuple[str, ...]) -> str:
    """How evenly the classes occur, as a sentence; empty for numbers."""
    if kind == "regression":
        return ""
    found = counts(labels, kind, len(names)).tolist()
    order = sorted(range(len(names)), key=lambda place: found[place])
    rarest, commonest = order[0], order[-1]
    if found[commonest] <= EVEN * max(1, found[rarest]):
        return f"classes are even: {found[rarest]:,} to {found[commonest]:,} pictures each"
    ratio = found[commonest] / max(1, found[rarest])
    return (
        f"classes are uneven: {names[commonest]} has {found[commonest]:,} pictures and {names[rarest]} "
        f"{found[rarest]:,}, {ratio:.3g} times fewer; accuracy alone would favour {names[commonest]}"
    )


def balanced_accuracy(predicted: Tensor, labels: Tensor, classes: int) -> float:
    """The mean over classes that occur of the share of their pictures that are right: ``(n,)`` int64 twice to [0, 1]."""
    right = torch.bincount(labels[predicted == labels], minlength=classes).double()
    all_of = torch.bincount(labels, minlength=classes)
    return (right / all_of)[all_of > 0].mean().item()
