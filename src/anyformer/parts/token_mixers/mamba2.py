"""The Mamba-2 mixer: a state space whose heads decay by one number each (arXiv:2405.21060, figure 6)."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.ops.state_space_dual import state_space_dual
from anyformer.parts.convolutions.causal_convolution import CausalConvolution
from anyformer.parts.token_mixers.mamba import MambaState


class GroupedRMSNorm(core.Norm, name="grouped_rms_norm"):
    """The channels of each of ``groups`` neighbourhoods over their root mean square, then a scale a channel.

    Shapes: ``(..., dim) -> (..., dim)``. Cost: O(dim) a token. Source: arXiv:2405.21060, section 7.1, where a group of
    channels is what one device of several holds.
    """

    class Config(core.Config):
        """``eps`` is added to the mean square."""

        dim: int = core.bound()
        groups: int = core.bound()
        eps: float = 1e-5

    axes = {"weight": "dim"}
    reduces = ("dim",)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.weight = self.parameter("weight", core.ONES)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the last axis, group by group."""
        weight, groups, eps = self.weight, self.config.groups, self.config.eps
        if groups == 1:
            return F.rms_norm(x, weight.shape, weight, eps)
        grouped = x.unflatten(-1, (groups, -1))
        return F.rms_norm(grouped, grouped.shape[-1:], eps=eps).flatten(-2) * weight


class Mamba2(core.TokenMixer, name="mamba2"):
    """Every head remembers a matrix of ``p`` times ``state`` numbers, which decays by one number a token.

    One product gives the gate z, x, b, c and the step dt; x, b and c are convolved over their last tokens; the heads of a
    group share b and c. The scan's outputs times the gate are normalised, group by group, and mixed by the last product.
    What ``ctx.mask`` keeps out enters the convolution as zeros, and the scan with a step of 0.

    Shapes: ``(batch, tokens, dim)`` to the same. Cost: ``dim * (3 heads p + 2 groups state + heads)`` multiply-adds a token
    for the products, and O(heads * p * state) for the scan. State: ``heads * p * state`` numbers, and the last inputs.
    """

    class Config(core.Config):
        """``p`` channels a head; ``heads`` makes them ``expand`` times ``dim`` where it is left open."""

        dim: int = core.bound()
        expand: float = 2.0
        p: int = 64
        heads: int = core.derived(lambda c: int(c.expand * c.dim) // c.p)
        groups: int = 1
        width: int = core.derived(lambda c: c.heads // c.groups)
        state: int = 128
        rates_init: core.Init = core.Init("log_of_uniform", 16.0)
        step_init: core.Init = core.Init("step_bias")
        in_proj: core.Config = core.linear(bias=False, init=core.Init("uniform_fan_in"))
        convolution: core.Config = CausalConvolution.Config(kernel=4)
        norm: core.Config | None = GroupedRMSNorm.Config()
        out_proj: core.Config = core.linear(bias=False, init=core.Init("uniform_fan_in"))

    axes = {
        "in_proj.weight": "(z:heads p + x:heads p + b:groups state + c:groups state + dt:heads) dim",
        "step_bias": "heads",
        "log_rates": "heads",
        "skip": "heads",
        "out_proj.weight": "dim (heads p)",
    }
    definitions = {"heads": "groups width"}

    @classmethod
    def binds(cls, config: Any) -> dict[str, dict[str, str]]:
        """The convolution runs over x, b and c, the norm over the heads' outputs."""
        return {
            "convolution": {"dim": "x:heads p + b:groups state + c:groups state"},
            "norm": {"dim": "heads p"},
        }

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.step_bias = self.parameter("step_bias", config.step_init)
        self.log_rates = self.parameter("log_rates", config.rates_init)
        self.skip = self.parameter("skip", core.ONES)

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Mix whole rows, or packed sequences."""
        return self._mix(x, ctx, None)[0]

    def init_state(self, batch: int, capacity: int, like: Tensor) -> MambaState:
        """Zeros."""
        config: Mamba2.Config = self.config
        dtype = torch.promote_types(like.dtype, torch.float32)
        scan = like.new_zeros(batch, config.heads, config.p, config.state, dtype=dtype)
        return MambaState(convolution=self.convolution.init_state(batch, like), scan=scan)

    def stream(self, x: Tensor, ctx: core.Context, state: MambaState) -> tuple[Tensor, MambaState]:
        """Mix the next tokens."""
        return self._mix(x, ctx, state)

    def _mix(self, x: Tensor, ctx: core.Context, state: MambaState | None) -> tuple[Tensor, MambaState]:
        config: Mamba2.Config = self.config
        inner, shared = config.heads * config.p, config.groups * config.state
        z, xbc, dt = self.in_proj(x).split((inner, inner + 2 * shared, config.heads), dim=-1)
        xbc, convolution = self.convolution(xbc, ctx, state and state.convolution)
        x, b, c = xbc.split((inner, shared, shared), dim=-1)
        wide = torch.promote_types(x.dtype, torch.float32)
        step = F.softplus(dt.to(wide) + self.step_bias)
        if ctx.mask is not None:
            step = step.masked_fill(~ctx.mask[..., None], 0.0)
        rates = -self.log_rates.to(wide).exp()
        y, scan = state_space_dual(
            x.unflatten(-1, (config.heads, config.p)),
            step,
            rates,
            b.unflatten(-1, (config.groups, config.state)),
            c.unflatten(-1, (config.groups, config.state)),
            d=self.skip,
            state=state and state.scan,
            offsets=ctx.offsets,
        )
        del xbc, x, b, c  # wider than what the last product needs
        y = F.silu(z).mul_(y.flatten(-2))
        return self.out_proj(y if self.norm is None else self.norm(y)), MambaState(convolution=convolution, scan=scan)

    def scaled(self, scale: Tensor) -> bool:
        """By the last product."""
        return self.out_proj.scaled(scale)
