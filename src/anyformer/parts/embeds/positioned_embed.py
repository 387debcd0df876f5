"""An embed with positions on top of it."""

from torch import Tensor

from anyformer import core


class PositionedEmbed(core.Embed, name="positioned_embed"):
    """``tokens(raw) + position``, on a grid without prefix tokens.

    Shapes and cost: those of ``tokens``.
    """

    class Config(core.Config):
        """``tokens`` is an embed, ``position`` a part that gives a vector a place."""

        dim: int = core.bound()
        tokens: core.Config
        position: core.Config

    def forward(self, raw: Tensor) -> tuple[Tensor, core.Context]:
        """Embed, add."""
        x, ctx = self.tokens(raw)
        return x + self.position(core.grid_of(ctx, self), x), ctx
