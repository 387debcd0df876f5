"""What is to be predicted: from the cells of a table to classes, several labels a picture, or numbers."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from anyformer.core.errors import UsageError, nearest, shown

Kind = Literal["classes", "multilabel", "regression"]
PARTS = ("train", "validation", "test")
SEPARATORS = "|;"  # between the labels of one cell
MORE_SEPARATORS = "|;, "  # where the user has said that there are several
FEW = 20  # different whole numbers at most that are taken for classes
LARGEST = 2**53  # beyond it whole numbers are not kept exactly
MOST_CLASSES = 20_000
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
WHOLE = re.compile(r"[+-]?\d+", re.ASCII)
NOT_A_NAME = ("", "nan", "NaN")  # what programs write where a cell is missing


@dataclass(frozen=True)
class Targets:
    """What is to be predicted of each picture.

    Args:
        kind: Of target.
        values: As ``labels`` of ``ImageSet``.
        names: As ``classes`` of ``ImageSet``.
        note: What was decided, as a sentence.
    """

    kind: Kind
    values: Tensor
    names: tuple[str, ...]
    note: str = ""


def check_kind(kind: str | None) -> None:
    """Raises UsageError where there is no such kind of target."""
    if kind is not None and kind not in get_args(Kind):
        known = get_args(Kind)
        raise UsageError(
            f"there is no kind of target {shown(kind)}; known are {', '.join(known)}{nearest(kind, known)}"
        )


def from_columns(columns: Mapping[str, Sequence[str]], rows: Sequence[int], where: str, kind: Kind | None) -> Targets:
    """The targets in one or several columns of text.

    One column holds a class a row, several labels joined by ``|`` or ``;``, or a number. Whole numbers are classes where
    at most ``FEW`` differ and each occurs three times. Several columns hold 0 and 1 for as many labels, or numbers.

    Args:
        columns: Cells by column.
        rows: The row of each cell, for errors.
        where: The table, for errors.
        kind: What the user says it is; found from the cells when absent.

    Raises:
        UsageError: Cells that are missing or no numbers (counted, the first five named), or nothing to learn.
    """
    if len(columns) > 1:
        return _from_several(columns, rows, where, kind)
    ((column, cells),) = columns.items()
    found = kind or _kind(cells)
    note = f"column {shown(column)} is read as {found}"
    if found == "regression":
        return regression(_numbers(cells, rows, column, where)[:, None], (column,), where, note)
    if found == "multilabel":
        return _joined(cells, rows, column, where, note, MORE_SEPARATORS if kind else SEPARATORS)
    bad = [index for index, cell in enumerate(cells) if cell in NOT_A_NAME]
    if bad:
        _refuse_cells(cells, bad, rows, column, where, "are missing")
    names = sorted(set(cells), key=_order)
    _check_names(names, where)
    places = {name: place for place, name in enumerate(names)}
    return Targets("classes", torch.tensor([places[cell] for cell in cells]), tuple(names), note)


def regression(values: np.ndarray, names: tuple[str, ...], where: str, note: str = "") -> Targets:
    """Numbers ``(n, columns)`` as targets. Raises UsageError where one column does not vary."""
    for name, column in zip(names, values.T, strict=True):
        if len(column) < len(PARTS) or (column == column[0]).all():
            raise UsageError(
                f"{where}: column {shown(name)} has the same number in every row; there is nothing to learn"
            )
    return Targets("regression", torch.from_numpy(values.astype(np.float32)), names, note)


def several(table: np.ndarray, names: tuple[str, ...], where: str, note: str = "") -> Targets:
    """A table ``(n, labels)`` of 0 and 1 as targets. Raises UsageError where a label is on too few pictures."""
    _check_names(names, where)
    for name, with_it in zip(names, table.sum(0), strict=True):
        if min(with_it, len(table) - with_it) < len(PARTS):
            raise UsageError(
                f"{where}: label {shown(name)} is on {int(with_it)} of {len(table)} pictures; it takes at least "
                f"{len(PARTS)} with it and {len(PARTS)} without; add pictures or remove the label"
            )
    return Targets("multilabel", torch.from_numpy(table.astype(np.float32)), names, note)


def check_classes(targets: Targets, given: Tensor | None, where: str) -> None:
    """That every class can be learnt and tested.

    Raises:
        UsageError: There is one class only, one has fewer pictures than parts, or one that is tested is not trained.
    """
    if targets.kind != "classes":
        if given is not None and not (given == 0).any():
            raise UsageError(f"{where} has no picture for training; give some the part train")
        return
    if len(targets.names) < 2:
        raise UsageError(
            f"{where} has {len(targets.names)} classes; classification needs at least two; add pictures of another"
        )
    chosen = targets.values if given is None else targets.values[given == 0]
    with_validation = given is None or not (given == 1).any()
    least = len(PARTS) if given is None else 1 + with_validation
    counts = chosen.bincount(minlength=len(targets.names)).tolist()
    for name, count in zip(targets.names, counts, strict=True):
        if count < least:
            what = "pictures" if given is None else "pictures for training"
            parts = ", ".join(PARTS if given is None else PARTS[:least])
            raise UsageError(
                f"{where}: class {shown(name)} has {count} {what}; it needs at least {least}, one for each of {parts}; "
                "add some or remove the class"
            )


def parts_from(cells: Sequence[str], rows: Sequence[int], column: str, where: str) -> Tensor:
    """Positions in ``PARTS`` ``(n,)`` int8 of the words train, validation (or val) and test. Raises UsageError else."""
    places = {"train": 0, "validation": 1, "val": 1, "test": 2}
    bad = [index for index, cell in enumerate(cells) if cell.lower() not in places]
    if bad:
        _refuse_cells(cells, bad, rows, column, where, "are none of train, validation and test")
    given = torch.tensor([places[cell.lower()] for cell in cells], dtype=torch.int8)
    for part in ("train", "test"):
        if not (given == places[part]).any():
            raise UsageError(f"{where}: column {shown(column)} puts no picture in {part}; put some there or remove it")
    return given


def _from_several(columns: Mapping[str, Sequence[str]], rows: Sequence[int], where: str, kind: Kind | None) -> Targets:
    if kind == "classes":
        raise UsageError(f"{where}: classes stand in one column, not in {len(columns)}; name it with target=")
    names = tuple(columns)
    values = np.stack([_numbers(cells, rows, name, where) for name, cells in columns.items()], axis=1)
    binary = np.isin(values, (0, 1)).all()
    if kind == "multilabel" and not binary:
        row, column = np.argwhere(~np.isin(values, (0, 1)))[0]
        raise UsageError(
            f"{where}, row {rows[row]}: column {shown(names[column])} is {shown(columns[names[column]][row])}; "
            "labels are 0 or 1"
        )
    if binary and kind != "regression":
        return several(values, names, where, f"{len(names)} columns of 0 and 1 are read as multilabel")
    return regression(values, names, where, f"{len(names)} columns of numbers are read as regression")


def _kind(cells: Sequence[str]) -> Kind:
    if any(separator in cell for cell in cells for separator in SEPARATORS):
        return "multilabel"
    numbers = [cell for cell in cells if NUMBER.fullmatch(cell)]
    counts = Counter(numbers)
    few = len(counts) <= FEW and min(counts.values(), default=0) >= len(PARTS)
    if 2 * len(numbers) > len(cells) and not (few and all(map(WHOLE.fullmatch, counts))):
        return "regression"  # cells that are no numbers are refused then
    return "classes"


def _numbers(cells: Sequence[str], rows: Sequence[int], column: str, where: str) -> np.ndarray:
    values = np.array([float(cell) if NUMBER.fullmatch(cell) else np.nan for cell in cells])
    bad = np.flatnonzero(~(np.abs(values) <= LARGEST)).tolist()
    if bad:
        _refuse_cells(cells, bad, rows, column, where, f"are no finite numbers within {LARGEST:.0e}")
    return values


def _refuse_cells(
    cells: Sequence[str], bad: Sequence[int], rows: Sequence[int], column: str, where: str, fault: str
) -> None:
    first = ", ".join(f"row {rows[index]}: {shown(cells[index])}" for index in bad[:5])
    more = f", and {len(bad) - 5:,} more" if len(bad) > 5 else ""
    raise UsageError(
        f"{where}: {len(bad):,} cells of column {shown(column)} {fault} ({first}{more}); correct or remove these rows"
    )


def _joined(cells: Sequence[str], rows: Sequence[int], column: str, where: str, note: str, separators: str) -> Targets:
    separator = next((mark for mark in separators if any(mark in cell for cell in cells)), separators[0])
    lists = [[label.strip() for label in cell.split(separator)] if cell else [] for cell in cells]
    bad = [index for index, labels in enumerate(lists) if any(label in NOT_A_NAME for label in labels)]
    if bad:
        _refuse_cells(cells, bad, rows, column, where, f"have an empty label between {separator!r}")
    names = sorted({label for labels in lists for label in labels}, key=_order)
    if not names:
        raise UsageError(f"{where}: column {shown(column)} has no label in any row; there is nothing to learn")
    _check_names(names, where)
    places = {name: place for place, name in enumerate(names)}
    table = np.zeros((len(cells), len(names)), np.uint8)
    for row, labels in zip(table, lists, strict=True):
        row[[places[label] for label in labels]] = 1
    return several(table, tuple(names), where, f"{note}, labels joined by {separator!r}")


def _check_names(names: Sequence[str], where: str) -> None:
    if len(names) > MOST_CLASSES:
        raise UsageError(
            f"{where} has {len(names):,} different labels; at most {MOST_CLASSES:,}; say kind= for numbers"
        )
    for name in names:
        if not name.isprintable():
            raise UsageError(f"{where}: the label {shown(name)} cannot be printed; rename it")


def _order(name: str) -> tuple[bool, float, str]:
    """Numbers by value before words by letters."""
    number = float(name) if WHOLE.fullmatch(name) and len(name) < 300 else None
    return number is None, number or 0.0, name
