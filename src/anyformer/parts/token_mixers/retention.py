"""Multi-scale retention: a memory of key-value products, each head of which forgets at a fixed pace of its own."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.ops.linear_attention import linear_attention
from anyformer.parts.norms.rms_norm import RMSNorm
from anyformer.parts.positions.rotary import Rotary
from anyformer.parts.token_mixers.linear_memory import (
    LinearMemory,
    MemoryState,
    at_least_single,
    counted,
    heads,
    merged,
)


class Retention(LinearMemory, name="retention"):
    """``S = (1 - 2^(-5 - head)) S + k v^T``, ``o = S^T q``, with queries and keys turned by their positions.

    Each head's output is normalised, gated and mixed by the last product. arXiv:2307.08621, equations 6 to 8; the norm is
    of root mean squares with a scale, where the paper has a group norm without one, as in flash-linear-attention. What
    ``ctx.mask`` keeps out writes nothing and decays nothing. The numbers of the heads are stored with the weights,
    because a pruned model keeps the paces of those it kept.

    Shapes: ``(batch, tokens, dim)`` to the same. Cost: ``dim * (2 heads key + 3 heads value)`` multiply-adds a token for
    the products, and O(heads * key * value) for the memory, which is the state.
    """

    class Config(core.Config):
        """``key`` and ``value`` are the widths of a head; by default values have twice the channels of the model."""

        dim: int = core.bound()
        heads: int
        key: int = core.derived(lambda c: c.dim // c.heads)
        value: int = core.derived(lambda c: 2 * c.dim // c.heads)
        scale: float = core.derived(lambda c: c.key**-0.5)
        position: core.Config = Rotary.Config()
        in_proj: core.Config = core.linear(bias=False)
        norm: core.Config = RMSNorm.Config()
        out_proj: core.Config = core.linear(bias=False)

    axes = {
        "in_proj.weight": "(q:heads key + k:heads key + v:heads value + gate:heads value) dim",
        "number": "heads",
        "out_proj.weight": "dim (heads value)",
    }

    @classmethod
    def binds(cls, config: Any) -> dict[str, dict[str, str]]:
        """The norm is that of a head, positions turn its keys."""
        return {"norm": {"dim": "value"}, "position": {"head_dim": "key"}}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.register_buffer("number", torch.arange(config.heads))

    def mix(self, x: Tensor, ctx: core.Context, state: MemoryState | None) -> tuple[Tensor, MemoryState]:
        """See :class:`~anyformer.parts.token_mixers.linear_memory.LinearMemory`."""
        config: Retention.Config = self.config
        keys, values = config.heads * config.key, config.heads * config.value
        turned, v, gate = self.in_proj(x).split((2 * keys, values, values), dim=-1)
        positions = torch.arange(x.shape[1], device=x.device) if ctx.positions is None else ctx.positions
        positions = positions[:, None] if positions.ndim == 2 else positions
        q, k = self.position(heads(turned, 2 * config.heads), positions).chunk(2, dim=1)
        decay = torch.log1p(-torch.exp2(-5.0 - self.number.to(at_least_single(x))))
        k, v, decay = counted(ctx, k, heads(v, config.heads), decay[:, None].expand(len(x), -1, x.shape[1]))
        memory = None if state is None else state.memory
        y, memory = linear_attention(q * config.scale, k, v, decay=decay, state=memory, offsets=ctx.offsets)
        y = merged(self.norm(y)) * F.silu(gate)
        return self.out_proj(y), MemoryState(memory=memory, convolution=None)
