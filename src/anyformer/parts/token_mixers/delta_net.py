"""DeltaNet: before a value is written under a key, what the memory holds under that key is taken away."""

from typing import Any

from torch import Tensor

from anyformer import core
from anyformer.ops.delta_rule import delta_rule
from anyformer.parts.convolutions.causal_convolution import CausalConvolution
from anyformer.parts.norms.rms_norm import RMSNorm
from anyformer.parts.token_mixers.linear_memory import (
    LinearMemory,
    MemoryState,
    at_least_single,
    counted,
    heads,
    merged,
    unit,
)


class DeltaNet(LinearMemory, name="delta_net"):
    """``S = S + beta k (v - S^T k)^T``, ``o = S^T q``, the share ``beta = sigmoid(...)`` being a head's and a token's.

    Queries, keys and values come out of a short convolution with SiLU, queries and keys are then of unit length; each
    head's output is normalised and mixed by the last product. arXiv:2406.06484, sections 2.2 and 3. What ``ctx.mask``
    keeps out enters the convolution as zeros and writes nothing.

    Shapes: ``(batch, tokens, dim)`` to the same. Cost: ``dim * (2 heads key + 2 heads value + heads)`` multiply-adds a
    token for the products, and O(heads * key * value) for the memory, which with the last inputs of the convolution is
    the state.
    """

    class Config(core.Config):
        """``key`` and ``value`` are the widths of a head; ``eps`` is added to the squared length of queries and keys."""

        dim: int = core.bound()
        heads: int
        key: int = core.derived(lambda c: c.dim // c.heads)
        value: int = core.derived(lambda c: c.dim // c.heads)
        scale: float = core.derived(lambda c: c.key**-0.5)
        eps: float = 1e-6
        in_proj: core.Config = core.linear(bias=False)
        convolution: core.Config = CausalConvolution.Config(bias=False)
        norm: core.Config = RMSNorm.Config()
        out_proj: core.Config = core.linear(bias=False)

    axes = {
        "in_proj.weight": "(q:heads key + k:heads key + v:heads value + beta:heads) dim",
        "out_proj.weight": "dim (heads value)",
    }

    @classmethod
    def binds(cls, config: Any) -> dict[str, dict[str, str]]:
        """The convolution runs over queries, keys and values; the norm is that of a head."""
        return {"convolution": {"dim": "q:heads key + k:heads key + v:heads value"}, "norm": {"dim": "value"}}

    def mix(self, x: Tensor, ctx: core.Context, state: MemoryState | None) -> tuple[Tensor, MemoryState]:
        """See :class:`~anyformer.parts.token_mixers.linear_memory.LinearMemory`."""
        config: DeltaNet.Config = self.config
        keys, values = config.heads * config.key, config.heads * config.value
        qkv, beta = self.in_proj(x).split((2 * keys + values, config.heads), dim=-1)
        qkv, convolution = self.convolution(qkv, ctx, None if state is None else state.convolution)
        q, k, v = (heads(tensor, config.heads) for tensor in qkv.split((keys, keys, values), dim=-1))
        beta = beta.to(at_least_single(x)).sigmoid().transpose(1, 2)
        k, v, beta = counted(ctx, unit(k, config.eps), v, beta)
        memory = None if state is None else state.memory
        y, memory = delta_rule(unit(q, config.eps) * config.scale, k, v, beta, state=memory, offsets=ctx.offsets)
        return self.out_proj(merged(self.norm(y))), MemoryState(memory=memory, convolution=convolution)
