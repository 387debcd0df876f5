"""The fixed division of a data set into training, validation and test parts."""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from anyformer.core.errors import UsageError
from anyformer.data.seeds import derive_seed
from anyformer.data.targets import PARTS, Kind

FRACTIONS = (0.70, 0.15, 0.15)
BIN = 20  # pictures of neighbouring targets that are divided alike, in regression
BINS = 50  # at most


@dataclass(frozen=True)
class Split:
    """Which pictures train, which choose and which test; each an ascending ``(count,)`` int64 of positions."""

    train: Tensor
    validation: Tensor
    test: Tensor

    def digest(self) -> str:
        """SHA-256 of the three parts: equal digests mean the same division."""
        parts = [getattr(self, part).tolist() for part in PARTS]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def split(labels: Tensor, seed: int, fractions: Sequence[float] = FRACTIONS) -> Split:
    """Divides every class alike, and at random by the seed alone.

    Validation and test get ``floor(n * fraction + 1/2)`` of the ``n`` pictures of a class but at least one, training
    gets the rest. The order comes from SHA-256, not from a library's generator, so that a seed means the same division
    on every machine and for ever.

    Args:
        labels: ``(n,)`` int64.
        seed: Names the division.
        fractions: Of training, validation and test; positive, with sum 1.

    Raises:
        UsageError: The fractions are not such, or a class is too small to have one picture in every part.
    """
    if len(fractions) != len(PARTS) or min(fractions) <= 0 or not math.isclose(sum(fractions), 1):
        raise UsageError(f"the fractions of {', '.join(PARTS)} are three positive numbers with sum 1, not {fractions}")
    return _as_split(_by_class(labels, list(range(len(labels))), seed, fractions))


def divide(labels: Tensor, kind: Kind, seed: int, given: Tensor | None = None) -> Split:
    """Divides pictures with any kind of target so that the parts are alike.

    Classes are divided as by ``split``. Numbers are divided within bins of neighbouring values. Several labels a picture
    are stratified iteratively, the rarest first (Sechidis, Tsoumakas and Vlahavas 2011). A test or validation part that
    is given stays as it is; where only the test part is given, validation is taken from training.

    Args:
        labels: As in ``ImageSet``.
        kind: Of target.
        seed: Names the division.
        given: ``(n,)`` int8, positions in ``PARTS``.

    Raises:
        UsageError: There are too few pictures.
    """
    divided = _by_labels if kind == "multilabel" else _by_class
    strata = _bins(labels, seed) if kind == "regression" else labels
    if given is None:
        return _as_split(divided(strata, list(range(len(labels))), seed, FRACTIONS))
    train, validation, test = ((given == part).nonzero().flatten().tolist() for part in range(len(PARTS)))
    if not validation:
        share = FRACTIONS[1] / (FRACTIONS[0] + FRACTIONS[1])
        train, validation = divided(strata, train, seed, (1 - share, share))
    return _as_split((train, validation, test))


def _as_split(parts: Sequence[list[int]]) -> Split:
    return Split(*(torch.tensor(sorted(part), dtype=torch.int64) for part in parts))


def _by_class(labels: Tensor, positions: list[int], seed: int, fractions: Sequence[float]) -> tuple[list[int], ...]:
    """Positions divided by shares, every class alike; the first part gets what the others leave."""
    members: dict[int, list[int]] = defaultdict(list)
    for position in positions:
        members[int(labels[position])].append(position)
    parts: tuple[list[int], ...] = tuple([] for _ in fractions)
    for label, of_class in sorted(members.items()):
        of_class.sort(key=lambda position: derive_seed(seed, "split", position))
        counts = [max(1, math.floor(len(of_class) * fraction + 0.5)) for fraction in fractions[1:]]
        if sum(counts) >= len(of_class):
            names = ", ".join(PARTS[: len(fractions)])
            raise UsageError(f"class {label} has {len(of_class)} pictures, too few for {names} at {tuple(fractions)}")
        start = 0
        for part, count in zip(parts[1:], counts, strict=True):
            part.extend(of_class[start : start + count])
            start += count
        parts[0].extend(of_class[start:])
    return parts


def _bins(numbers: Tensor, seed: int) -> Tensor:
    """Bins ``(n,)`` of equal counts, by the sum of the standardized columns; ties fall at random by the seed."""
    doubles = numbers.double()
    scale = doubles.std(0, correction=0).clamp_min(torch.finfo(torch.float64).tiny)
    totals = ((doubles - doubles.mean(0)) / scale).sum(1).tolist()
    order = sorted(range(len(totals)), key=lambda position: (totals[position], derive_seed(seed, "bin", position)))
    count = min(BINS, max(1, len(order) // BIN))
    bins = torch.empty(len(order), dtype=torch.int64)
    bins[torch.tensor(order)] = torch.arange(len(order)) * count // len(order)
    return bins


def _by_labels(labels: Tensor, positions: list[int], seed: int, fractions: Sequence[float]) -> tuple[list[int], ...]:
    """Iterative stratification: the rarest label left is dealt out first, each picture to the part that lacks it most."""
    order = np.array(sorted(positions, key=lambda position: derive_seed(seed, "split", position)), np.int64)
    table = labels.numpy()[order].astype(np.float64)
    shares = np.array(fractions)
    lacking = shares[:, None] * table.sum(0)  # (parts, labels): pictures of each label that each part should still get
    room = shares * len(order)
    left = np.ones(len(order), bool)
    parts: tuple[list[int], ...] = tuple([] for _ in fractions)
    while left.any():
        counts = table[left].sum(0)
        label = int(np.where(counts, counts, np.inf).argmin()) if counts.any() else None
        for index in np.flatnonzero(left if label is None else left & (table[:, label] > 0)):
            need = room if label is None else lacking[:, label]
            part = int(np.where(need >= need.max() - 1e-9, room, -np.inf).argmax())
            parts[part].append(int(order[index]))
            lacking[part] -= table[index]
            room[part] -= 1
            left[index] = False
    if min(map(len, parts)) == 0:
        raise UsageError(f"{len(order)} pictures are too few for {', '.join(PARTS[: len(fractions)])}; add some")
    return parts
