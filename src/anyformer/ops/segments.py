"""Recurrences computed a segment of chunks at a time, so that what a segment needs stays in cache and is used again.

Memory beyond the inputs and the output is that of one segment: its intermediate results are computed again for the
gradients instead of being kept. Of short sequences they are kept, which saves a quarter of the time.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from anyformer.ops.packed import pack

KEPT = 2**19
"""The largest number of elements, of an operation's first tensor, with which its intermediate results are kept."""

Restarts = tuple[Tensor, Tensor]
"""Of packed sequences: (chunks,), whether each chunk begins its sequence, and the states to begin from, (chunks, ...)."""


def in_segments(
    step: Callable[..., tuple[Tensor, Tensor]],
    tensors: Sequence[Tensor],
    state: Tensor,
    *,
    chunk: int,
    segment: int,
    offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Run a recurrence over all tokens, at least one.

    Args:
        step: ``step(*tensors, state, restarts) -> (out, state)`` of a few chunks: tensors (batch, heads, chunks, chunk, ...),
            out likewise, the state before and after them; with restarts, the states after every chunk, along dimension 2.
            Tokens of zeros must leave the state as it is. ``carry`` does what concerns the state.
        tensors: Each (batch, heads, tokens, ...).
        state: (batch, heads, ...), or (sequences, heads, ...) with offsets.
        chunk: Tokens in a chunk, a power of two; fewer where the tokens are fewer.
        segment: Tokens in a segment, a multiple of the chunk.
        offsets: (sequences + 1,), the starts of packed sequences.

    Returns:
        The outputs, (batch, heads, tokens, ...), and the final state, shaped as the one given. What is computed has the
        state's dtype, the outputs have that of the first tensor.
    """
    packing = restarts = None
    carried = state
    if offsets is not None:
        packing = pack(offsets, tensors[0], chunk)
        tensors = [packing.align(x) for x in tensors]
        restarts = zip(
            packing.first.split(segment // chunk), packing.opening(state).split(segment // chunk), strict=True
        )
        carried = state.new_zeros(1, *state.shape[1:])
    parts = list(zip(*(x.split(segment, 2) for x in tensors), strict=True))
    again = len(parts) > 1 and tensors[0].numel() > KEPT and torch.is_grad_enabled()
    again = again and not torch.compiler.is_exporting()  # which knows no checkpoints
    outs, after = [], []
    for part in parts:
        arguments = step, chunk, part, carried, None if restarts is None else next(restarts)
        if again:
            out, carried = checkpoint(_segment, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            out, carried = _segment(*arguments)
        outs.append(out)
        if packing is not None:
            after.append(carried)
            carried = carried[:, :, -1]
    # heads innermost in memory, as the product that follows wants them
    out = torch.cat([y.transpose(1, 2) for y in outs], 1).transpose(1, 2) if len(outs) > 1 else outs[0]
    if packing is None:
        return out, carried
    return packing.restore(out), packing.final(torch.cat(after, 2)[0].transpose(0, 1), state)


def _segment(
    step: Callable[..., tuple[Tensor, Tensor]],
    chunk: int,
    tensors: Sequence[Tensor],
    state: Tensor,
    restarts: Restarts | None,
) -> tuple[Tensor, Tensor]:
    """One segment, cut into chunks; the last chunk is filled up with zeros."""
    tokens, dtype = tensors[0].shape[2], tensors[0].dtype
    if restarts is None:
        chunk = min(chunk, 1 << (tokens - 1).bit_length())
    missing = -tokens % chunk
    cut = []
    for x in tensors:
        if missing:
            x = F.pad(x, (0, 0) * (x.ndim - 3) + (0, missing))
        cut.append(x.to(state.dtype).contiguous().unflatten(2, (-1, chunk)))
    out, state = step(*cut, state, restarts)
    return out.flatten(2, 3)[:, :, :tokens].to(dtype), state


def carry(
    advance: Callable[[int, Tensor], Tensor], chunks: int, state: Tensor, restarts: Restarts | None
) -> tuple[Tensor, Tensor]:
    """Hand a state from chunk to chunk.

    Args:
        advance: Gives the state after a chunk, from the chunk's number and the state before it.
        chunks: How many there are, at least one.
        state: (batch, heads, ...), before the first.
        restarts: Where sequences begin, and from which states.

    Returns:
        The states before each chunk, (batch, heads, chunks, ...), and what ``in_segments`` wants of its step.
    """
    before, after = [], []
    for number in range(chunks):
        if restarts is not None:
            first, opening = restarts
            state = torch.where(first[number], opening[number], state)
        before.append(state)
        state = advance(number, state)
        after.append(state)
    return torch.stack(before, 2), (state if restarts is None else torch.stack(after, 2))


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """Where autocast is on for the device of ``x``, off: a state that is carried on is no place for rounding."""
    device = x.device.type
    on = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if on else nullcontext()


def first_state(q: Tensor, v: Tensor, state: Tensor | None, offsets: Tensor | None) -> Tensor:
    """The state before the first token: the one given or zeros, in float32 where the values have less.

    Args:
        q: (batch, heads, tokens, key).
        v: (batch, heads, tokens, value).
        state: (batch, heads, key, value), with offsets (sequences, heads, key, value).
        offsets: (sequences + 1,), the starts of packed sequences.

    Returns:
        As state.
    """
    dtype = torch.promote_types(v.dtype, torch.float32)
    if state is not None:
        return state.to(dtype)
    rows = q.shape[0] if offsets is None else len(offsets) - 1
    return q.new_zeros(rows, q.shape[1], q.shape[3], v.shape[3], dtype=dtype)
