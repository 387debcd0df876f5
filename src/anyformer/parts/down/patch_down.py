"""Down-sampling by a norm and a convolution over non-overlapping patches (arXiv:2201.03545, section 2.6)."""

import dataclasses

from torch import Tensor

from anyformer import core
from anyformer.ops.convolution import patch_convolution


class PatchDown(core.Down, name="patch_down"):
    """Normalise, then map each ``patch`` x ``patch`` square of tokens to one; what does not fill a square is cut off.

    Shapes: ``(batch, height, width, inputs) -> (batch, height // patch, width // patch, dim)``. Cost:
    ``inputs * dim`` multiply-adds an input token. The trace is the layout before.
    """

    class Config(core.Config):
        """``inputs`` channels become ``dim``."""

        inputs: int = core.bound()
        dim: int = core.bound()
        patch: int = 2
        norm: core.Config
        init: core.Init = core.Init("truncated_normal", 0.02)

    axes = {"weight": "dim inputs patch patch", "bias": "dim"}
    fixed = {"patch": "its indices are places, not channels"}

    @classmethod
    def binds(cls, config: Config) -> dict[str, dict[str, str]]:
        """The norm runs over the input channels."""
        return {"norm": {"dim": "inputs"}}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.weight = self.parameter("weight", config.init)
        self.bias = self.parameter("bias", core.ZEROS)

    def forward(self, x: Tensor, ctx: core.Context) -> tuple[Tensor, core.Context, core.Layout | None]:
        """Normalise and merge."""
        grid = core.grid_of(ctx, self)
        if min(grid) < self.config.patch:
            raise core.UsageError(
                f"a grid of {grid} cannot be made smaller by {self.config.patch}; give a larger image or a smaller stem"
            )
        y = patch_convolution(self.norm(x), self.weight, self.bias)
        return y, dataclasses.replace(ctx, layout=core.Layout(grid=(y.shape[1], y.shape[2]))), ctx.layout
