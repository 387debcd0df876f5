"""HGRN: a vector of gated memories, of which deeper layers forget more slowly."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.ops.selective_scan import selective_scan
from anyformer.parts.norms.rms_norm import RMSNorm
from anyformer.parts.token_mixers.linear_memory import LinearMemory, MemoryState, at_least_single


class ForgetFloors(core.Part, name="forget_floors"):
    """What the forget gates of each layer keep at least: learned shares, summed over the layers from the second to its own.

    The shares of a channel are a softmax over the layers, so that floors rise from 0 in the first layer towards 1.
    arXiv:2311.04823, section 3.3. One table serves a whole decoder: it is built in one layer and shared by the others.

    Shapes: a layer's number -> two tensors ``(dim,)``. Cost: O(layers * dim).
    """

    slot = "forget_floors"

    class Config(core.Config):
        """``layers`` of the decoder, those of other mixers included."""

        layers: int
        dim: int = core.bound()
        init: core.Init = core.ZEROS

    axes = {"weight": "layers dim"}
    fixed = {"layers": "its indices are places in the decoder, not channels"}
    reduces = ("layers",)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.weight = self.parameter("weight", config.init)

    def forward(self, layer: int) -> tuple[Tensor, Tensor]:
        """The logarithms of a layer's floor and of one minus it; ``layer`` is counted from 0, which has no floor."""
        shares = self.weight.to(at_least_single(self.weight)).log_softmax(0)
        rest = torch.cat((shares[:1], shares[layer + 1 :]))
        return shares[1 : layer + 1].logsumexp(0), rest.logsumexp(0)


class HGRN(LinearMemory, name="hgrn"):
    """``h = f h + (1 - f) silu(i)`` in every channel, with a forget gate ``f`` between its layer's floor and 1.

    The memory is normalised, gated and mixed by the last product. arXiv:2311.04823, section 3.2 and 3.3, with real numbers
    in place of complex ones, as in flash-linear-attention. What ``ctx.mask`` keeps out enters nothing and is not forgotten
    by anything.

    Shapes: ``(batch, tokens, dim)`` to the same. Cost: ``4 dim inner`` multiply-adds a token for the products, and O(inner)
    for the memory. State: ``inner`` numbers.
    """

    class Config(core.Config):
        """``layer`` is the block's number in its decoder; without ``floors``, or in layer 0, gates start at 0."""

        dim: int = core.bound()
        inner: int = core.derived(lambda c: c.dim)
        layer: int = 0
        floors: core.Config | None = None
        in_proj: core.Config = core.linear(bias=False)
        norm: core.Config = RMSNorm.Config()
        out_proj: core.Config = core.linear(bias=False)

    axes = {"in_proj.weight": "(entering:inner + forget:inner + gate:inner) dim", "out_proj.weight": "dim inner"}

    @classmethod
    def binds(cls, config: Any) -> dict[str, dict[str, str]]:
        """Norm and floors run over the memory."""
        return {"norm": {"dim": "inner"}, "floors": {"dim": "inner"}}

    def init_state(self, batch: int, capacity: int, like: Tensor) -> MemoryState:
        """Zeros."""
        memory = like.new_zeros(batch, self.config.inner, dtype=at_least_single(like))
        return MemoryState(memory=memory, convolution=None)

    def mix(self, x: Tensor, ctx: core.Context, state: MemoryState | None) -> tuple[Tensor, MemoryState]:
        """See :class:`~anyformer.parts.token_mixers.linear_memory.LinearMemory`."""
        entering, forget, gate = self.in_proj(x).chunk(3, dim=-1)
        step = -log_kept(forget, self.floors, self.config.layer)
        entering = F.silu(entering)
        if ctx.mask is not None:
            step, entering = (tensor.masked_fill(~ctx.mask[..., None], 0.0) for tensor in (step, entering))
        one = step.new_ones(1, 1, 1)
        y, memory = selective_scan(
            # the scan takes in step * x where this memory takes in (1 - exp(-step)) * x
            entering * _freed_by_step(step),
            step,
            -one[0].expand(step.shape[2], 1),
            one.expand(*step.shape[:2], 1),
            one.expand(*step.shape[:2], 1),
            state=None if state is None else state.memory[..., None],
            offsets=ctx.offsets,
        )
        y = self.norm(y.to(x.dtype)) * F.silu(gate)
        return self.out_proj(y), MemoryState(memory=memory[..., 0], convolution=None)


def log_kept(forget: Tensor, floors: core.Part | None, layer: int) -> Tensor:
    """The logarithm of a forget gate, from its logits, with the floor of its layer."""
    kept = F.logsigmoid(forget.to(at_least_single(forget)))
    if floors is None or layer == 0:
        return kept
    floor, rest = floors(layer)
    return torch.logaddexp(floor, rest + kept)


def _freed_by_step(step: Tensor) -> Tensor:
    """``(1 - exp(-step)) / step``, which is 1 at 0."""
    still = step == 0
    return torch.where(still, 1.0, -torch.expm1(-step) / step.masked_fill(still, 1.0))
