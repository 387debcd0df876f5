"""The perceptron of FastViT: a depth-wise convolution before the two layers (arXiv:2303.14189, section 3.2.3)."""

from torch import Tensor

from anyformer import core
from anyformer.ops.linear import Activation


class ConvolutionMLP(core.ChannelMixer, name="convolution_mlp"):
    """``fc2(act(fc1(convolution(x))))``, after ConvNeXt's layer, with a batch norm in the convolution.

    Shapes: ``(batch, height, width, dim)`` to the same. Cost: ``2 * dim * hidden`` multiply-adds a token, and those of
    the convolution.
    """

    class Config(core.Config):
        """``hidden`` is ``ratio`` times ``dim`` where it is left open."""

        dim: int = core.bound()
        ratio: float = 4.0
        hidden: int = core.derived(lambda c: int(c.dim * c.ratio))
        activation: Activation = "gelu"
        convolution: core.Config
        fc1: core.Config | None = core.linear()
        fc2: core.Config | None = core.linear()

    axes = {"fc1.weight": "hidden dim", "fc2.weight": "dim hidden"}
    refuses = {"prefix": "needs a grid", "mask": "every place of the grid counts"}

    @classmethod
    def binds(cls, config: Config) -> dict[str, dict[str, str]]:
        """The convolution keeps every channel."""
        return {"convolution": {"inputs": "dim", "multiplier": "1"}}

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Convolve, widen, activate, narrow."""
        core.grid_of(ctx, self)
        return self.fc2(self.fc1(self.convolution(x), self.config.activation))

    def scaled(self, scale: Tensor) -> bool:
        """By the last product."""
        return self.fc2.scaled(scale)
