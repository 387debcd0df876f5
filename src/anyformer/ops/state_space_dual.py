"""State space duality: a selective scan whose decay is one number a head is linear attention, chunk by chunk.

``h_t = exp(step_t a) h_{t-1} + step_t x_t b_t.T``, ``y_t = h_t c_t + d x_t``, for each head, whose ``h`` is (p, n).
Source: Dao and Gu 2024, "Transformers are SSMs", section 6. What differs from ``linear_attention`` is that the heads of a
group share ``b`` and ``c``: their products are formed once a group, and heads stand beside each other in the products
with the states.
"""

import functools

import torch
from torch import Tensor

from anyformer.core.errors import UsageError
from anyformer.ops.diagonal_scan import check_shapes, library, scan
from anyformer.ops.linear_attention import pairwise_decays
from anyformer.ops.packed import check_row
from anyformer.ops.segments import Restarts, carry, in_segments, without_autocast


def state_space_dual(
    x: Tensor,
    step: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    *,
    d: Tensor | None = None,
    state: Tensor | None = None,
    offsets: Tensor | None = None,
    chunk: int = 64,
    segment: int = 1024,
) -> tuple[Tensor, Tensor]:
    """Scan the tokens from a state, in float32 at least.

    Costs tokens * (groups * chunk * n + heads * p * (chunk + 2 n)) multiply-adds, and memory like the inputs'.

    Args:
        x: (batch, tokens, heads, p).
        step: (batch, tokens, heads), not negative: how much of each token enters the state.
        a: (heads,), not positive: the rates of decay.
        b: (batch, tokens, groups, n), how a token enters the state; groups divides heads, each serving neighbouring ones.
        c: (batch, tokens, groups, n), how the state is read.
        d: (heads,), the share of the input that goes straight to the output.
        state: (batch, heads, p, n), zeros when None.
        offsets: (sequences + 1,) int64, where sequences packed along the tokens of one row start, and the last ends;
            the states are then (sequences, heads, p, n).
        chunk: Tokens within which products of b and c are formed: a power of two.
        segment: Tokens worked on at a time, a multiple of the chunk.

    Returns:
        Outputs like x, and the state after the last token, of float32 at least.

    Raises:
        UsageError: The groups do not divide the heads, or packed sequences do not stand in a batch of 1.
    """
    (batch, tokens, heads, p), (groups, n) = x.shape, b.shape[2:]
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in (x, step, a, b, c)), torch.float32)
    sequences = batch if offsets is None else len(offsets) - 1
    if state is None:
        state = torch.zeros(sequences, heads, p, n, device=x.device, dtype=dtype)
    if d is None:
        d = x.new_zeros(heads)
    if heads % groups:
        raise UsageError(f"state_space_dual cannot share {groups} groups of b and c among {heads} heads evenly")
    per_token = (batch, tokens, groups, n)
    check_shapes(
        "state_space_dual",
        {"step": step, "a": a, "b": b, "c": c, "d": d, "state": state},
        (tuple(x.shape[:3]), (heads,), per_token, per_token, (heads,), (sequences, heads, p, n)),
    )
    if offsets is not None:
        check_row(batch)
    x_, step, a, b, c, d, state = (tensor.to(dtype) for tensor in (x, step, a, b, c, d, state))
    with without_autocast(x):
        if tokens == 1 and offsets is None:
            y, last = _one_token(x_[:, 0], step[:, 0], a, b[:, 0], c[:, 0], d, state)
            y = y[:, None]
        elif not torch.compiler.is_compiling() and library(x_) is not None:
            y, last = _scanned(x_, step, a, b, c, d, state, offsets)
        else:
            y, last = _chunked(x_, step, a, b, c, d, state, offsets, chunk, segment)
    return y.to(x.dtype), last


