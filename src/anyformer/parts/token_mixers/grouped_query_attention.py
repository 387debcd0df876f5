"""Causal attention with fewer key and value heads than query heads (GQA, arXiv:2305.13245)."""

import torch
from torch import Tensor

from anyformer import core
from anyformer.ops.attention import attention


class GroupedQueryAttention(core.TokenMixer, name="grouped_query_attention"):
    """``group`` query heads share one key and value head; tokens attend to themselves and to earlier ones.

    ``ctx.mask`` keeps tokens out as keys; a token that sees none gets zeros.

    Shapes: ``(batch, tokens, dim)`` to the same. Cost: ``2 * dim * (group + 1) * kv_heads * head_dim`` multiply-adds a
    token for the products, and O(tokens^2) for the attention. State: ``2 * kv_heads * head_dim`` numbers a token.
    """

    class Config(core.Config):
        """``position`` turns queries and keys; ``scale`` multiplies the logits."""

        dim: int = core.bound()
        kv_heads: int
        group: int = 1
        head_dim: int = core.derived(lambda c: c.dim // (c.kv_heads * c.group))
        scale: float = core.derived(lambda c: c.head_dim**-0.5)
        position: core.Config | None = None
        qkv: core.Config = core.linear(bias=False)
        proj: core.Config = core.linear(bias=False)

    axes = {
        "qkv.weight": "(q:kv_heads group head_dim + k:kv_heads head_dim + v:kv_heads head_dim) dim",
        "proj.weight": "dim (kv_heads group head_dim)",
    }

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Attend causally over the tokens."""
        config: GroupedQueryAttention.Config = self.config
        batch, count, _ = x.shape
        roles = (config.kv_heads * config.group, config.kv_heads, config.kv_heads)
        heads = self.qkv(x).view(batch, count, sum(roles), config.head_dim).transpose(1, 2)
        q, k, v = heads.split(roles, dim=1)
        if self.position is not None:
            positions = torch.arange(count, device=x.device) if ctx.positions is None else ctx.positions[:, None]
            q, k = self.position(q, positions), self.position(k, positions)
        keep = None if ctx.mask is None else ctx.mask[:, None, None, :]
        mixed = attention(q, k, v, scale=config.scale, bias=keep, causal=True)
        return self.proj(mixed.transpose(1, 2).flatten(2))
