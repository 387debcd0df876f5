"""The two-layer perceptron of Transformers (Vaswani et al. 2017, section 3.3)."""

from torch import Tensor

from anyformer import core
from anyformer.ops.linear import Activation


class MLP(core.ChannelMixer, name="mlp"):
    """``fc2(act(fc1(x)))`` on every token by itself.

    Shapes: ``(batch, *grid, dim) -> (batch, *grid, dim)``. Cost: ``2 * dim * hidden`` multiply-adds a token.
    """

    class Config(core.Config):
        """``hidden`` is ``ratio`` times ``dim`` where it is left open."""

        dim: int = core.bound()
        ratio: float = 4.0
        hidden: int = core.derived(lambda c: int(c.dim * c.ratio))
        activation: Activation = "gelu"
        fc1: core.Config | None = core.linear()
        fc2: core.Config | None = core.linear()

    axes = {"fc1.weight": "hidden dim", "fc2.weight": "dim hidden"}

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Widen, activate, narrow."""
        return self.fc2(self.fc1(x, self.config.activation))

    def scaled(self, scale: Tensor) -> bool:
        """By the last product."""
        return self.fc2.scaled(scale)
