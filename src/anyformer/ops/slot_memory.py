"""Slot memory: a fixed number of key-value slots that forget, read by softmax; alone, or beside a window of tokens.

Source: slots as two passes of gated linear attention with a softmax between them: Zhang et al. 2024, "Gated slot
attention", arXiv:2409.07146; one softmax over slots and a window: Du et al. 2025, "Native hybrid attention",
arXiv:2510.07019. Sections and equations were not at hand; the authors' code was.
"""

import itertools
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from anyformer.ops.linear_attention import linear_attention
from anyformer.ops.packed import checked
from anyformer.ops.segments import Restarts, carry, first_state, in_segments, without_autocast

SlotState = tuple[Tensor, Tensor]
"""The slots' keys, (batch, heads, key, slots), and their values, (batch, heads, slots, value)."""

BLOCK = 256
"""The largest number of queries that are computed together with the keys of all their windows."""


def slot_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    write: Tensor,
    decay: Tensor,
    *,
    beside: Tensor | None = None,
    state: SlotState | None = None,
    offsets: Tensor | None = None,
    chunk: int = 64,
    segment: int = 1024,
) -> tuple[Tensor, Tensor, SlotState]:
    """``keys = keys * exp(decay) + k.T @ write``, ``values`` likewise, then ``softmax(q @ keys) @ values``; token by token.

    Computed chunk by chunk, in which every factor is a product of at most one. A softmax that the slots share with others
    is finished by ``out + others * exp(beside - lse)``. Costs heads * tokens * slots * (2 key + 2 value + chunk) multiply-adds
    and heads * tokens * chunk / 2 * (key + 2 slots + 2 value), with log2(chunk) passes over the scores. Halves of
    precision are computed, and have their state, in float32.

    Args:
        q: (batch, heads, tokens, key), scaled already.
        k: (batch, heads, tokens, key).
        v: (batch, heads, tokens, value).
        write: (batch, heads, tokens, slots), how much of a token each slot takes in.
        decay: (batch, heads, tokens, slots), the logarithm, at most 0, of what a token leaves of each slot before it.
        beside: (batch, heads, tokens), the log-sum-exp of the scores that share the softmax; None is of none.
        state: Before the first token; None is zeros, of which each slot has a score of 0. With offsets the batch is that
            of the sequences.
        offsets: (sequences + 1,), int64, the starts of sequences packed along the tokens of a batch of 1.
        chunk: Tokens in a chunk: a power of two.
        segment: Tokens worked on at a time, a multiple of the chunk.

    Returns:
        What the slots contribute, (batch, heads, tokens, value); the log-sum-exp of all scores, (batch, heads, tokens),
        in float32 at least; the state after the last token.
    """
    keys, values = (None, None) if state is None else state
    scores, keys = _scores(q, k, write, decay, keys, offsets, chunk, segment)
    lse = scores.logsumexp(-1)
    if beside is not None:
        lse = torch.logaddexp(lse, beside)
    weights = (scores - lse[..., None]).exp()
    sizes = {"offsets": offsets, "chunk": chunk, "segment": segment}
    out, values = linear_attention(weights, write, v, decay=decay, state=values, **sizes)
    return out.to(v.dtype), lse, (keys, values)


def _scores(
    q: Tensor,
    k: Tensor,
    write: Tensor,
    decay: Tensor,
    state: Tensor | None,
    offsets: Tensor | None,
    chunk: int,
    segment: int,
) -> tuple[Tensor, Tensor]:
    """Of each query with the slots' keys, (batch, heads, tokens, slots), and the keys after the last token."""
    state = first_state(q, write, state, offsets)
    q, k, write, decay = (x.to(state.dtype) for x in (q, k, write, decay))
    if q.shape[2] == 0:
        return write.clone(), state
    with without_autocast(q):
        if q.shape[2] == 1 and offsets is None:
            state = state * decay.exp() + k.mT * write
            return q @ state, state
        return in_segments(
            _scores_of_chunks, (q, k, write, decay), state, chunk=chunk, segment=segment, offsets=offsets
        )


