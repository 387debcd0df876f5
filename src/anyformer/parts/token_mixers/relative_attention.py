"""Attention whose logits know how far apart query and key are (T5, arXiv:1910.10683), both ways or causal."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from anyformer import core
from anyformer.ops.attention import attention
from anyformer.parts.positions.relative_bias import RelativeBias

BLOCK = 256  # queries whose biases stand in memory together

AXES = {
    "q.weight": "(kv_heads group head_dim) dim",
    "kv.weight": "(k:kv_heads head_dim + v:kv_heads head_dim) dim",
    "proj.weight": "dim (kv_heads group head_dim)",
}
HEADS = {"position": {"heads": "kv_heads group"}}


class RelativeAttention(core.TokenMixer, name="relative_attention"):
    """Every token attends to all tokens, with a bias for each distance; ``group`` query heads share a key and value head.

    Any grid is taken as one row of tokens. Tokens that ``ctx.mask`` keeps out are no keys. Shapes: ``(batch, *grid, dim)``
    to the same. Cost: ``2 * dim * (group + 1) * kv_heads * head_dim`` multiply-adds a token for the products, and
    O(tokens^2) for the attention; memory is that of the biases of ``BLOCK`` queries where no gradient is asked for.
    """

    class Config(core.Config):
        """``scale`` multiplies the logits, before the bias of ``position`` (slot logit bias) is added."""

        dim: int = core.bound()
        kv_heads: int
        group: int = 1
        head_dim: int = core.derived(lambda c: c.dim // (c.kv_heads * c.group))
        scale: float = core.derived(lambda c: c.head_dim**-0.5)
        position: core.Config = RelativeBias.Config()
        q: core.Config = core.linear(bias=False)
        kv: core.Config = core.linear(bias=False)
        proj: core.Config = core.linear(bias=False)

    axes = AXES
    refuses = {"stream": "every token attends to all others, later ones too"}

    @classmethod
    def binds(cls, config: Any) -> dict[str, dict[str, str]]:
        """Biases are those of the query heads."""
        return HEADS

    def __init__(self, config: Config) -> None:
        _check_position(config.position)
        super().__init__(config)

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Attend over all tokens."""
        tokens = _kept(x.flatten(1, -2), ctx)
        place, seen = _places(tokens, ctx), _seen(tokens, ctx)

        def bias(first: int, last: int) -> Tensor:
            return _hidden(self.position(place[:, first:last], place, x.dtype), seen, first, last)

        mixed = _in_blocks(*_heads(self, tokens), self.config.scale, bias)
        return self.proj(mixed).view(x.shape)

    def scaled(self, scale: Tensor) -> bool:
        """By the last product."""
        return self.proj.scaled(scale)


class RelativeCache(core.State):
    """Keys and values in the order of the stream, with what is known of each token."""

    keys: Tensor
    """(batch, kv_heads, capacity, head_dim)."""
    values: Tensor
    """(batch, kv_heads, capacity, head_dim)."""
    place: Tensor
    """(batch, capacity): positions."""
    keep: Tensor
    """(batch, capacity): True where a token counts."""
    length: int
    """Tokens that have passed, masked ones included."""


