"""The fixed division of a data set into training, validation and test parts."""

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from anyformer.core.errors import UsageError
from anyformer.data.seeds import derive_seed

PARTS = ("train", "validation", "test")
FRACTIONS = (0.70, 0.15, 0.15)


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
    members: dict[int, list[int]] = defaultdict(list)
    for position, label in enumerate(labels.tolist()):
        members[label].append(position)
    parts: tuple[list[int], ...] = ([], [], [])
    for label, positions in sorted(members.items()):
        positions.sort(key=lambda position: derive_seed(seed, "split", position))
        validation, test = (max(1, math.floor(len(positions) * fraction + 0.5)) for fraction in fractions[1:])
        if validation + test >= len(positions):
            raise UsageError(
                f"class {label} has {len(positions)} pictures, too few for {', '.join(PARTS)} at {tuple(fractions)}"
            )
        parts[0].extend(positions[validation + test :])
        parts[1].extend(positions[:validation])
        parts[2].extend(positions[validation : validation + test])
    return Split(*(torch.tensor(sorted(part), dtype=torch.int64) for part in parts))
