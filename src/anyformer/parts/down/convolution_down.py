"""Down-sampling by a depth-wise convolution with a large kernel, then one over channels (arXiv:2303.14189, section 3.2.2)."""

import dataclasses

from torch import Tensor

from anyformer import core


class ConvolutionDown(core.Down, name="convolution_down"):
    """``pointwise(large(x))``: ``large`` makes ``multiplier`` channels of each and strides, ``pointwise`` mixes them.

    Shapes: ``(batch, height, width, inputs) -> (batch, rows, columns, dim)``, where the stride divides rows and columns,
    rounded up. Cost: that of the convolutions. The trace is the layout before.
    """

    class Config(core.Config):
        """``inputs`` channels become ``dim``, a multiple."""

        inputs: int = core.bound()
        dim: int = core.bound()
        multiplier: int = core.derived(lambda c: c.dim // c.inputs)
        large: core.Config
        pointwise: core.Config

    definitions = {"dim": "inputs multiplier"}
    fixed = {"multiplier": "every channel has as many filters of its own"}

    @classmethod
    def binds(cls, config: Config) -> dict[str, dict[str, str]]:
        """The second convolution keeps every channel."""
        return {"pointwise": {"inputs": "dim", "multiplier": "1"}}

    def forward(self, x: Tensor, ctx: core.Context) -> tuple[Tensor, core.Context, core.Layout | None]:
        """Widen, shrink, mix."""
        core.grid_of(ctx, self)
        y = self.pointwise(self.large(x))
        return y, dataclasses.replace(ctx, layout=core.Layout(grid=(y.shape[1], y.shape[2]))), ctx.layout
