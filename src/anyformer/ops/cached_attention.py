"""Attention to what has passed, of which the keys and values are kept: all of them, or a ring of those that are still seen.

Memory is allocated once and written in place; a step of one token reads every key and value once and copies none. What a
mask keeps out is not written, so that a row's cache is what it is without padding.
"""

import torch
from torch import Tensor

from anyformer.core.context import State
from anyformer.core.errors import UsageError
from anyformer.ops.attention import attention
from anyformer.ops.causal_attention import BLOCK, causal_attention, causal_bias, kept_first, ordered, restored
from anyformer.ops.matrix_vector import attend_token, fits

_NEVER = 2**40  # a position that no query reaches


class Cache(State):
    """Keys and values, of which a token that counts stands at the slot of its number in its row.

    In a ring the first ``sinks`` slots are those of the first tokens, and the others are used again and again.
    """

    keys: Tensor
    """(batch, kv_heads, slots, head_dim)."""
    values: Tensor
    """(batch, kv_heads, slots, values)."""
    length: int
    """Tokens that have passed, masked ones included."""
    counts: Tensor | None
    """(batch,): those that count; None where all do."""


def new_cache(
    like: Tensor,
    batch: int,
    kv_heads: int,
    capacity: int,
    head_dim: int,
    *,
    values: int | None = None,
    window: int | None = None,
    sinks: int = 0,
) -> Cache:
    """An empty cache for ``capacity`` tokens, or for the window and the sinks where those are fewer, as ``like`` is stored.

    One as large as window and sinks holds what is seen of a stream of any length.
    """
    slots = capacity if window is None else min(capacity, window + sinks)
    keys = like.new_zeros(batch, kv_heads, slots, head_dim)
    return Cache(keys=keys, values=like.new_zeros(batch, kv_heads, slots, values or head_dim), length=0, counts=None)


def cached_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: Cache,
    *,
    scale: float,
    window: int | None = None,
    sinks: int = 0,
    slopes: Tensor | None = None,
    keep: Tensor | None = None,
) -> tuple[Tensor, Cache]:
    """``causal_attention`` of the next tokens of a stream, however it is cut.

    Args:
        q: (batch, heads, tokens, head_dim).
        k: (batch, kv_heads, tokens, head_dim).
        v: (batch, kv_heads, tokens, values).
        cache: What has passed; it is overwritten.
        scale: As for ``causal_attention``.
        window: As there, and as the cache was made with.
        sinks: Likewise.
        slopes: As there.
        keep: (batch, tokens), boolean, True where a token counts.

    Returns:
        (batch, heads, tokens, values), and the cache with these tokens in it.

    Raises:
        UsageError: The cache has no room for the tokens, masked ones included.
    """
    tokens, slots = q.shape[2], cache.keys.shape[2]
    start, end = cache.length, cache.length + tokens
    if end > slots and (window is None or slots < window + sinks):
        raise UsageError(f"a stream of {end} tokens needs a state of that capacity, not {slots}")
    plain = keep is None and cache.counts is None
    if plain and end <= slots:
        alone = tokens == 1 and slopes is None and (window is None or end <= window)
        if alone and fits(q, k, v, cache.keys, cache.values):
            out = attend_token(q, k, v, cache.keys, cache.values, start, end, scale)
            return out, Cache(cache.keys, cache.values, end, None)
        cache.keys[:, :, start:end] = k
        cache.values[:, :, start:end] = v
        keys, values = cache.keys[:, :, :end], cache.values[:, :, :end]
        out = causal_attention(q, keys, values, scale=scale, window=window, sinks=sinks, slopes=slopes)
        return out, Cache(cache.keys, cache.values, end, None)
    if plain and tokens == 1 and slopes is None:  # everything in a full ring is seen
        slot = sinks + (start - sinks) % (slots - sinks)
        after = Cache(cache.keys, cache.values, end, None)
        if fits(q, k, v, cache.keys, cache.values):
            return attend_token(q, k, v, cache.keys, cache.values, slot, slots, scale), after
        cache.keys[:, :, slot : slot + 1] = k
        cache.values[:, :, slot : slot + 1] = v
        return attention(q, cache.keys, cache.values, scale=scale), after
    counts = q.new_full((1,), start, dtype=torch.int64) if cache.counts is None else cache.counts
    size = min(BLOCK, _turn(slots, sinks))
    keeps = [None] * max(1, -(-tokens // size)) if keep is None else keep.split(size, 1)
    outs = []
    for some_q, some_k, some_v, kept in zip(q.split(size, 2), k.split(size, 2), v.split(size, 2), keeps, strict=True):
        outs.append(_piece(some_q, some_k, some_v, cache, start, counts, scale, window, sinks, slopes, kept))
        start += some_q.shape[2]
        counts = counts + (some_q.shape[2] if kept is None else kept.sum(1))
    return torch.cat(outs, 2), Cache(cache.keys, cache.values, end, None if plain else counts)


def _piece(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: Cache,
    start: int,
    counts: Tensor,
    scale: float,
    window: int | None,
    sinks: int,
    slopes: Tensor | None,
    keep: Tensor | None,
) -> Tensor:
    """A few tokens after ``start``, in rows of which ``counts``, (batch,) or (1,), count: all by their numbers."""
    tokens, slots = q.shape[2], cache.keys.shape[2]
    places = None if keep is None else kept_first(keep)
    if keep is not None and places is not None:
        q, k, v = (ordered(x, places, keep) for x in (q, k, v))
    token = torch.arange(tokens, device=q.device)
    number = counts[:, None] + token
    written = None if keep is None else token < keep.sum(1)[:, None]
    key = _numbers(counts, slots, sinks)[:, : min(start, slots)]
    keys, values = cache.keys, cache.values
    if tokens > 1 and start + tokens > slots:  # what these tokens overwrite, the first of them see
        keys, values = (torch.cat((x[:, :, :start], new), 2) for x, new in ((keys, k), (values, v)))
        new = number if written is None else torch.where(written, number, _NEVER)
        key = torch.cat((key.expand(len(new), -1), new), 1)
    slot = torch.where(number < sinks, number, sinks + (number - sinks) % _turn(slots, sinks))
    _write(cache.keys, k, slot, written)
    _write(cache.values, v, slot, written)
    if keys is cache.keys:
        passed = min(start + tokens, slots)
        after = counts + (tokens if keep is None else keep.sum(1))
        key, keys, values = _numbers(after, slots, sinks)[:, :passed], keys[:, :, :passed], values[:, :, :passed]
    bias = causal_bias(number, key, window=window, sinks=sinks, slopes=slopes, dtype=q.dtype)
    out = attention(q, keys, values, scale=scale, bias=bias)
    return out if keep is None or places is None else restored(out, places, keep)


def _turn(slots: int, sinks: int) -> int:
    """After how many tokens a slot is used again."""
    return max(slots - sinks, 1)


def _numbers(counts: Tensor, slots: int, sinks: int) -> Tensor:
    """The number of the token at each slot, (rows, slots), when ``counts`` have passed; what no query reaches where none."""
    slot, turn = torch.arange(slots, device=counts.device), _turn(slots, sinks)
    passed = counts[:, None]
    number = torch.where(slot < sinks, slot, slot + (passed - 1 - slot) // turn * turn)
    return torch.where((slot <= number) & (number < passed), number, _NEVER)


def _write(cache: Tensor, x: Tensor, slot: Tensor, written: Tensor | None) -> None:
    index = slot[:, None, :, None].expand_as(x)
    if written is not None:
        x = torch.where(written[:, None, :, None], x, cache.gather(2, index))
    cache.scatter_(2, index, x)
