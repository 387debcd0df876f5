"""Attention to earlier tokens of a sequence: all of them, or a window of the last ones and the first few.

Source: windows: Beltagy et al. 2020, "Longformer", section 3.1; the first tokens, which take what attention nobody needs:
Xiao et al. 2024, "Efficient streaming language models with attention sinks", section 3.2, with positions counted in the
text rather than in the cache; slopes: Press et al. 2022, "Train short, test long" (ALiBi), section 3.
"""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from anyformer.ops.attention import attention
from anyformer.ops.packed import checked

BLOCK = 256
"""The largest number of queries that are computed together where not all of them see the same keys."""

_BIAS = 2**21  # numbers of a bias in memory at a time, as far as blocks of 16 queries allow


def causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    window: int | None = None,
    sinks: int = 0,
    slopes: Tensor | None = None,
    keep: Tensor | None = None,
    offsets: Tensor | None = None,
) -> Tensor:
    """Softmax attention of every token to itself and to earlier tokens of its sequence.

    Tokens that are not kept are left out: they reach nobody, windows, sinks and distances do not count them, and they get
    zeros. Costs batch * heads * queries * (window + sinks) * (head_dim + values) multiply-adds, with at most ``BLOCK``
    keys more for each query; memory is linear in the tokens. Packed sequences are computed one after the other.

    Args:
        q: (batch, heads, queries, head_dim). The last query stands at the last key, as in decoding with a cache.
        k: (batch, kv_heads, keys, head_dim), no fewer than the queries; kv_heads divides heads.
        v: (batch, kv_heads, keys, values).
        scale: Factor of the products, usually head_dim ** -0.5.
        window: How many tokens a query sees, itself included; None is all.
        sinks: How many tokens at the start of the sequence are seen all the same.
        slopes: (heads,); slope * distance is taken from each scaled product.
        keep: (batch, tokens), boolean, True where a token counts; there are as many queries as keys.
        offsets: (sequences + 1,), int64, the starts of sequences packed along the tokens of a batch of 1; likewise.

    Returns:
        (batch, heads, queries, values).

    Raises:
        UsageError: The offsets do not rise from 0 to the number of tokens.
    """
    if offsets is not None:
        sizes = [end - start for start, end in itertools.pairwise(checked(offsets, q.shape[2]))]
        keeps = [None] * len(sizes) if keep is None else keep.split(sizes, 1)
        outs = [
            causal_attention(*one, scale=scale, window=window, sinks=sinks, slopes=slopes, keep=kept)
            for *one, kept in zip(*(x.split(sizes, 2) for x in (q, k, v)), keeps, strict=True)
        ]
        return torch.cat(outs, 2)
    if keep is not None:
        places = kept_first(keep)
        q, k, v = (ordered(x, places, keep) for x in (q, k, v))
        out = causal_attention(q, k, v, scale=scale, window=window, sinks=sinks, slopes=slopes)
        return restored(out, places, keep)
    queries, keys = q.shape[2], k.shape[2]
    if window is not None and window >= keys:
        window = None
    if slopes is None and window is None and (queries == keys or queries == 1):
        return attention(q, k, v, scale=scale, causal=True)
    return _in_blocks(q, k, v, scale, window, sinks, slopes)


def kept_first(keep: Tensor) -> Tensor:
    """An order of the tokens of each row, (batch, tokens), in which those kept stand first, in their own order.

    In it, causality alone hides what is not kept.
    """
    return keep.logical_not().argsort(dim=1, stable=True)


def ordered(x: Tensor, places: Tensor, keep: Tensor) -> Tensor:
    """The tokens of (batch, heads, tokens, channels) in that order, zeros in place of those that are not kept."""
    return torch.where(keep[:, None, :, None], x, 0).gather(2, places[:, None, :, None].expand_as(x))


def restored(x: Tensor, places: Tensor, keep: Tensor) -> Tensor:
    """The inverse of ``ordered``."""
    back = x.gather(2, places.argsort(dim=1)[:, None, :, None].expand_as(x))
    return torch.where(keep[:, None, :, None], back, 0)


