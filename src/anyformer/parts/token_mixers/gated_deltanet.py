"""Gated DeltaNet: the delta rule on a memory that also decays as a whole."""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

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


class GatedDeltaNet(LinearMemory, name="gated_deltanet"):
    """``S' = a S``, ``S = S' + beta k (v - S'^T k)^T``, ``o = S^T q``: DeltaNet with a decay ``a`` a head and token.

    ``a = exp(-rate * softplus(step))``, as in Mamba-2; queries, keys and values are DeltaNet's, and each head's
    output is normalised, gated and mixed by the last product. arXiv:2412.06464, equation 10 and section 3.4. What
    ``ctx.mask`` keeps out enters the convolution as zeros, writes nothing and decays nothing.

    Shapes: ``(batch, tokens, dim)`` to the same. Cost: ``dim * (2 heads key + 3 heads value + 2 heads)`` multiply-adds a
    token for the products, and O(heads * key * value) for the memory, which with the last inputs of the convolution is
    the state.
    """

    class Config(core.Config):
        """``key`` and ``value`` are the widths of a head; ``eps`` is added to the squared length of queries and keys."""

        dim: int = core.bound()
        heads: int
        key: int = core.derived(lambda c: 3 * c.dim // (4 * c.heads))
        value: int = core.derived(lambda c: 2 * c.key)
        scale: float = core.derived(lambda c: c.key**-0.5)
        eps: float = 1e-6
        rates_init: core.Init = core.Init("log_of_uniform", 16.0)
        in_proj: core.Config = core.linear(bias=False)
        step_proj: core.Config = core.linear(bias_init=core.Init("step_bias"))
        convolution: core.Config = CausalConvolution.Config(bias=False)
        norm: core.Config = RMSNorm.Config()
        out_proj: core.Config = core.linear(bias=False)

    axes = {
        "in_proj.weight": "(q:heads key + k:heads key + v:heads value + gate:heads value + beta:heads) dim",
        "step_proj.weight": "heads dim",
        "log_rates": "heads",
        "out_proj.weight": "dim (heads value)",
    }

    @classmethod
    def binds(cls, config: Any) -> dict[str, dict[str, str]]:
        """The convolution runs over queries, keys and values; the norm is that of a head."""
        return {"convolution": {"dim": "q:heads key + k:heads key + v:heads value"}, "norm": {"dim": "value"}}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.log_rates = self.parameter("log_rates", config.rates_init)

    def mix(self, x: Tensor, ctx: core.Context, state: MemoryState | None) -> tuple[Tensor, MemoryState]:
        """See :class:`~anyformer.parts.token_mixers.linear_memory.LinearMemory`."""
        config: GatedDeltaNet.Config = self.config
        count, wide = config.heads, at_least_single(x)
        keys, values = count * config.key, count * config.value
        step = F.softplus(self.step_proj(x).to(wide))
        qkv, gate, beta = self.in_proj(x).split((2 * keys + values, values, count), dim=-1)
        qkv, convolution = self.convolution(qkv, ctx, None if state is None else state.convolution)
        q, k, v = (heads(tensor, count) for tensor in qkv.split((keys, keys, values), dim=-1))
        beta = beta.to(wide).sigmoid().transpose(1, 2)
        decay = -(self.log_rates.to(wide).exp() * step).transpose(1, 2)
        k, v, beta, decay = counted(ctx, unit(k, config.eps), v, beta, decay)
        memory = None if state is None else state.memory
        q = unit(q, config.eps) * config.scale
        y, memory = delta_rule(q, k, v, beta, decay=decay, state=memory, offsets=ctx.offsets)
        y = merged(self.norm(y)) * F.silu(gate)
        return self.out_proj(y), MemoryState(memory=memory, convolution=convolution)