def _scores_of_chunks(
    q: Tensor, k: Tensor, write: Tensor, decay: Tensor, state: Tensor, restarts: Restarts | None
) -> tuple[Tensor, Tensor]:
    """Blocks, at first of one token, are joined by two until one is left; later queries see what the earlier block wrote.

    Of each token in its block ``since`` is what the tokens from the block's first to it leave of a slot, and ``until`` what
    it writes, as far as its followers leave it; ``whole`` is what the block leaves.
    """
    kept = decay.exp()
    inside, since, until = (q * k).sum(-1, keepdim=True) * write, kept.clone(), write.clone()
    inside, since, until = (x[..., None, :] for x in (inside, since, until))  # (..., blocks, width, slots)
    whole = kept
    for _ in range(q.shape[-2].bit_length() - 1):
        (_, queries), (keys, _) = (x.unflatten(-2, (-1, 2, inside.shape[-2])).unbind(-3) for x in (q, k))
        inside, since, until = (x.unflatten(-3, (-1, 2)) for x in (inside, since, until))
        first, second = (x[..., None, :] for x in whole.unflatten(-2, (-1, 2)).unbind(-2))
        across = queries @ keys.mT @ until.select(-3, 0)
        inside = _changed(inside, 1, partial(torch.addcmul, tensor1=across, tensor2=since.select(-3, 1)))
        since = _changed(since, 1, partial(torch.mul, other=first))
        until = _changed(until, 0, partial(torch.mul, other=second))
        whole = (first * second).squeeze(-2)
    since, until, inside = (x.squeeze(-3) for x in (since, until, inside))
    added = (k.mT @ until).unbind(2)
    left = whole.unbind(2)  # (batch, heads, 1, slots) a chunk
    before, after = carry(lambda n, s: torch.addcmul(added[n], s, left[n]), len(added), state, restarts)
    return torch.addcmul(inside, q @ before, since), after


def _changed(pairs: Tensor, place: int, change: Callable[..., Tensor]) -> Tensor:
    """Join pairs of blocks, (..., 2, width, slots), one of each changed; in its memory where no gradient needs that."""
    block = pairs.select(-3, place)
    if not torch.is_grad_enabled():
        change(block, out=block)
        return pairs.flatten(-3, -2)
    blocks = list(pairs.unbind(-3))
    blocks[place] = change(block)
    return torch.cat(blocks, -2)


def delayed(x: Tensor, tokens: int, offsets: Tensor | None = None) -> Tensor:
    """``x[t - tokens]`` at every ``t`` of its sequence, zeros where there is none: (batch, heads, tokens, channels)."""
    if tokens == 0:
        return x
    if offsets is None:
        missing = min(tokens, x.shape[2])
        return F.pad(x[:, :, : x.shape[2] - missing], (0, 0, missing, 0))
    place = torch.arange(x.shape[2], device=x.device)
    first = offsets[torch.searchsorted(offsets, place, right=True) - 1]
    source = place - tokens
    moved = x.index_select(2, source.clamp(min=0))
    return torch.where((source >= first)[:, None], moved, 0)