class CausalRelativeAttention(core.TokenMixer, name="causal_relative_attention"):
    """Tokens attend to themselves and to earlier ones, with a bias for each distance.

    Tokens that ``ctx.mask`` keeps out are no keys. Shapes: ``(batch, tokens, dim)`` to the same. Cost: as of the one that
    attends both ways. State: ``2 * kv_heads * head_dim`` numbers for each token of the capacity.
    """

    class Config(core.Config):
        """As of the one that attends both ways."""

        dim: int = core.bound()
        kv_heads: int
        group: int = 1
        head_dim: int = core.derived(lambda c: c.dim // (c.kv_heads * c.group))
        scale: float = core.derived(lambda c: c.head_dim**-0.5)
        position: core.Config = RelativeBias.Config(bidirectional=False)
        q: core.Config = core.linear(bias=False)
        kv: core.Config = core.linear(bias=False)
        proj: core.Config = core.linear(bias=False)

    axes = AXES

    @classmethod
    def binds(cls, config: Any) -> dict[str, dict[str, str]]:
        """Biases are those of the query heads."""
        return HEADS

    def __init__(self, config: Config) -> None:
        _check_position(config.position)
        super().__init__(config)

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Attend causally over the tokens."""
        x = _kept(x, ctx)
        place, seen = _places(x, ctx), _seen(x, ctx)
        q, k, v = _heads(self, x)
        return self.proj(self._mixed(q, k, v, place, place, seen))

    def init_state(self, batch: int, capacity: int, like: Tensor) -> RelativeCache:
        """An empty cache for ``capacity`` tokens."""
        config: CausalRelativeAttention.Config = self.config
        keys = like.new_zeros(batch, config.kv_heads, capacity, config.head_dim)
        place = like.new_zeros(batch, capacity, dtype=torch.int64)
        return RelativeCache(
            keys=keys, values=torch.zeros_like(keys), place=place, keep=torch.ones_like(place).bool(), length=0
        )

    def stream(self, x: Tensor, ctx: core.Context, state: RelativeCache) -> tuple[Tensor, RelativeCache]:
        """The next tokens of a stream. Raises UsageError where the state has no room for them."""
        x = _kept(x, ctx)
        q, k, v = _heads(self, x)
        start, end, capacity = state.length, state.length + x.shape[1], state.keys.shape[2]
        if end > capacity:
            raise core.UsageError(f"a stream of {end} tokens needs a state of that capacity, not {capacity}")
        state.keys[:, :, start:end], state.values[:, :, start:end] = k, v
        state.place[:, start:end] = place = _places(x, ctx)
        if ctx.mask is not None:
            state.keep[:, start:end] = ctx.mask
        keys, values, key_place, keep = state.keys[:, :, :end], state.values[:, :, :end], state.place, state.keep
        mixed = self._mixed(q, keys, values, place, key_place[:, :end], keep[:, None, :end])
        return self.proj(mixed), RelativeCache(state.keys, state.values, state.place, state.keep, end)

    def _mixed(self, q: Tensor, k: Tensor, v: Tensor, place: Tensor, key_place: Tensor, seen: Tensor | None) -> Tensor:
        """Of queries that are the last of the tokens of which there are keys."""
        count = k.shape[2]
        before = count - q.shape[2]

        def bias(first: int, last: int) -> Tensor:
            added = self.position(place[:, first:last], key_place, q.dtype)
            earlier = torch.ones(last - first, count, dtype=torch.bool, device=q.device).tril(before + first)
            return _hidden(added.masked_fill(~earlier, -torch.inf), seen, first, last)

        return _in_blocks(q, k, v, self.config.scale, bias)

    def scaled(self, scale: Tensor) -> bool:
        """By the last product."""
        return self.proj.scaled(scale)


def _check_position(position: core.Config) -> None:
    if position.part.slot not in ("logit_bias", "any"):
        raise core.UsageError(f"position must be a logit_bias, such as relative_bias, not a {position.part.slot}")


def _heads(part: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    config = part.config
    q = part.q(x).unflatten(-1, (config.kv_heads * config.group, config.head_dim)).transpose(1, 2)
    both = part.kv(x).unflatten(-1, (2 * config.kv_heads, config.head_dim)).transpose(1, 2)
    k, v = both.chunk(2, dim=1)
    return q, k, v


def _kept(x: Tensor, ctx: core.Context) -> Tensor:
    """Zeros in place of what is masked, which may be anything."""
    return x if ctx.mask is None else x.masked_fill(~ctx.mask[..., None], 0.0)


def _places(x: Tensor, ctx: core.Context) -> Tensor:
    """The positions of the tokens, (batch or 1, tokens)."""
    places = torch.arange(x.shape[1], device=x.device) if ctx.positions is None else ctx.positions
    return places[None] if places.dim() == 1 else places


def _seen(x: Tensor, ctx: core.Context) -> Tensor | None:
    """Which keys are seen from a query for all that is known of masks and sequences: (batch or 1, 1 or queries, keys)."""
    seen = None if ctx.mask is None else ctx.mask[:, None]
    if ctx.offsets is None:
        return seen
    sequence = torch.searchsorted(ctx.offsets, torch.arange(x.shape[1], device=x.device), right=True)
    same = (sequence[:, None] == sequence)[None]
    return same if seen is None else same & seen


def _hidden(bias: Tensor, seen: Tensor | None, first: int, last: int) -> Tensor:
    if seen is None:
        return bias
    return bias.masked_fill(~(seen if seen.shape[1] == 1 else seen[:, first:last])[:, None], -torch.inf)


def _in_blocks(q: Tensor, k: Tensor, v: Tensor, scale: float, bias: Callable[[int, int], Tensor]) -> Tensor:
    """What all queries take, (batch, queries, channels), with the biases of a few of them at a time."""
    outs, first = [], 0
    for part in q.split(BLOCK, 2):
        last = first + part.shape[2]
        outs.append(attention(part, k, v, scale=scale, bias=bias(first, last)))
        first = last
    return torch.cat(outs, 2).transpose(1, 2).flatten(2)
