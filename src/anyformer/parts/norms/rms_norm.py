"""Root mean square normalisation (Zhang and Sennrich 2019, arXiv:1910.07467)."""

from torch import Tensor

from anyformer import core
from anyformer.ops.rms_norm import rms_norm


class RMSNorm(core.Norm, name="rms_norm"):
    """Each token's channels over their root mean square, then a scale a channel; eq. 4.

    Shapes: ``(..., dim) -> (..., dim)``. Cost: O(dim) a token.
    """

    class Config(core.Config):
        """``eps`` is added to the mean square."""

        dim: int = core.bound()
        eps: float = 1e-6

    axes = {"weight": "dim"}
    reduces = ("dim",)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.weight = self.parameter("weight", core.ONES)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the last axis."""
        return rms_norm(x, self.weight, self.config.eps)
