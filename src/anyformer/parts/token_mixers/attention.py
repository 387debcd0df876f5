"""Multi-head softmax self-attention (Vaswani et al. 2017, arXiv:1706.03762, section 3.2)."""

from torch import Tensor

from anyformer import core
from anyformer.ops.attention import attention


class Attention(core.TokenMixer, name="attention"):
    """Every token takes a softmax-weighted mean of all tokens' values, in ``heads`` subspaces; eq. 1.

    Tokens have no order here, so any grid is taken as one row of tokens, prefix tokens included. ``ctx.mask`` keeps
    tokens out as keys. Shapes: ``(batch, *grid, dim) -> (batch, *grid, dim)``. Cost: ``4 * dim * heads * head_dim``
    multiply-adds a token for the products, and ``2 * tokens * heads * head_dim`` for the attention: O(tokens^2) in all.
    """

    class Config(core.Config):
        """``scale`` multiplies the logits; it is a number of its own, so that cutting channels does not change it."""

        dim: int = core.bound()
        heads: int
        head_dim: int = core.derived(lambda c: c.dim // c.heads)
        scale: float = core.derived(lambda c: c.head_dim**-0.5)
        qkv: core.Config | None = core.linear()
        proj: core.Config | None = core.linear()

    axes = {
        "qkv.weight": "(q:heads head_dim + k:heads head_dim + v:heads head_dim) dim",
        "proj.weight": "dim (heads head_dim)",
    }
    refuses = {"stream": "every token attends to all others, later ones too"}

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Attend over all tokens."""
        config: Attention.Config = self.config
        tokens = x.flatten(1, -2)
        batch, count, _ = tokens.shape
        qkv = self.qkv(tokens).view(batch, count, 3, config.heads, config.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        keep = None if ctx.mask is None else ctx.mask[:, None, None, :]
        mixed = attention(q, k, v, scale=config.scale, bias=keep)
        return self.proj(mixed.transpose(1, 2).flatten(2)).view(x.shape)

    def scaled(self, scale: Tensor) -> bool:
        """By the last product."""
        return self.proj.scaled(scale)
