"""Depth-wise convolution as a token mixer."""

from torch import Tensor

from anyformer import core
from anyformer.ops.convolution import depthwise_convolution


class DepthwiseConvolution(core.TokenMixer, name="depthwise_convolution"):
    """Each channel mixes its ``kernel`` x ``kernel`` neighbourhood by filters of its own, zeros outside the grid.

    Shapes: ``(batch, height, width, dim)`` to the same. Cost: ``dim * kernel^2`` multiply-adds a token.
    """

    class Config(core.Config):
        """``kernel`` is odd, in tokens."""

        dim: int = core.bound()
        kernel: int = 7
        init: core.Init = core.Init("truncated_normal", 0.02)

    axes = {"weight": "dim 1 kernel kernel", "bias": "dim"}
    fixed = {"kernel": "its indices are places, not channels"}
    refuses = {
        "stream": "looks at both sides of a token",
        "prefix": "needs a grid",
        "mask": "every place of the grid counts",
    }

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.kernel % 2 == 0:
            raise core.UsageError(f"a depth-wise kernel of {config.kernel} has no middle; give an odd one")
        self.weight = self.parameter("weight", config.init)
        self.bias = self.parameter("bias", core.ZEROS)

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Convolve with padding ``kernel // 2``."""
        core.grid_of(ctx, self)
        return depthwise_convolution(x, self.weight, self.bias, padding=self.config.kernel // 2)

    def scaled(self, scale: Tensor) -> bool:
        """By the filters."""
        self.weight *= scale[:, None, None, None]
        self.bias *= scale
        return True