def _one_token(
    x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    group = x.shape[1] // b.shape[1]
    b, c = (tensor.repeat_interleave(group, dim=1) for tensor in (b, c))
    added = (step[..., None] * x)[..., None] * b[..., None, :]
    state = torch.addcmul(added, torch.exp(step * a)[..., None, None], state)
    return torch.addcmul((state @ c[..., None]).squeeze(-1), d[:, None], x), state


def _scanned(
    x: Tensor, step: Tensor, a: Tensor, b: Tensor, c: Tensor, d: Tensor, state: Tensor, offsets: Tensor | None
) -> tuple[Tensor, Tensor]:
    """In C++, where the recurrence itself is the fastest: every channel of a head has the head's step and rate."""
    batch, tokens, heads, p = x.shape
    if offsets is None:
        offsets = torch.arange(batch + 1) * tokens
    y, state = scan(
        x.reshape(-1, heads * p),
        step.reshape(-1, heads).repeat_interleave(p, dim=1),
        a.repeat_interleave(p)[None],
        b.flatten(0, 1),
        c.flatten(0, 1),
        d.repeat_interleave(p),
        state.flatten(1, 2).mT,
        offsets,
    )
    return y.view(x.shape), state.mT.unflatten(1, (heads, p))


def _chunked(
    x: Tensor,
    step: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    state: Tensor,
    offsets: Tensor | None,
    chunk: int,
    segment: int,
) -> tuple[Tensor, Tensor]:
    """In products of matrices, where the heads of a group stand beside each other."""
    if x.shape[1] == 0:
        return torch.zeros_like(x), state
    groups, p = b.shape[2], x.shape[3]
    split = step.unflatten(2, (groups, -1)).transpose(1, 2), x.unflatten(2, (groups, -1)).flatten(3).transpose(1, 2)
    rates, through = a.view(groups, -1), d.view(groups, -1)

    def step_(steps, x, b, c, h, restarts):
        return _chunks(steps, x, b, c, rates, through, h, restarts)

    h = state.unflatten(1, (groups, -1)).flatten(2, 3).mT
    tensors = *split, b.transpose(1, 2), c.transpose(1, 2)
    y, h = in_segments(step_, tensors, h, chunk=chunk, segment=segment, offsets=offsets)
    return y.transpose(1, 2).reshape(x.shape), h.mT.unflatten(2, (-1, p)).flatten(1, 2)


def _chunks(
    step: Tensor,
    x: Tensor,
    b: Tensor,
    c: Tensor,
    rates: Tensor,
    through: Tensor,
    state: Tensor,
    restarts: Restarts | None,
) -> tuple[Tensor, Tensor]:
    """A few chunks.

    Args:
        step: (batch, groups, chunks, chunk, heads of a group).
        x: (batch, groups, chunks, chunk, heads of a group * p).
        b: (batch, groups, chunks, chunk, n).
        c: (batch, groups, chunks, chunk, n).
        rates: (groups, heads of a group).
        through: (groups, heads of a group), d.
        state: (batch, groups, n, heads of a group * p).
        restarts: As in ``in_segments``.
    """
    heads = step.shape[-1]
    step = step.mT
    decay = step * rates[:, None, :, None]
    weights = pairwise_decays(decay) * step[..., None]  # (..., heads, keys, queries)
    scores = (b @ c.mT).triu()[..., None, :, :] * weights
    scores.diagonal(dim1=-2, dim2=-1).add_(through[:, None, :, None])
    by_token = x.unflatten(-1, (heads, -1))
    since_start = decay.cumsum(-1).exp().mT[..., None]  # (..., chunk, heads, 1)
    added = (b.mT @ (by_token * weights[..., -1].mT[..., None]).flatten(-2)).unbind(2)
    whole = since_start[..., -1:, :, :].expand(*since_start.shape[:-3], 1, *by_token.shape[-2:]).flatten(-2).unbind(2)
    before, after = carry(lambda i, s: torch.addcmul(added[i], s, whole[i]), len(added), state, restarts)
    y = (c @ before).unflatten(-1, (heads, -1)) * since_start
    y += (scores.mT @ by_token.transpose(-2, -3)).transpose(-2, -3)
    return y.flatten(-2), after


def reference_state_space_dual(
    x: Tensor,
    step: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    *,
    d: Tensor | None = None,
    state: Tensor | None = None,
    offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same, token by token; see ``state_space_dual`` for the shapes."""
    batch, tokens, heads, p = x.shape
    group = heads // b.shape[2]
    ends = [0, tokens] if offsets is None else offsets.tolist()
    rows = batch if offsets is None else len(ends) - 1
    states = torch.zeros(rows, heads, p, b.shape[3], dtype=x.dtype) if state is None else state
    out, after = [x[:, :0]], []
    for i in range(len(ends) - 1):
        h = states if offsets is None else states[i : i + 1]
        for t in range(ends[i], ends[i + 1]):
            enters, reads = (each[:, t].repeat_interleave(group, dim=1) for each in (b, c))
            added = torch.einsum("bh,bhp,bhn->bhpn", step[:, t], x[:, t], enters)
            h = torch.exp(step[:, t] * a)[..., None, None] * h + added
            y = torch.einsum("bhpn,bhn->bhp", h, reads)
            out.append((y if d is None else y + d[:, None] * x[:, t])[:, None])
        after.append(h)
    return torch.cat(out, dim=1), torch.cat(after) if after else states
