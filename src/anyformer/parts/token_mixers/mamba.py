"""The Mamba mixer: a selective state space between a short convolution and a gate (arXiv:2312.00752, figure 3)."""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.ops.selective_scan import scan_token, selective_scan
from anyformer.parts.convolutions.causal_convolution import CausalConvolution


class MambaState(core.State):
    """Where a stream of Mamba or Mamba-2 stands.

    Attributes:
        convolution: the last inputs of the convolution.
        scan: the state of the scan, float32 at least.
    """

    convolution: Tensor
    scan: Tensor


class Mamba(core.TokenMixer, name="mamba"):
    """Every channel remembers ``state`` numbers, and each token says how long its step is, what enters and what is read.

    One product gives x and gate; x is convolved over its last tokens, and gives the step of every channel (through
    ``step_rank`` numbers), ``b`` and ``c``; the scan's outputs times the gate are mixed by the last product. Section 3.4,
    algorithm 2. What ``ctx.mask`` keeps out enters the convolution as zeros, and the scan with a step of 0.

    Shapes: ``(batch, tokens, dim)`` to the same. Cost: ``inner * (3 dim + 2 step_rank + 2 state)`` multiply-adds a token for
    the products, and O(inner * state) for the scan. State: ``inner * (state + kernel - 1)`` numbers.
    """

    class Config(core.Config):
        """``step_norm``, ``b_norm`` and ``c_norm`` follow the product that gives the three, as in Jamba (arXiv:2403.19887)."""

        dim: int = core.bound()
        expand: float = 2.0
        inner: int = core.derived(lambda c: int(c.expand * c.dim))
        state: int = 16
        step_rank: int = core.derived(lambda c: math.ceil(c.dim / 16))
        rates_init: core.Init = core.Init("log_counts")
        in_proj: core.Config = core.linear(bias=False, init=core.Init("uniform_fan_in"))
        convolution: core.Config = CausalConvolution.Config(kernel=4)
        x_proj: core.Config = core.linear(bias=False, init=core.Init("uniform_fan_in"))
        step_norm: core.Config | None = None
        b_norm: core.Config | None = None
        c_norm: core.Config | None = None
        step_proj: core.Config = core.linear(init=core.Init("uniform_fan_in"), bias_init=core.Init("step_bias"))
        out_proj: core.Config = core.linear(bias=False, init=core.Init("uniform_fan_in"))

    axes = {
        "in_proj.weight": "(x:inner + gate:inner) dim",
        "x_proj.weight": "(step:step_rank + b:state + c:state) inner",
        "step_proj.weight": "inner step_rank",
        "log_rates": "inner state",
        "skip": "inner",
        "out_proj.weight": "dim inner",
    }

    undecayed = ("log_rates",)

    @classmethod
    def binds(cls, config: Any) -> dict[str, dict[str, str]]:
        """The convolution runs over the inner channels; each norm has its own numbers."""
        norms = {"step_norm": "step_rank", "b_norm": "state", "c_norm": "state"}
        return {child: {"dim": axis} for child, axis in {"convolution": "inner", **norms}.items()}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.log_rates = self.parameter("log_rates", config.rates_init)
        self.skip = self.parameter("skip", core.ONES)

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Mix whole rows, or packed sequences."""
        return self._mix(x, ctx, None)[0]

    def init_state(self, batch: int, capacity: int, like: Tensor) -> MambaState:
        """Zeros."""
        dtype = torch.promote_types(like.dtype, torch.float32)
        # channels beside each other in memory, as the scan leaves them
        scan = like.new_zeros(batch, self.config.state, self.config.inner, dtype=dtype).mT
        return MambaState(convolution=self.convolution.init_state(batch, like), scan=scan)

    def stream(self, x: Tensor, ctx: core.Context, state: MambaState) -> tuple[Tensor, MambaState]:
        """Mix the next tokens."""
        return self._mix(x, ctx, state)

    def _mix(self, x: Tensor, ctx: core.Context, state: MambaState | None) -> tuple[Tensor, MambaState]:
        config: Mamba.Config = self.config
        x, gate = self.in_proj(x).chunk(2, dim=-1)
        x, convolution = self.convolution(x, ctx, state and state.convolution)
        step, b, c = self.x_proj(x).split_with_sizes((config.step_rank, config.state, config.state), dim=-1)
        step = step if self.step_norm is None else self.step_norm(step)
        b = b if self.b_norm is None else self.b_norm(b)
        c = c if self.c_norm is None else self.c_norm(c)
        step = self.step_proj(step)
        if state is not None and x.shape[1] == 1 and ctx.mask is None and x.dtype == torch.float32:
            y = scan_token(x, F.softplus(step), self.log_rates, b, c, self.skip, gate, state.scan)
            if y is not None:
                return self.out_proj(y), MambaState(convolution=convolution, scan=state.scan)
        wide = torch.promote_types(x.dtype, torch.float32)
        step = F.softplus(step.to(wide))
        if ctx.mask is not None:
            step = step.masked_fill(~ctx.mask[..., None], 0.0)
        rates = -self.log_rates.to(wide).exp()
        y, scan = selective_scan(x, step, rates, b, c, d=self.skip, state=state and state.scan, offsets=ctx.offsets)
        del x, step  # each as large as what the last product needs
        return self.out_proj(F.silu(gate).mul_(y)), MambaState(convolution=convolution, scan=scan)

    def scaled(self, scale: Tensor) -> bool:
        """By the last product."""
        return self.out_proj.scaled(scale)
