"""The perceptron of GPT-2 and its kin: GELU in the form of a hyperbolic tangent (arXiv:1606.08415)."""

from torch import Tensor
from torch.nn import functional as F

from anyformer import core


class TanhMLP(core.ChannelMixer, name="tanh_mlp"):
    """``fc2(gelu(fc1(x)))`` on every token by itself, with GELU's tanh form (Hendrycks and Gimpel, arXiv:1606.08415).

    Shapes: ``(batch, *grid, dim) -> (batch, *grid, dim)``. Cost: ``2 * dim * hidden`` multiply-adds a token.
    """

    class Config(core.Config):
        """``hidden`` is four times ``dim`` where it is left open."""

        dim: int = core.bound()
        hidden: int = core.derived(lambda c: 4 * c.dim)
        fc1: core.Config = core.linear()
        fc2: core.Config = core.linear()

    axes = {"fc1.weight": "hidden dim", "fc2.weight": "dim hidden"}

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Widen, activate, narrow."""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))

    def scaled(self, scale: Tensor) -> bool:
        """By the last product."""
        return self.fc2.scaled(scale)
