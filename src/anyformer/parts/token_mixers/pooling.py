"""Average pooling as a token mixer."""

from torch import Tensor
from torch.nn import functional as F

from anyformer import core


class Pooling(core.TokenMixer, name="pooling"):
    """The mean of each token's ``kernel`` x ``kernel`` neighbourhood, less the token itself (arXiv:2111.11418, eq. 4).

    The mean is over the neighbours that are on the grid. There is nothing to learn; the token is taken off because the
    residual around the mixer adds it.

    Shapes: ``(batch, height, width, channels)`` to the same. Cost: O(channels * kernel^2) additions a token.
    """

    class Config(core.Config):
        """``kernel`` is odd, in tokens."""

        kernel: int = 3

    refuses = {"stream": "looks at both sides of a token", "prefix": "needs a grid"}

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Average and subtract."""
        core.grid_of(ctx, self)
        kernel = self.config.kernel
        mean = F.avg_pool2d(x.movedim(-1, 1), kernel, stride=1, padding=kernel // 2, count_include_pad=False)
        return mean.movedim(1, -1) - x
