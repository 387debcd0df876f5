"""Causal attention inside blocks that do not overlap: of a stream, no more than one block is ever kept.

Blocks are counted from the start of each sequence, over the tokens that count. They are folded into the heads, so that
nothing is computed between blocks. Source: Qin et al. 2022, "The devil in linear transformer" (arXiv:2210.10340), where
weights are a softmax or rectified products; rectified: Zhang et al. 2021, "Sparse attention with linear units".
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer.core.context import State
from anyformer.ops.attention import attention
from anyformer.ops.packed import pack

Weights = Literal["softmax", "relu"]


class Places(NamedTuple):
    """Where tokens stand in a row of blocks, a sequence's first one at the start of a block unless a stream goes on."""

    place: Tensor
    """(batch or 1, tokens), int64; of tokens that do not count, one that means nothing."""
    blocks: int
    """How many blocks there is room for."""
    straight: bool
    """Whether all tokens count, and stand at 0, 1, 2, ..."""


class BlockState(State):
    """The last block of a stream while it is not full, zeros behind what is in it.

    Attributes:
        keys: (batch, heads, block, key).
        values: (batch, heads, block, value).
        count: (batch,), int64, the tokens in it, fewer than a block.
    """

    keys: Tensor
    values: Tensor
    count: Tensor


def new_block(like: Tensor, batch: int, heads: int, block: int, key: int, value: int) -> BlockState:
    """An empty block, stored as ``like`` is."""
    return BlockState(
        keys=like.new_zeros(batch, heads, block, key),
        values=like.new_zeros(batch, heads, block, value),
        count=like.new_zeros(batch, dtype=torch.int64),
    )


