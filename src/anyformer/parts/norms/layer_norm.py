"""Layer normalisation (Ba et al. 2016, arXiv:1607.06450)."""

from torch import Tensor
from torch.nn import functional as F

from anyformer import core


class LayerNorm(core.Norm, name="layer_norm"):
    """Each token's channels shifted to mean 0 and scaled to variance 1, then an affine map a channel; eq. 4.

    Shapes: ``(..., dim) -> (..., dim)``. Cost: O(dim) a token.
    """

    class Config(core.Config):
        """``eps`` is added to the variance."""

        dim: int = core.bound()
        eps: float = 1e-6

    axes = {"weight": "dim", "bias": "dim"}
    reduces = ("dim",)

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.weight = self.parameter("weight", core.ONES)
        self.bias = self.parameter("bias", core.ZEROS)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the last axis."""
        weight = self.weight
        return F.layer_norm(x, weight.shape, weight, self.bias, self.config.eps)
