"""Down-sampling by whatever a strided convolution does."""

import dataclasses

from torch import Tensor

from anyformer import core


class StridedDown(core.Down, name="strided_down"):
    """``convolution(x)``, from ``inputs`` channels to ``dim``.

    Shapes: ``(batch, height, width, inputs) -> (batch, rows, columns, dim)``, as the convolution has it, whose cost it is.
    The trace is the layout before.
    """

    class Config(core.Config):
        """``convolution`` is a part ``x -> x`` on features."""

        inputs: int = core.bound()
        dim: int = core.bound()
        convolution: core.Config

    def forward(self, x: Tensor, ctx: core.Context) -> tuple[Tensor, core.Context, core.Layout | None]:
        """Convolve."""
        core.grid_of(ctx, self)
        y = self.convolution(x)
        return y, dataclasses.replace(ctx, layout=core.Layout(grid=(y.shape[1], y.shape[2]))), ctx.layout
