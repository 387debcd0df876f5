"""A classification head that convolves before it pools."""

from torch import Tensor

from anyformer import core


class ConvolutionHead(core.Head, name="convolution_head"):
    """A convolution that makes ``multiplier`` channels of each, the mean over tokens, then scores.

    Shapes: ``(batch, height, width, dim) -> (batch, num_classes)``, or ``(batch, dim * multiplier)`` without classes.
    """

    class Config(core.Config):
        """``num_classes`` = 0 leaves the linear map out."""

        dim: int = core.bound()
        multiplier: int = 2
        num_classes: int = 1000
        convolution: core.Config
        linear: core.Config = core.linear()

    axes = {"linear.weight": "num_classes (dim multiplier)"}
    fixed = {"multiplier": "every channel has as many filters of its own"}

    @classmethod
    def binds(cls, config: Config) -> dict[str, dict[str, str]]:
        """The convolution widens."""
        return {"convolution": {"inputs": "dim", "dim": "dim multiplier"}}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.num_classes == 0:
            self.linear = None

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Convolve, pool, score."""
        core.grid_of(ctx, self)
        pooled = self.convolution(x).flatten(1, -2).mean(dim=1)
        return pooled if self.linear is None else self.linear(pooled)
