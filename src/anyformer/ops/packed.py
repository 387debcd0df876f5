"""Packed sequences, laid out so that every chunk of tokens belongs to one sequence alone.

A sequence operation works in chunks and hands a state from chunk to chunk. Here each sequence is moved to the start of
a chunk and its last chunk filled up with zeros, which must leave the operation's state as it is; the state is then
replaced where a sequence begins. All shapes follow from shapes, none from the values of the offsets.
"""

import itertools
from typing import NamedTuple

import torch
from torch import Tensor

from anyformer.core.errors import UsageError, shown


class Packing(NamedTuple):
    """Where packed tokens stand among chunks; sequences of no tokens have no chunk.

    There are tokens // chunk + sequences chunks, enough for any offsets; spare ones, all zeros, stand at the end.
    """

    chunk: int
    places: Tensor
    """(tokens,): the place of each token among the aligned ones."""
    sequence: Tensor
    """(chunks,): the sequence of each chunk; of spare ones, the last."""
    first: Tensor
    """(chunks,): whether a chunk begins its sequence."""
    last: Tensor
    """(sequences,): the last chunk of each sequence, of an empty one a chunk of no meaning."""
    empty: Tensor
    """(sequences,): whether a sequence has no tokens."""

    def align(self, x: Tensor, dim: int = 2) -> Tensor:
        """Move the tokens, which stand along ``dim``, to their places among chunks * chunk ones; zeros fill the gaps."""
        shape = list(x.shape)
        shape[dim] = len(self.first) * self.chunk
        return x.new_zeros(shape).index_copy(dim, self.places, x)

    def restore(self, x: Tensor, dim: int = 2) -> Tensor:
        """The inverse of ``align``: (..., chunks * chunk, ...) to (..., tokens, ...)."""
        return x.index_select(dim, self.places)

    def opening(self, state: Tensor) -> Tensor:
        """The states from which chunks begin where they are their sequence's first.

        Args:
            state: (sequences, ...).

        Returns:
            (chunks, ...).
        """
        return state.index_select(0, self.sequence)

    def final(self, after: Tensor, state: Tensor) -> Tensor:
        """The states after each sequence, which after an empty one is that before it.

        Args:
            after: (chunks, ...), the states after each chunk.
            state: (sequences, ...), the states before each sequence.

        Returns:
            (sequences, ...).
        """
        if not len(after):
            return state
        empty = self.empty.view(-1, *[1] * (state.ndim - 1))
        return torch.where(empty, state, after.index_select(0, self.last))


def check_row(batch: int) -> None:
    """Raise UsageError where packed sequences stand in more or less than one row."""
    if batch != 1:
        raise UsageError(f"packed sequences stand in a batch of 1, not of {batch}: lay them along the tokens")


def checked(offsets: Tensor, tokens: int) -> list[int]:
    """Offsets as numbers. Raises UsageError where they do not rise from 0 to the number of tokens."""
    ends = offsets.tolist()
    if not ends or ends[0] != 0 or ends[-1] != tokens or any(end < start for start, end in itertools.pairwise(ends)):
        raise UsageError(
            f"offsets of packed sequences must rise from 0 to the number of tokens, {tokens}, not {shown(ends)}"
        )
    return ends


def pack(offsets: Tensor, x: Tensor, chunk: int, dim: int = 2) -> Packing:
    """Lay sequences out in chunks.

    Args:
        offsets: (sequences + 1,), int64: where each sequence begins, from 0, never falling, the last the number of tokens.
        x: (1, ...), whose tokens along ``dim`` are packed.
        chunk: Tokens in a chunk.
        dim: The axis of the tokens.

    Raises:
        UsageError: Packed tokens stand in a batch other than 1, or the offsets do not rise from 0 to their number (which
            compiled programs take on trust).
    """
    check_row(x.shape[0])
    tokens, sequences = x.shape[dim], len(offsets) - 1
    starts, ends = offsets[:-1], offsets[1:]
    if not torch.compiler.is_compiling():
        checked(offsets, tokens)
    chunks = (ends - starts + chunk - 1) // chunk  # of each sequence
    after = chunks.cumsum(0)
    before = after - chunks
    token = torch.arange(tokens, device=offsets.device)
    owner = torch.searchsorted(ends, token, right=True)
    number = torch.arange(tokens // chunk + sequences, device=offsets.device)
    sequence = torch.searchsorted(after, number, right=True).clamp(max=sequences - 1)
    return Packing(
        chunk=chunk,
        places=before[owner] * chunk + token - starts[owner],
        sequence=sequence,
        first=number == before[sequence],
        last=(after - 1).clamp(min=0),
        empty=chunks == 0,
    )
