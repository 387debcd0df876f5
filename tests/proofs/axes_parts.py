"""Parts that only the proofs need: RMSNorm, SwiGLU, and Mamba-2's token mixer with its gated norm."""

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.core import axes


class RMSNorm(core.Norm, name="proof_rms_norm"):
    """Channels over their root mean square, times a weight a channel."""

    class Config(core.Config):
        """``eps`` is added to the mean square."""

        dim: int = core.bound()
        eps: float = 1e-6

    axes = {"weight": "dim"}
    reduces = ("dim",)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.weight = self.parameter("weight", core.ONES)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the last axis."""
        return F.rms_norm(x, self.weight.shape, self.weight, self.config.eps)


class SwiGLU(core.ChannelMixer, name="proof_swiglu"):
    """``down(silu(gate) * up)``, gate and up from one product."""

    class Config(core.Config):
        """``hidden`` gated units."""

        dim: int = core.bound()
        hidden: int
        gate_up: core.Config = core.linear(bias=False)
        down: core.Config = core.linear(bias=False)

    axes = {"gate_up.weight": "(gate:hidden + up:hidden) dim", "down.weight": "dim hidden"}

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Gate."""
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class GroupedGatedNorm(core.Part, name="proof_gated_norm"):
    """``y * silu(z)`` over its root mean square within each group of heads: ``(..., groups * heads_per_group * p)``."""

    class Config(core.Config):
        """All sizes come from the mixer."""

        groups: int = core.bound()
        heads_per_group: int = core.bound()
        p: int = core.bound()
        eps: float = 1e-5

    axes = {"weight": "(groups heads_per_group p)"}
    reduces = ("heads_per_group", "p")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.weight = self.parameter("weight", core.ONES)

    def forward(self, y: Tensor, z: Tensor) -> Tensor:
        """Gate, then normalise."""
        grouped = (y * F.silu(z)).unflatten(-1, (self.config.groups, -1))
        return F.rms_norm(grouped, grouped.shape[-1:], eps=self.config.eps).flatten(-2) * self.weight


class Mamba2(core.TokenMixer, name="proof_mamba2"):
    """One projection for five things, B and C shared by the heads of a group (arXiv:2405.21060, section 7).

    A head's state is ``h = exp(-dt exp(decay)) h + dt x B``, read by C, here token by token.
    """

    class Config(core.Config):
        """``p`` channels a head, ``state`` numbers a channel."""

        dim: int = core.bound()
        groups: int
        heads_per_group: int
        p: int
        state: int
        kernel: int = 3
        norm: core.Config
        in_proj: core.Config = core.linear(bias=False)
        out_proj: core.Config = core.linear(bias=False)

        @property
        def heads(self) -> int:
            """Heads of all groups."""
            return self.groups * self.heads_per_group

    definitions = {"heads": "groups heads_per_group"}
    axes = {
        "in_proj.weight": "(z:heads p + x:heads p + b:groups state + c:groups state + dt:heads) dim",
        "filters": "(x:heads p + b:groups state + c:groups state) 1 kernel",
        "filter_bias": "(x:heads p + b:groups state + c:groups state)",
        "dt_bias": "heads",
        "decay": "heads",
        "skip": "heads",
        "out_proj.weight": "dim (heads p)",
    }
    fixed = {"kernel": "its indices are places in time, not channels"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        for name in ("filters", "filter_bias", "dt_bias", "decay", "skip"):
            setattr(self, name, self.parameter(name, core.Init("normal")))

    def forward(self, u: Tensor, ctx: core.Context) -> Tensor:
        """Project, convolve causally, scan, norm, project back."""
        config: Mamba2.Config = self.config
        sizes = axes.summands(axes.parse(self.axes["in_proj.weight"])[0], config.size)
        channels = config.heads * config.p
        z, xbc, dt = self.in_proj(u).split((channels, sizes["x"] + sizes["b"] + sizes["c"], config.heads), dim=-1)
        padded = F.pad(xbc.mT, (config.kernel - 1, 0))
        xbc = F.silu(F.conv1d(padded, self.filters, self.filter_bias, groups=padded.shape[1])).mT
        x, b, c = xbc.split((channels, sizes["b"], sizes["c"]), dim=-1)
        x = x.unflatten(-1, (config.heads, config.p))
        b, c = (t.unflatten(-1, (config.groups, -1)).repeat_interleave(config.heads_per_group, dim=2) for t in (b, c))
        dt = F.softplus(dt + self.dt_bias)
        keep = torch.exp(-dt * self.decay.exp())
        h, outputs = x.new_zeros(()), []
        for t in range(u.shape[1]):
            h = keep[:, t, :, None, None] * h + (dt[:, t, :, None] * x[:, t])[..., None] * b[:, t, :, None, :]
            outputs.append((h @ c[:, t, :, :, None]).squeeze(-1))
        y = torch.stack(outputs, dim=1) + self.skip[:, None] * x
        return self.out_proj(self.norm(y.flatten(2), z))