def places_of(
    x: Tensor,
    block: int,
    *,
    state: BlockState | None = None,
    keep: Tensor | None = None,
    offsets: Tensor | None = None,
) -> Places:
    """The places of the tokens of ``x``, (batch, heads, tokens, ...); the other arguments as for ``block_attention``.

    Raises:
        UsageError: Packed tokens stand in a batch other than 1, or the offsets do not rise from 0 to their number.
    """
    tokens = x.shape[2]
    number = torch.arange(tokens, device=x.device)
    if offsets is not None:
        packing = pack(offsets, x, block)
        place = packing.places[None]
        if keep is not None:
            skipped = (~keep).long().cumsum(1) - (~keep).long()
            begins = offsets[torch.searchsorted(offsets, number, right=True) - 1]
            place = place - (skipped - skipped[:, begins])
        return Places(place, len(packing.first), False)
    rank = number[None] if keep is None else (keep.long().cumsum(1) - 1).clamp(min=0)
    if state is None:
        return Places(rank, -(-tokens // block), keep is None)
    return Places(state.count[:, None] + rank, -(-(tokens + block - 1) // block), False)


def block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    places: Places,
    *,
    scale: float,
    block: int,
    weights: Weights = "softmax",
    keep: Tensor | None = None,
) -> Tensor:
    """Attention of every token to itself and to the earlier ones of its block.

    Weights are ``softmax(scale * q @ k.T)``, or ``relu(scale * q @ k.T)`` without a normaliser. Tokens that are not kept
    reach nobody and get zeros. Costs batch * heads * tokens * block * (key + value) multiply-adds, in whole blocks, and
    memory linear in the tokens.

    Args:
        q: (batch, heads, tokens, key).
        k: (batch, heads, tokens, key).
        v: (batch, heads, tokens, value).
        places: Those of the tokens, from ``places_of``, with the same block and the same keep.
        scale: Factor of the products, usually key ** -0.5.
        block: Tokens in a block.
        weights: What is made of the products.
        keep: (batch, tokens), boolean, True where a token counts.

    Returns:
        (batch, heads, tokens, value).
    """
    tokens = q.shape[2]
    if tokens == 0:
        return v.clone()
    if places.straight:
        size = min(block, tokens)
        q, k, v = (F.pad(x, (0, 0, 0, -tokens % size)) for x in (q, k, v))
        return _in_blocks(q, k, v, scale, size, weights)[:, :, :tokens]
    index, room = _index(q, places, block, keep), places.blocks * block
    q, k, v = (_laid(x, index, x.new_zeros(*x.shape[:2], room, x.shape[3])) for x in (q, k, v))
    return _taken(_in_blocks(q, k, v, scale, block, weights), index)


def streamed_block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    places: Places,
    state: BlockState,
    *,
    scale: float,
    weights: Weights = "softmax",
    keep: Tensor | None = None,
) -> tuple[Tensor, BlockState]:
    """``block_attention`` of the next tokens of a stream, however it is cut.

    Args:
        q: As there, and so are k, v, scale, weights and keep.
        k: As there.
        v: As there.
        places: From ``places_of`` with the state.
        state: What the stream has of its block; it is not changed.
        scale: As there.
        weights: As there.
        keep: As there.

    Returns:
        (batch, heads, tokens, value), and the state after these tokens.
    """
    (batch, heads, tokens, _), block = q.shape, state.keys.shape[2]
    if tokens == 0:
        return v.clone(), state
    count = state.count + (tokens if keep is None else keep.sum(1))
    slot = torch.arange(block, device=q.device)
    if tokens == 1:
        index = _index(q, Places(places.place, 1, False), block, keep)
        keys, values = (_laid(x, index, old) for x, old in ((k, state.keys), (v, state.values)))
        seen = (slot <= state.count[:, None])[:, None, None]
        out = _weighted(q, keys, values, scale, weights, seen)
        out = out if keep is None else out.masked_fill(~keep[:, None, :, None], 0.0)
        first = torch.zeros_like(count)
    else:
        room = places.blocks * block
        index = _index(q, places, block, keep)
        rest = (batch, heads, room - block)
        keys, values = (
            _laid(x, index, torch.cat((old, old.new_zeros(*rest, old.shape[3])), 2))
            for x, old in ((k, state.keys), (v, state.values))
        )
        queries = _laid(q, index, q.new_zeros(batch, heads, room, q.shape[3]))
        out = _taken(_in_blocks(queries, keys, values, scale, block, weights), index)
        first = count // block * block
    left = count % block
    kept = (slot < left[:, None])[:, None, :, None]
    source = (first[:, None] + slot).clamp(max=keys.shape[2] - 1)[:, None, :, None].expand(-1, heads, -1, -1)
    keys, values = (x.gather(2, source.expand(-1, -1, -1, x.shape[3])).masked_fill(~kept, 0.0) for x in (keys, values))
    return out, BlockState(keys=keys, values=values, count=left)


def _index(x: Tensor, places: Places, block: int, keep: Tensor | None) -> Tensor:
    """(batch, 1, tokens, 1): the place of each token, behind all blocks where it does not count."""
    place = places.place.expand(len(x), -1)
    if keep is not None:
        place = place.masked_fill(~keep, places.blocks * block)
    return place[:, None, :, None]


def _laid(x: Tensor, index: Tensor, room: Tensor) -> Tensor:
    """The tokens at their places in what is there."""
    room = F.pad(room, (0, 0, 0, 1))  # the place of those that do not count
    return room.scatter(2, index.expand_as(x), x)[:, :, :-1]


def _taken(x: Tensor, index: Tensor) -> Tensor:
    """The inverse of ``_laid``, zeros for what does not count."""
    shape = (*x.shape[:2], index.shape[2], x.shape[3])
    return F.pad(x, (0, 0, 0, 1)).gather(2, index.expand(shape))


def _in_blocks(q: Tensor, k: Tensor, v: Tensor, scale: float, block: int, weights: Weights) -> Tensor:
    """Whole blocks, as if each were a head of its own."""
    heads = q.shape[1]
    q, k, v = (x.unflatten(2, (-1, block)).flatten(1, 2) for x in (q, k, v))
    return _weighted(q, k, v, scale, weights, None).unflatten(1, (heads, -1)).flatten(2, 3)


def _weighted(q: Tensor, k: Tensor, v: Tensor, scale: float, weights: Weights, seen: Tensor | None) -> Tensor:
    """Attention to what is seen, (batch, 1, 1, keys), or to what is not later."""
    if weights == "softmax":
        return attention(q, k, v, scale=scale, bias=seen, causal=seen is None)
    products = F.relu(scale * (q @ k.mT))
    return (products.tril() if seen is None else products.masked_fill(~seen, 0.0)) @ v


def reference_block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    block: int,
    weights: Weights = "softmax",
    keep: Tensor | None = None,
    offsets: Tensor | None = None,
) -> Tensor:
    """``block_attention`` query by query, each with the list of the keys that it sees."""
    starts = [0] if offsets is None else offsets.tolist()
    out = torch.zeros_like(v)
    for row in range(q.shape[0]):
        for query in range(q.shape[2]):
            begin = max(start for start in starts if start <= query)
            past = [key for key in range(begin, query + 1) if keep is None or keep[row, key]]
            if query not in past:
                continue
            seen = past[(len(past) - 1) // block * block :]
            products = scale * torch.einsum("hd,hkd->hk", q[row, :, query], k[row][:, seen])
            chosen = products.softmax(-1) if weights == "softmax" else products.clamp(min=0)
            out[row, :, query] = torch.einsum("hk,hkv->hv", chosen, v[row][:, seen])
    return out
