"""More operations of key maps: pieces of different lengths, stacks, tied tensors, and what only our side stores."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Concatenate:
    """Their tensors, of these lengths, one after another along our first dimension, are ours."""

    sizes: tuple[int, ...]

    def forward(self, theirs: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        """Join; nothing where a length differs, which the key map tells with the names."""
        return [torch.cat(theirs)] if tuple(len(tensor) for tensor in theirs) == self.sizes else []

    def backward(self, ours: list[Tensor]) -> list[Tensor]:
        """Split."""
        return list(torch.split_with_sizes(ours[0], self.sizes))


@dataclass(frozen=True)
class Stack:
    """Our tensors, in the order of the row, are the slices of theirs along a first dimension that ours do not have."""

    def forward(self, theirs: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        """Take apart."""
        return list(theirs[0].unbind())

    def backward(self, ours: list[Tensor]) -> list[Tensor]:
        """Stack."""
        return [torch.stack(ours)]


@dataclass(frozen=True)
class Tie:
    """Ours is each of ``count`` tensors of theirs, which are one."""

    count: int = 2

    def forward(self, theirs: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        """The first; nothing where they differ, which the key map tells with the names."""
        return theirs[:1] if all(same(theirs[0], tensor) for tensor in theirs[1:]) else []

    def backward(self, ours: list[Tensor]) -> list[Tensor]:
        """The same tensor every time."""
        return ours * self.count


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors have one shape and the same numbers; those without numbers have."""
    return a.shape == b.shape and (a.is_meta or torch.equal(a, b))


@dataclass(frozen=True)
class Counts:
    """Ours are 0, 1, 2, ...; they store none. Its rows are ``row((), name, Counts())``, a name each."""

    def forward(self, theirs: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        """Count."""
        return [torch.arange(length) for (length,) in shapes]

    def backward(self, ours: list[Tensor]) -> list[Tensor]:
        """Nothing."""
        return []
