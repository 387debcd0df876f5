"""Causal attention with fewer key and value heads than query heads (GQA, arXiv:2305.13245)."""

import torch
from torch import Tensor

from anyformer import core
from anyformer.ops.cached_attention import Cache, cached_attention, new_cache
from anyformer.ops.causal_attention import causal_attention

POSITIONS = ("query_key_position", "logit_position")


class GroupedQueryAttention(core.TokenMixer, name="grouped_query_attention"):
    """``group`` query heads share one key and value head; tokens attend to themselves and to earlier ones.

    Tokens that ``ctx.mask`` keeps out are no keys, are not counted by the window, and get what zeros are projected to.

    Shapes: ``(batch, tokens, dim)`` to the same. Cost: ``2 * dim * (group + 1) * kv_heads * head_dim`` multiply-adds a
    token for the products, and O(tokens^2) for the attention, O(tokens * (window + sinks)) with a window. State:
    ``2 * kv_heads * head_dim`` numbers for each token of the capacity, or of window and sinks where these are fewer.
    """

    class Config(core.Config):
        """How queries and keys meet.

        ``scale`` multiplies the logits. ``position`` turns queries and keys (slot query-key position) or lowers the logits
        (slot logit position). ``window`` is how many tokens are seen, oneself included, beside the first ``sinks`` ones.
        ``query_norm`` and ``key_norm`` stand before the position, over each head's channels.
        """

        dim: int = core.bound()
        kv_heads: int
        group: int = 1
        head_dim: int = core.derived(lambda c: c.dim // (c.kv_heads * c.group))
        scale: float = core.derived(lambda c: c.head_dim**-0.5)
        window: int | None = None
        sinks: int = 0
        position: core.Config | None = None
        query_norm: core.Config | None = None
        key_norm: core.Config | None = None
        qkv: core.Config = core.linear(bias=False)
        proj: core.Config = core.linear(bias=False)

    axes = {
        "qkv.weight": "(q:kv_heads group head_dim + k:kv_heads head_dim + v:kv_heads head_dim) dim",
        "proj.weight": "dim (kv_heads group head_dim)",
    }

    @classmethod
    def binds(cls, config: Config) -> dict[str, dict[str, str]]:
        """Slopes are those of the query heads; norms run over a head's channels."""
        norms = {"query_norm": {"dim": "head_dim"}, "key_norm": {"dim": "head_dim"}}
        if config.position is not None and config.position.part.slot == "logit_position":
            return {"position": {"heads": "kv_heads group"}, **norms}
        return norms

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.window is not None and config.window < 1:
            raise core.UsageError(f"a window of {config.window} tokens sees nothing; give at least 1, or none")
        if config.sinks < 0:
            raise core.UsageError(f"there cannot be {config.sinks} sinks; give 0 or more")
        slot = None if config.position is None else config.position.part.slot
        if slot not in (None, *POSITIONS):
            raise core.UsageError(f"position must be one of {', '.join(POSITIONS)}, not a {slot}")
        self.turns, self.slopes = (slot == kind for kind in POSITIONS)

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Attend causally over the tokens."""
        mixed = causal_attention(*self._heads(x, ctx), keep=ctx.mask, offsets=ctx.offsets, **self._options(x))
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def init_state(self, batch: int, capacity: int, like: Tensor) -> Cache:
        """An empty cache for ``capacity`` tokens; of a window with its sinks, for streams of any length if these fit in."""
        config: GroupedQueryAttention.Config = self.config
        sizes = batch, config.kv_heads, capacity, config.head_dim
        return new_cache(like, *sizes, window=config.window, sinks=config.sinks)

    def stream(self, x: Tensor, ctx: core.Context, state: Cache) -> tuple[Tensor, Cache]:
        """The next tokens of a stream. Raises UsageError where the state has no room for them."""
        mixed, state = cached_attention(*self._heads(x, ctx), state, keep=ctx.mask, **self._options(x))
        one = x.shape[1] == 1  # then the heads already stand behind one another
        return self.proj(mixed.reshape(*x.shape[:2], -1) if one else mixed.transpose(1, 2).flatten(2)), state

    def _heads(self, x: Tensor, ctx: core.Context) -> tuple[Tensor, Tensor, Tensor]:
        config: GroupedQueryAttention.Config = self.config
        batch, count, _ = x.shape
        queries, keys = config.kv_heads * config.group, config.kv_heads
        heads = self.qkv(x).view(batch, count, queries + 2 * keys, config.head_dim).transpose(1, 2)
        both, v = heads.split_with_sizes((queries + keys, keys), dim=1)
        if self.query_norm is not None or self.key_norm is not None:
            q, k = both.split((queries, keys), dim=1)
            q = q if self.query_norm is None else self.query_norm(q)
            k = k if self.key_norm is None else self.key_norm(k)
            both = torch.cat((q, k), dim=1)
        if self.turns:
            positions = torch.arange(count, device=x.device) if ctx.positions is None else ctx.positions
            both = self.position(both, positions if positions.dim() == 1 else positions[:, None])
        q, k = both.split_with_sizes((queries, keys), dim=1)
        return q, k, v

    def _options(self, x: Tensor) -> dict:
        config: GroupedQueryAttention.Config = self.config
        slopes = self.position(x.dtype) if self.slopes else None
        return {"scale": config.scale, "window": config.window, "sinks": config.sinks, "slopes": slopes}
