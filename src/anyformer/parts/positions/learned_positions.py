"""A learned vector a place of a grid (arXiv:2010.11929, section 3.1, where the grid is one row)."""

from torch import Tensor
from torch.nn import functional as F

from anyformer import core


class LearnedPositions(core.Part, name="learned_positions"):
    """Gives ``(rows, columns, dim)``, to be added to features on a grid of this size. Cost: none but the sum."""

    slot = "input_position"

    class Config(core.Config):
        """``rows`` and ``columns`` are those of the grid."""

        dim: int = core.bound()
        rows: int
        columns: int
        init: core.Init = core.Init("truncated_normal", 0.02)

    axes = {"table": "rows columns dim"}
    fixed = dict.fromkeys(("rows", "columns"), "its indices are places, not channels")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.table = self.parameter("table", config.init)

    def adapted(self, tensor: str, source: Tensor, config: Config) -> Tensor:
        """The table of another grid, resampled as a picture (bicubic, antialiased) in float32."""
        picture = source.movedim(-1, 0)[None].float()
        size = (self.config.rows, self.config.columns)
        resampled = F.interpolate(picture, size, mode="bicubic", antialias=True)
        return resampled[0].movedim(0, -1).to(source.dtype)

    def forward(self, grid: tuple[int, ...], like: Tensor) -> Tensor:
        """The table.

        Raises:
            UsageError: for another grid.
        """
        own = (self.config.rows, self.config.columns)
        if tuple(grid) != own:
            raise core.UsageError(
                f"the features lie on a grid of {tuple(grid)}, the learned positions are for {own}; create the model with "
                f"the img_size of these images, or adapt it"
            )
        return self.table
