"""What an exported model makes of pictures: its score with an interval, where it goes wrong, its worst mistakes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anyformer.data.balance import balanced_accuracy
from anyformer.data.imageset import ImageSet
from anyformer.fit.aims import THRESHOLD, Aim, determination, mean_average_precision
from anyformer.fit.report import Mistake, wilson

WORST = 24  # mistakes that are shown
RESAMPLES = 200  # of the pictures, for the interval of a score that is no proportion


@dataclass(frozen=True)
class Where:
    """What is told of texts that a model got wrong.

    Attributes:
        classes: their names.
        name: of the text at a position.
        text: its beginning.
    """

    classes: tuple[str, ...]
    name: Callable[[int], str]
    text: Callable[[int], str]


@dataclass(frozen=True)
class Scored:
    """A model on one part of the pictures.

    Attributes:
        score: as it stands in ``report.json``: the score, its 95 % interval, the number of pictures.
        confusion: of classes, their names and the matrix, rows the true ones; else None.
        columns: of labels or numbers, one row each; else None.
        mistakes: the worst, worst first.
    """

    score: dict[str, Any]
    confusion: dict[str, Any] | None
    columns: list[dict[str, Any]] | None
    mistakes: list[Mistake]


def scored(aim: Aim, outputs: Tensor, targets: Tensor, pictures: "ImageSet | Where", positions: Tensor) -> Scored:
    """Score outputs ``(n, k)`` against targets.

    Args:
        aim: what was to be predicted.
        outputs: of a model, in the order of ``positions``.
        targets: as in ``ImageSet``, likewise.
        pictures: all of them, or texts.
        positions: of the pictures scored.
    """
    match aim.kind:
        case "classes":
            confusion, columns, mistakes = _classes(outputs, targets, pictures, positions)
        case "multilabel":
            confusion, columns, mistakes = _labels(outputs, targets, pictures, positions)
        case _:
            confusion, columns, mistakes = _numbers(aim, outputs, targets, pictures, positions)
    return Scored(summary(aim, outputs, targets), confusion, columns, mistakes)


def summary(aim: Aim, outputs: Tensor, targets: Tensor) -> dict[str, Any]:
    """The score with its 95 % interval: Wilson's of an accuracy, else by resampling the pictures.

    Of uneven classes also the mean of their accuracies, ``balanced``.
    """
    score, n = aim.score(outputs, targets), len(targets)
    if aim.kind == "classes":
        uneven = {} if aim.weights is None else {"balanced": _balanced(outputs, targets)}
        return {"score": score, "interval": list(wilson(score, n)), "n": n, "accuracy": score, **uneven}
    return {"score": score, "interval": list(_resampled(aim, outputs, targets)), "n": n}


def _balanced(outputs: Tensor, targets: Tensor) -> float:
    return balanced_accuracy(outputs.argmax(dim=1), targets, outputs.shape[1])


def _resampled(aim: Aim, outputs: Tensor, targets: Tensor) -> tuple[float, float]:
    """The percentile interval of the bootstrap (Efron 1979), the same each time."""
    generator = torch.Generator().manual_seed(0)
    n = len(targets)
    draws = [torch.randint(n, (n,), generator=generator) for _ in range(RESAMPLES)]
    scores = sorted(aim.score(outputs[draw], targets[draw]) for draw in draws)
    ends = math.floor(0.025 * RESAMPLES), math.ceil(0.975 * RESAMPLES) - 1
    return scores[ends[0]], scores[ends[1]]


def _classes(
    outputs: Tensor, targets: Tensor, pictures: "ImageSet | Where", positions: Tensor
) -> tuple[dict[str, Any], None, list[Mistake]]:
    best, predicted = outputs.softmax(dim=1).max(dim=1)
    classes = pictures.classes
    matrix = torch.zeros(len(classes), len(classes), dtype=torch.int64)
    matrix.index_put_((targets, predicted), torch.ones_like(targets), accumulate=True)
    wrong = (predicted != targets).nonzero().flatten()
    worst = wrong[best[wrong].argsort(descending=True)][:WORST].tolist()
    mistakes = [
        _mistake(pictures, positions, i, classes[int(targets[i])], classes[int(predicted[i])], float(best[i]))
        for i in worst
    ]
    return {"classes": list(classes), "matrix": matrix.tolist()}, None, mistakes


def _labels(
    outputs: Tensor, targets: Tensor, pictures: "ImageSet | Where", positions: Tensor
) -> tuple[None, list[dict[str, Any]], list[Mistake]]:
    beliefs, truth = outputs.sigmoid(), targets > 0
    given = beliefs >= THRESHOLD
    right, made, there = (given & truth).sum(0), given.sum(0), truth.sum(0)
    columns = [
        {
            "name": name,
            "pictures": int(there[i]),
            "precision": float(right[i] / made[i]) if made[i] else None,
            "recall": float(right[i] / there[i]) if there[i] else None,
            "average precision": mean_average_precision(outputs[:, i : i + 1], targets[:, i : i + 1]),
        }
        for i, name in enumerate(pictures.classes)
    ]
    losses = (beliefs - targets).abs().amax(dim=1)
    wrong = (given != truth).any(dim=1)
    worst = [i for i in losses.argsort(descending=True).tolist() if wrong[i]][:WORST]

    def names(row: Tensor) -> str:
        return ", ".join(name for name, has in zip(pictures.classes, row.tolist(), strict=True) if has) or "none"

    return (
        None,
        columns,
        [_mistake(pictures, positions, i, names(truth[i]), names(given[i]), float(losses[i])) for i in worst],
    )


def _numbers(
    aim: Aim, outputs: Tensor, targets: Tensor, pictures: "ImageSet | Where", positions: Tensor
) -> tuple[None, list[dict[str, Any]], list[Mistake]]:
    assert aim.spread is not None
    assert aim.center is not None
    wanted = aim.standardized(targets)
    errors = (outputs - wanted).abs()
    columns = [
        {
            "name": name,
            "mean error": float((errors[:, i] * aim.spread[i]).mean()),
            "largest error": float((errors[:, i] * aim.spread[i]).max()),
            "deviation": float(targets[:, i].std(correction=0)),
            "R\N{SUPERSCRIPT TWO}": determination(outputs[:, i : i + 1], wanted[:, i : i + 1]),
        }
        for i, name in enumerate(pictures.classes)
    ]
    found = outputs * aim.spread + aim.center
    worst = errors.amax(dim=1).argsort(descending=True)[:WORST].tolist()
    return (
        None,
        columns,
        [
            _mistake(pictures, positions, i, _written(targets[i]), _written(found[i]), float(errors[i].amax()))
            for i in worst
        ],
    )


def _written(numbers: Tensor) -> str:
    return ", ".join(f"{number:.4g}" for number in numbers.tolist())


def _mistake(
    pictures: "ImageSet | Where", positions: Tensor, place: int, label: str, predicted: str, score: float
) -> Mistake:
    position = int(positions[place])
    if isinstance(pictures, Where):
        return Mistake(pictures.name(position), label, predicted, score, text=pictures.text(position))
    image = pictures.part(positions[place : place + 1])[0][:][0]
    return Mistake(file=pictures.where(position), label=label, predicted=predicted, score=score, image=image.numpy())


def imbalance(notes: Sequence[str], aim: Aim) -> list[str]:
    """What the report says of how the data were read and what was done about rare classes."""
    return [*notes, *([aim.note] if aim.note else [])]