def window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    window: int,
    seen: Tensor | None = None,
    offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Softmax attention to the last ``window`` tokens, oneself included, with the log-sum-exp of its scores.

    Costs heads * queries * (window + block) * (key + value) multiply-adds, a block being 64 to 256 queries; memory is linear
    in the tokens.

    Args:
        q: (batch, heads, queries, key), scaled already. The last query stands at the last key.
        k: (batch, heads, keys, key), no fewer than the queries.
        v: (batch, heads, keys, value).
        window: At least 1.
        seen: (batch, keys), boolean, False where a key is seen by nobody but itself; None where all are.
        offsets: (sequences + 1,), int64, the starts of sequences packed along as many queries as keys.

    Returns:
        (batch, heads, queries, value), and (batch, heads, queries) in float32 at least.
    """
    if offsets is not None:
        sizes = [end - start for start, end in itertools.pairwise(checked(offsets, q.shape[2]))]
        pairs = [
            window_attention(*one, window=window) for one in zip(*(x.split(sizes, 2) for x in (q, k, v)), strict=True)
        ]
        outs, lses = zip(*pairs, strict=True)
        return torch.cat(outs, 2), torch.cat(lses, 2)
    queries, before = q.shape[2], k.shape[2] - q.shape[2]
    size = min(BLOCK, max(64, window))
    # Of wide windows the scores of all blocks are many more than the inputs: they are made again for the gradients.
    again = torch.is_grad_enabled() and window > size and queries > size and not torch.compiler.is_exporting()
    pairs = []
    for first in range(0, max(queries, 1), size):
        last = min(first + size, queries)
        low, high = max(before + first - window + 1, 0), before + last
        there = None if seen is None else seen[:, low:high]
        given = q[:, :, first:last], k[:, :, low:high], v[:, :, low:high], there, window
        pairs.append(checkpoint(_piece, *given, use_reentrant=False) if again else _piece(*given))
    outs, lses = zip(*pairs, strict=True)
    return torch.cat(outs, 2), torch.cat(lses, 2)


def _piece(q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, window: int) -> tuple[Tensor, Tensor]:
    key = torch.arange(k.shape[2], device=q.device)
    query = key[k.shape[2] - q.shape[2] :, None]
    visible = (key <= query) & (key > query - window)
    if seen is not None:  # a token sees itself all the same, so that no row is empty
        visible = visible & (seen[:, None, None] | (key == query))
    scores = (q @ k.mT).to(torch.promote_types(q.dtype, torch.float32)).masked_fill(~visible, -torch.inf)
    lse = scores.logsumexp(-1)
    return (scores - lse[..., None]).exp().to(v.dtype) @ v, lse


def reference_slot_memory(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    write: Tensor,
    decay: Tensor,
    *,
    beside: Tensor | None = None,
    state: SlotState | None = None,
) -> tuple[Tensor, Tensor, SlotState]:
    """``slot_memory`` token by token, in the dtype of its inputs."""
    batch, heads, tokens, slots = write.shape
    if state is None:
        state = q.new_zeros(batch, heads, q.shape[3], slots), q.new_zeros(batch, heads, slots, v.shape[3])
    keys, values = state
    outs, lses = [], []
    for t in range(tokens):
        kept = decay[:, :, t].exp()
        keys = kept[:, :, None] * keys + torch.einsum("bhk,bhm->bhkm", k[:, :, t], write[:, :, t])
        values = kept[..., None] * values + torch.einsum("bhm,bhv->bhmv", write[:, :, t], v[:, :, t])
        scores = torch.einsum("bhk,bhkm->bhm", q[:, :, t], keys)
        if beside is not None:  # one more score, whose value is somebody else's
            scores = torch.cat((scores, beside[:, :, t, None]), -1)
        outs.append(torch.einsum("bhm,bhmv->bhv", scores.softmax(-1)[..., :slots], values))
        lses.append(scores.logsumexp(-1))
    if not tokens:
        return torch.zeros_like(v), q.new_zeros(batch, heads, 0), (keys, values)
    return torch.stack(outs, 2), torch.stack(lses, 2), (keys, values)


def reference_window_attention(q: Tensor, k: Tensor, v: Tensor, *, window: int) -> tuple[Tensor, Tensor]:
    """``window_attention`` with all scores at once, those out of sight at minus infinity."""
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k)
    distance = torch.arange(k.shape[2] - q.shape[2], k.shape[2])[:, None] - torch.arange(k.shape[2])
    scores = scores.masked_fill((distance < 0) | (distance >= window), -torch.inf)
    return torch.einsum("bhqk,bhkv->bhqv", scores.softmax(-1), v), scores.logsumexp(-1)
