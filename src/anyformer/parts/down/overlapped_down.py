"""Down-sampling by one convolution whose windows overlap (arXiv:2111.11418, section 3.2)."""

import dataclasses

from torch import Tensor
from torch.nn import functional as F

from anyformer import core


class OverlappedDown(core.Down, name="overlapped_down"):
    """Convolve with ``kernel`` x ``kernel`` filters every ``stride`` tokens, zeros around the grid.

    A grid of any size down to 1 x 1 is taken, as long as ``kernel`` is odd and ``stride`` at most ``kernel``.

    Shapes: ``(batch, height, width, inputs) -> (batch, ceil(height / stride), ceil(width / stride), dim)``. Cost:
    ``inputs * dim * kernel^2`` multiply-adds an output token. The trace is the layout before.
    """

    class Config(core.Config):
        """``inputs`` channels become ``dim``; ``norm`` comes before the convolution where it is given."""

        inputs: int = core.bound()
        dim: int = core.bound()
        kernel: int = 3
        stride: int = 2
        norm: core.Config | None = None
        init: core.Init = core.Init("uniform_fan_in")

    axes = {"weight": "dim inputs kernel kernel", "bias": "dim"}
    fixed = {"kernel": "its indices are places, not channels"}

    @classmethod
    def binds(cls, config: Config) -> dict[str, dict[str, str]]:
        """The norm runs over the input channels."""
        return {"norm": {"dim": "inputs"}}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.weight = self.parameter("weight", config.init)
        self.bias = self.parameter("bias", core.ZEROS)

    def forward(self, x: Tensor, ctx: core.Context) -> tuple[Tensor, core.Context, core.Layout | None]:
        """Convolve with padding ``kernel // 2``."""
        config: OverlappedDown.Config = self.config
        core.grid_of(ctx, self)
        x = x if self.norm is None else self.norm(x)
        padding = config.kernel // 2
        y = F.conv2d(x.movedim(-1, 1), self.weight, self.bias, stride=config.stride, padding=padding).movedim(1, -1)
        return y, dataclasses.replace(ctx, layout=core.Layout(grid=(y.shape[1], y.shape[2]))), ctx.layout
