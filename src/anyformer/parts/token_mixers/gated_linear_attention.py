"""Gated linear attention: a memory of key-value products, each key of which forgets at a pace that the token sets."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.ops.linear_attention import linear_attention
from anyformer.parts.norms.rms_norm import RMSNorm
from anyformer.parts.token_mixers.linear_memory import (
    LinearMemory,
    MemoryState,
    at_least_single,
    counted,
    heads,
    merged,
)


class GatedLinearAttention(LinearMemory, name="gated_linear_attention"):
    """``S = diag(a) S + k v^T``, ``o = S^T q``, with a decay ``a = sigmoid(...)^(1 / normalizer)`` a key and token.

    The decay comes from the token through ``rank`` numbers. Each head's output is normalised, gated and mixed by the last
    product. arXiv:2312.06635, equation 3 and section 4.4. What ``ctx.mask`` keeps out writes nothing and decays nothing.

    Shapes: ``(batch, tokens, dim)`` to the same. Cost: ``dim * (2 heads key + 3 heads value + rank) + rank * heads key``
    multiply-adds a token for the products, and O(heads * key * value) for the memory, which is the state.
    """

    class Config(core.Config):
        """``key`` and ``value`` are the widths of a head; by default keys have half the channels of the model."""

        dim: int = core.bound()
        heads: int
        key: int = core.derived(lambda c: c.dim // (2 * c.heads))
        value: int = core.derived(lambda c: c.dim // c.heads)
        rank: int = 16
        normalizer: float = 16.0
        scale: float = core.derived(lambda c: c.key**-0.5)
        in_proj: core.Config = core.linear(bias=False)
        decay_proj: core.Config = core.linear()
        norm: core.Config = RMSNorm.Config()
        out_proj: core.Config = core.linear(bias=False)

    axes = {
        "in_proj.weight": "(q:heads key + k:heads key + v:heads value + gate:heads value + decay:rank) dim",
        "decay_proj.weight": "(heads key) rank",
        "out_proj.weight": "dim (heads value)",
    }

    @classmethod
    def binds(cls, config: Any) -> dict[str, dict[str, str]]:
        """The norm is that of a head."""
        return {"norm": {"dim": "value"}}

    def mix(self, x: Tensor, ctx: core.Context, state: MemoryState | None) -> tuple[Tensor, MemoryState]:
        """See :class:`~anyformer.parts.token_mixers.linear_memory.LinearMemory`."""
        config: GatedLinearAttention.Config = self.config
        keys, values = config.heads * config.key, config.heads * config.value
        q, k, v, gate, decay = self.in_proj(x).split((keys, keys, values, values, config.rank), dim=-1)
        decay = F.logsigmoid(self.decay_proj(decay).to(at_least_single(x))) / config.normalizer
        q, k, v, decay = (heads(tensor, config.heads) for tensor in (q, k, v, decay))
        k, v, decay = counted(ctx, k, v, decay)
        memory = None if state is None else state.memory
        y, memory = linear_attention(q * config.scale, k, v, decay=decay, state=memory, offsets=ctx.offsets)
        y = merged(self.norm(y)) * F.silu(gate)
        return self.out_proj(y), MemoryState(memory=memory, convolution=None)
