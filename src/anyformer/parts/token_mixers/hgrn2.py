"""HGRN2: HGRN whose memory is a matrix a head, because what the forget gates leave free is its key."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.ops.linear_attention import linear_attention
from anyformer.parts.norms.rms_norm import RMSNorm
from anyformer.parts.token_mixers.hgrn import log_kept
from anyformer.parts.token_mixers.linear_memory import LinearMemory, MemoryState, counted, heads, merged


class HGRN2(LinearMemory, name="hgrn2"):
    """``S = diag(f) S + (1 - f) v^T``, ``o = S^T silu(q)``, with forget gates ``f`` between their layer's floor and 1.

    The outputs of all heads are normalised together and mixed by the last product. arXiv:2404.07904, section 3.2. What
    ``ctx.mask`` keeps out writes nothing and is not forgotten by anything.

    Shapes: ``(batch, tokens, dim)`` to the same. Cost: ``dim * (2 heads key + 2 heads value)`` multiply-adds a token for
    the products, and O(heads * key * value) for the memory, which is the state.
    """

    class Config(core.Config):
        """``key`` and ``value`` are the widths of a head; ``layer`` and ``floors`` are HGRN's."""

        dim: int = core.bound()
        heads: int
        key: int = core.derived(lambda c: c.dim // c.heads)
        value: int = core.derived(lambda c: c.dim // c.heads)
        scale: float = core.derived(lambda c: c.key**-0.5)
        layer: int = 0
        floors: core.Config | None = None
        in_proj: core.Config = core.linear(bias=False)
        norm: core.Config = RMSNorm.Config(eps=1e-5)
        out_proj: core.Config = core.linear(bias=False)

    axes = {
        "in_proj.weight": "(q:heads key + forget:heads key + v:heads value) dim",
        "out_proj.weight": "dim (heads value)",
    }

    @classmethod
    def binds(cls, config: Any) -> dict[str, dict[str, str]]:
        """The norm runs over all heads, floors over their keys."""
        return {"norm": {"dim": "heads value"}, "floors": {"dim": "heads key"}}

    def mix(self, x: Tensor, ctx: core.Context, state: MemoryState | None) -> tuple[Tensor, MemoryState]:
        """See :class:`~anyformer.parts.token_mixers.linear_memory.LinearMemory`."""
        config: HGRN2.Config = self.config
        keys, values = config.heads * config.key, config.heads * config.value
        q, forget, v = self.in_proj(x).split((keys, keys, values), dim=-1)
        decay = log_kept(forget, self.floors, config.layer)
        free = -torch.expm1(decay)
        q, k, v, decay = (heads(tensor, config.heads) for tensor in (F.silu(q), free, v, decay))
        k, v, decay = counted(ctx, k, v, decay)
        memory = None if state is None else state.memory
        y, memory = linear_attention(q * config.scale, k, v, decay=decay, state=memory, offsets=ctx.offsets)
        return self.out_proj(self.norm(merged(y))), MemoryState(memory=memory, convolution=None)
