"""Squeeze and excitation (Hu et al. 2018, arXiv:1709.01507)."""

from torch import Tensor

from anyformer import core


class SqueezeExcitation(core.Part, name="squeeze_excitation"):
    """Each channel times a number in (0, 1) that a two-layer perceptron makes of the means of all channels; eq. 2 to 4.

    Shapes: ``(batch, *grid, dim)`` to the same. Cost: ``2 * dim * hidden`` multiply-adds a picture, O(dim) a token.
    """

    slot = "convolution"

    class Config(core.Config):
        """``hidden`` is ``ratio`` times ``dim`` where it is left open, at least 1."""

        dim: int = core.bound()
        ratio: float = 1 / 16
        hidden: int = core.derived(lambda c: max(int(c.dim * c.ratio), 1))
        fc1: core.Config | None = core.linear()
        fc2: core.Config | None = core.linear()

    axes = {"fc1.weight": "hidden dim", "fc2.weight": "dim hidden"}

    def forward(self, x: Tensor) -> Tensor:
        """Squeeze, excite, scale."""
        means = x.flatten(1, -2).mean(dim=1)
        weights = self.fc2(self.fc1(means, "relu")).sigmoid()
        return x * weights.view(x.shape[0], *(1,) * (x.dim() - 2), x.shape[-1])