def causal_bias(
    query: Tensor, key: Tensor, *, window: int | None, sinks: int, slopes: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """Which keys a query sees by their positions, or with slopes what is added to its products with them.

    Args:
        query: (batch, queries), int64.
        key: (batch, keys), int64.
        window: As for ``causal_attention``.
        sinks: As there.
        slopes: As there.
        dtype: That of the result where there are slopes.

    Returns:
        (batch, 1, queries, keys), boolean, or (batch, heads, queries, keys).
    """
    query, key = query[:, None, :, None], key[:, None, None]
    seen = key <= query
    if window is not None:
        seen = seen & ((key > query - window) | (key < sinks))
    if slopes is None:
        return seen
    return (slopes[:, None, None] * (key - query)).masked_fill(~seen, -torch.inf).to(dtype)


def _in_blocks(
    q: Tensor, k: Tensor, v: Tensor, scale: float, window: int | None, sinks: int, slopes: Tensor | None
) -> Tensor:
    """A few queries at a time, with the keys that any of them sees and a bias for those that not all of them do."""
    queries, keys = q.shape[2], k.shape[2]
    before, reach = keys - queries, keys if window is None else window
    size = max(16, min(BLOCK, _BIAS // max(1, reach * (1 if slopes is None else len(slopes)))))
    graded = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    pieced = graded and window is not None and before == 0
    tokens_of_k, tokens_of_v = (_cutter(x, size if pieced else None, sinks) for x in (k, v))

    def bias(first: int, last: int, low: int, always: int) -> Tensor:
        key = torch.arange(low, last, device=q.device)
        key = torch.cat((torch.arange(always, device=q.device), key)) if always else key
        query = torch.arange(first, last, device=q.device)
        return causal_bias(query[None], key[None], window=window, sinks=sinks, slopes=slopes, dtype=q.dtype)

    def unlike(q: Tensor, k: Tensor, v: Tensor, *where: int) -> Tensor:
        return attention(q, k, v, scale=scale, bias=bias(*where))

    # Without a window the biases of all blocks are quadratic in the tokens: they are made again for the gradients. With
    # one, those of most blocks are the same.
    again = graded and window is None and queries > size and not torch.compiler.is_exporting()
    known, outs = ((), None), []
    for part in q.split(size, 2):
        first = before + size * len(outs)
        last = first + part.shape[2]
        low = 0 if window is None else max(first - window + 1, 0)
        low -= low % size if pieced else 0
        where = first, last, low, min(sinks, low)
        tensors = part, tokens_of_k(*where[1:]), tokens_of_v(*where[1:])
        if again:
            outs.append(checkpoint(unlike, *tensors, *where, use_reentrant=False, preserve_rng_state=False))
            continue
        same = last - first, first - low, where[3], low if slopes is not None and where[3] else 0
        if same != known[0]:
            known = same, bias(*where)
        outs.append(attention(*tensors, scale=scale, bias=known[1]))
    return torch.cat(outs, 2)


def _cutter(x: Tensor, size: int | None, sinks: int) -> Callable[[int, int, int], Tensor]:
    """What gives the tokens ``low`` to ``high``, after the first ``always`` ones, of which there are at most ``sinks``.

    With a size, whole pieces of it are put together: a slice would pass back a gradient as long as all tokens.
    """
    start = x[:, :, :sinks]
    pieces = () if size is None else x.split(size, 2)

    def cut(high: int, low: int, always: int) -> Tensor:
        near = [x[:, :, low:high]] if size is None else list(pieces[low // size : -(-high // size)])
        near = [start[:, :, :always], *near] if always else near
        return near[0] if len(near) == 1 else torch.cat(near, 2)

    return cut


def reference_causal_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    window: int | None = None,
    sinks: int = 0,
    slopes: Tensor | None = None,
    keep: Tensor | None = None,
    offsets: Tensor | None = None,
) -> Tensor:
    """``causal_attention`` query by query, each with the list of the keys that it sees."""
    group, before = q.shape[1] // k.shape[1], k.shape[2] - q.shape[2]
    k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    starts = [0] if offsets is None else offsets.tolist()
    rows = []
    for row in range(q.shape[0]):
        out = []
        for query in range(q.shape[2]):
            here = query + before
            past = range(max(start for start in starts if start <= here), here + 1)
            past = [key for key in past if keep is None or keep[row, key]]
            if here not in past:
                out.append(torch.zeros_like(v[row, :, 0]))
                continue
            near = len(past) - (window or len(past))
            seen = [number for number in range(len(past)) if number >= near or number < sinks]
            chosen = [past[number] for number in seen]
            scores = scale * torch.einsum("hd,hkd->hk", q[row, :, query], k[row][:, chosen])
            if slopes is not None:
                distances = [len(past) - 1 - number for number in seen]
                scores = scores - slopes[:, None] * torch.tensor(distances, dtype=scores.dtype)
            out.append(torch.einsum("hk,hkv->hv", scores.softmax(-1), v[row][:, chosen]))
        rows.append(torch.stack(out, 1) if out else v[row, :, :0])
    return torch.stack(rows) if rows else v.new_zeros(*q.shape[:3], v.shape[3])
