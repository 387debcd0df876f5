"""Attention to another sequence, such as an encoder's features (Vaswani et al. 2017, arXiv:1706.03762)."""

from torch import Tensor

from anyformer import core
from anyformer.ops.attention import attention


class Memory(core.State):
    """Keys and values of what is attended to, computed once."""

    keys: Tensor
    """(batch, kv_heads, tokens, head_dim)."""
    values: Tensor
    """(batch, kv_heads, tokens, head_dim)."""
    keep: Tensor | None
    """(batch, tokens): True where a token counts; all do when None."""


class CrossAttention(core.Part, name="cross_attention"):
    """Every token attends to all tokens of ``ctx.memory`` that its mask keeps; no token of its own sequence is a key.

    Shapes: ``(batch, tokens, dim)``, and a memory ``(batch, others, dim)``, to the first. Cost: ``2 * dim * group *
    kv_heads * head_dim`` multiply-adds a token and as many over ``group`` for each token of the memory, and O(tokens *
    others) for the attention.
    """

    slot = "cross_mixer"

    class Config(core.Config):
        """``scale`` multiplies the logits; ``group`` query heads share one key and value head."""

        dim: int = core.bound()
        kv_heads: int = core.derived(lambda c: max(1, c.dim // 64 // c.group))
        group: int = 1
        head_dim: int = core.derived(lambda c: c.dim // (c.kv_heads * c.group))
        scale: float = core.derived(lambda c: c.head_dim**-0.5)
        q: core.Config = core.linear(bias=False)
        kv: core.Config = core.linear(bias=False)
        proj: core.Config = core.linear(bias=False)

    axes = {
        "q.weight": "(kv_heads group head_dim) dim",
        "kv.weight": "(k:kv_heads head_dim + v:kv_heads head_dim) dim",
        "proj.weight": "dim (kv_heads group head_dim)",
    }

    def remember(self, memory: tuple[Tensor, core.Context] | None) -> Memory:
        """The keys and values of features with their context. Raises UsageError where there are none to attend to."""
        if memory is None:
            raise core.UsageError("cross attention has no memory to attend to; it belongs into an encoder_decoder")
        x, keep = memory[0].flatten(1, -2), memory[1].mask
        if keep is not None:  # what is masked may be anything
            x = x.masked_fill(~keep[..., None], 0.0)
        both = self.kv(x).unflatten(-1, (2 * self.config.kv_heads, self.config.head_dim)).transpose(1, 2)
        keys, values = both.chunk(2, dim=1)
        return Memory(keys=keys, values=values, keep=keep)

    def forward(self, x: Tensor, ctx: core.Context, memory: Memory | None = None) -> Tensor:
        """Attend to ``memory``, or to what :meth:`remember` makes of that of the context."""
        memory = self.remember(ctx.memory) if memory is None else memory
        q = self.q(x).unflatten(-1, (-1, self.config.head_dim)).transpose(1, 2)
        keep = None if memory.keep is None else memory.keep[:, None, None]
        mixed = attention(q, memory.keys, memory.values, scale=self.config.scale, bias=keep)
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def scaled(self, scale: Tensor) -> bool:
        """By the last product."""
        return self.proj.scaled(scale)
