"""The gated perceptron (Shazeer 2020, "GLU variants improve Transformer", arXiv:2002.05202, eq. 6)."""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.ops.matrix_vector import asked, gate_token

ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu, "sigmoid": F.sigmoid}


class GatedMLP(core.ChannelMixer, name="gated_mlp"):
    """``fc2(act(gate) * up)`` on every token by itself, where ``fc1`` gives gate and up in one product.

    Shapes: ``(batch, *grid, dim) -> (batch, *grid, dim)``. Cost: ``3 * dim * hidden`` multiply-adds a token.
    """

    class Config(core.Config):
        """``hidden`` is ``ratio`` times ``dim`` where it is left open; the default keeps the parameters of a plain one of 4."""

        dim: int = core.bound()
        ratio: float = 8 / 3
        hidden: int = core.derived(lambda c: int(c.dim * c.ratio))
        activation: Literal["silu", "gelu", "relu", "sigmoid"] = "silu"
        fc1: core.Config = core.linear(bias=False)
        fc2: core.Config = core.linear(bias=False)

    axes = {"fc1.weight": "(gate:hidden + up:hidden) dim", "fc2.weight": "dim hidden"}

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Widen, gate, narrow."""
        x = self.fc1(x)
        if asked() and self.config.activation == "silu" and x.dim() == 3:
            gated = gate_token(x)
            if gated is not None:
                return self.fc2(gated)
        gate, up = x.chunk(2, dim=-1)
        return self.fc2(ACTIVATIONS[self.config.activation](gate) * up)

    def scaled(self, scale: Tensor) -> bool:
        """By the last product."""
        return self.fc2.scaled(scale)
