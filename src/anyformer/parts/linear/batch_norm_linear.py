"""A linear layer with a batch norm of its own: a 1 x 1 convolution of convolutional networks, in a linear slot."""

from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.core.part import filled
from anyformer.ops.activation import ACTIVATIONS
from anyformer.ops.linear import Activation, linear
from anyformer.parts.linear.linear import Linear
from anyformer.parts.norms.batch_norm import BatchNorm


class BatchNormLinear(core.LinearPart, name="batch_norm_linear"):
    """``act(norm(x W^T + b)) + add``, with a batch norm that the product takes in in evaluation.

    Shapes: ``(..., inputs) -> (..., outputs)``. Cost: ``inputs * outputs`` multiply-adds a token.
    """

    class Config(core.Config):
        """``inputs`` and ``outputs`` come from the slot; ``norm`` is a batch norm."""

        inputs: int = core.bound()
        outputs: int = core.bound()
        norm: core.Config = BatchNorm.Config()
        init: core.Init = core.Init("truncated_normal", 0.02)

    axes = {"weight": "outputs inputs", "bias": "outputs"}

    @classmethod
    def binds(cls, config: Config) -> dict[str, dict[str, str]]:
        """The norm runs over what comes out."""
        return {"norm": {"dim": "outputs"}}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.weight = self.parameter("weight", config.init)
        self.bias = self.parameter("bias", core.ZEROS)

    def folded(self) -> tuple[Tensor, Tensor]:
        """The weight and bias that act in evaluation mode."""
        scale, shift = self.norm.affine()
        return self.weight * scale[:, None], self.bias * scale + shift

    def forward(self, x: Tensor, act: Activation | None = None, add: Tensor | None = None) -> Tensor:
        """The product, its norm, then ``act``, then ``add``."""
        if not self.training:
            return linear(x, *self.folded(), act, add)
        y = self.norm(F.linear(x, self.weight, self.bias))
        y = y if act is None else ACTIVATIONS[act](y)
        return y if add is None else y + add

    def deployed(self) -> core.Part:
        """A plain linear layer."""
        weight, bias = self.folded()
        config = Linear.Config(inputs=self.config.inputs, outputs=self.config.outputs)
        return filled(config, {"weight": weight, "bias": bias})
