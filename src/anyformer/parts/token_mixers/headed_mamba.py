"""Mamba whose channels are in heads, each with a selective scan of its own (arXiv:2405.16712)."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.ops.selective_scan import selective_scan
from anyformer.parts.convolutions.causal_convolution import CausalConvolution


class MambaHead(core.Part, name="mamba_head"):
    """A share of Mamba's channels, which gives step, b and c of its own scan.

    Shapes: ``(batch, tokens, dim)`` and a state ``(batch, dim, state)`` to the same. Cost: ``dim * (2 step_rank + 2 state)``
    multiply-adds a token for the products, and O(dim * state) for the scan.
    """

    slot = "scan"

    class Config(core.Config):
        """``step_rank`` is how many numbers the steps of all channels are made from."""

        dim: int = core.bound()
        state: int = 16
        step_rank: int = core.derived(lambda c: math.ceil(c.dim / 16))
        rates_init: core.Init = core.Init("log_counts")
        x_proj: core.Config = core.linear(bias=False, init=core.Init("normal", 0.02))
        step_proj: core.Config = core.linear(init=core.Init("uniform_fan_in"), bias_init=core.Init("step_bias"))

    axes = {
        "x_proj.weight": "(step:step_rank + b:state + c:state) dim",
        "step_proj.weight": "dim step_rank",
        "log_rates": "dim state",
        "skip": "dim",
    }

    undecayed = ("log_rates",)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.log_rates = self.parameter("log_rates", config.rates_init)
        self.skip = self.parameter("skip", core.ONES)

    def forward(self, x: Tensor, ctx: core.Context, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scan from a state; gives the outputs and the state after the last token."""
        config: MambaHead.Config = self.config
        step, b, c = self.x_proj(x).split((config.step_rank, config.state, config.state), dim=-1)
        wide = torch.promote_types(x.dtype, torch.float32)
        step = F.softplus(self.step_proj(step).to(wide))
        if ctx.mask is not None:
            step = step.masked_fill(~ctx.mask[..., None], 0.0)
        rates = -self.log_rates.to(wide).exp()
        return selective_scan(x, step, rates, b, c, d=self.skip, state=state, offsets=ctx.offsets)


class HeadedMambaState(core.State):
    """Where a stream of a Mamba with heads stands: the last inputs, and ``(batch, width, state)`` a head."""

    convolution: Tensor
    scans: list[Tensor]


class HeadedMamba(core.TokenMixer, name="headed_mamba"):
    """Mamba whose channels are in heads, between one product before, one convolution, one gate and one product after.

    What ``ctx.mask`` keeps out enters the convolution as zeros, and the scans with a step of 0. Shapes: ``(batch, tokens,
    dim)`` to the same. Cost: ``3 dim inner`` multiply-adds a token for the products, and that of the heads. State:
    ``inner * (state + kernel - 1)`` numbers.
    """

    class Config(core.Config):
        """All ``heads`` are equally wide."""

        dim: int = core.bound()
        expand: float = 2.0
        inner: int = core.derived(lambda c: int(c.expand * c.dim))
        heads: tuple[core.Config, ...] = (MambaHead.Config(),) * 2
        in_proj: core.Config = core.linear(bias=False)
        convolution: core.Config = CausalConvolution.Config(kernel=4)
        out_proj: core.Config = core.linear(bias=False)

        @property
        def count(self) -> int:
            """How many heads."""
            return len(self.heads)

        @property
        def width(self) -> int:
            """Channels of a head."""
            return self.inner // self.count

    axes = {"in_proj.weight": "(x:count width + gate:count width) dim", "out_proj.weight": "dim (count width)"}
    definitions = {"inner": "count width"}
    fixed = {"count": "each is a part of its own"}

    @classmethod
    def binds(cls, config: Any) -> dict[str, dict[str, str]]:
        """The convolution runs over all channels, a head over its own."""
        heads = {f"heads.{head}": {"dim": "width"} for head in range(config.count)}
        return {"convolution": {"dim": "count width"}, **heads}

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Mix whole rows, or packed sequences."""
        return self._mix(x, ctx, None)[0]

    def init_state(self, batch: int, capacity: int, like: Tensor) -> HeadedMambaState:
        """Zeros."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        # channels beside each other in memory, as the scan leaves them
        scans = [like.new_zeros(batch, head.state, head.dim, dtype=dtype).mT for head in self.config.heads]
        return HeadedMambaState(convolution=self.convolution.init_state(batch, like), scans=scans)

    def stream(self, x: Tensor, ctx: core.Context, state: HeadedMambaState) -> tuple[Tensor, HeadedMambaState]:
        """Mix the next tokens."""
        return self._mix(x, ctx, state)

    def _mix(self, x: Tensor, ctx: core.Context, state: HeadedMambaState | None) -> tuple[Tensor, HeadedMambaState]:
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        x, convolution = self.convolution(x, ctx, state and state.convolution)
        before = [None] * len(self.heads) if state is None else state.scans
        shares = x.chunk(len(self.heads), dim=-1)
        scanned = [head(share, ctx, scan) for head, share, scan in zip(self.heads, shares, before, strict=True)]
        y = F.silu(gate).mul_(torch.cat([share for share, _ in scanned], dim=-1))
        return self.out_proj(y), HeadedMambaState(convolution=convolution, scans=[scan for _, scan in scanned])

    def scaled(self, scale: Tensor) -> bool:
        """By the last product."""
        return self.out_proj.scaled(scale)
