"""The plain linear layer, the default of every linear slot."""

from torch import Tensor

from anyformer import core
from anyformer.core.part import filled
from anyformer.ops.linear import Activation, linear


class Linear(core.LinearPart, name="linear"):
    """``y = x W^T + b`` over the last axis, with an activation and an addend fused where a kernel can.

    Shapes: ``(..., inputs) -> (..., outputs)``. Cost: ``inputs * outputs`` multiply-adds a token.
    """

    class Config(core.Config):
        """``inputs`` and ``outputs`` come from the slot; initialisers are those of the weight and of the bias."""

        inputs: int = core.bound()
        outputs: int = core.bound()
        bias: bool = True
        init: core.Init = core.Init("truncated_normal", 0.02)
        bias_init: core.Init = core.ZEROS

    axes = {"weight": "outputs inputs", "bias": "outputs"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.weight = self.parameter("weight", config.init)
        self.bias = self.parameter("bias", config.bias_init) if config.bias else None

    def forward(self, x: Tensor, act: Activation | None = None, add: Tensor | None = None) -> Tensor:
        """The product, then ``act``, then ``add``."""
        return linear(x, self.weight, self.bias, act, add)

    def scaled(self, scale: Tensor) -> bool:
        """By rows."""
        self.weight *= scale[:, None]
        if self.bias is not None:
            self.bias *= scale
        return True

    def after(self, scale: Tensor, shift: Tensor) -> core.Part:
        """The linear layer that gives for ``x`` what this one gives for ``x * scale + shift``; it has a bias."""
        bias = self.weight @ shift if self.bias is None else self.weight @ shift + self.bias
        return filled(self.config.replace(bias=True), {"weight": self.weight * scale, "bias": bias})
