"""Group normalisation with one group (Wu and He 2018, arXiv:1803.08494)."""

from math import prod

from torch import Tensor
from torch.nn import functional as F

from anyformer import core


class GroupNorm(core.Norm, name="group_norm"):
    """All tokens and channels of a sample together shifted to mean 0 and scaled to variance 1, then an affine map a channel.

    Section 3.1, eq. 1 to 3 and 6, with one group. Unlike a layer norm it keeps how the tokens of an image differ in size.
    Prefix tokens count like others.

    Shapes: ``(batch, ..., dim) -> (batch, ..., dim)``. Cost: O(dim) a token.
    """

    class Config(core.Config):
        """``eps`` is added to the variance."""

        dim: int = core.bound()
        eps: float = 1e-5

    axes = {"weight": "dim", "bias": "dim"}
    reduces = ("dim",)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.weight = self.parameter("weight", core.ONES)
        self.bias = self.parameter("bias", core.ZEROS)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over all axes but the first."""
        tokens = x.reshape(x.shape[0], prod(x.shape[1:-1]), 1, x.shape[-1])  # a picture in channels_last memory
        normal = F.group_norm(tokens.movedim(-1, 1), 1, self.weight, self.bias, self.config.eps)
        return normal.movedim(1, -1).view(x.shape)
