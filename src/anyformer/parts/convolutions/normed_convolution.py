"""A convolution with a bias of its own, a batch norm and an activation behind it, as stems and down-sampling have them."""

from typing import cast

from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.core.part import filled
from anyformer.ops.activation import ACTIVATIONS
from anyformer.ops.convolution import patch_convolution
from anyformer.ops.linear import Activation
from anyformer.parts.embeds.patch_embed import adapt_channels
from anyformer.parts.norms.batch_norm import BatchNorm


class NormedConvolution(core.Part, name="normed_convolution"):
    """``act(norm(convolution(x) + bias))``; in evaluation the norm is in filters and bias, which is computed on the way.

    Shapes: ``(batch, height, width, inputs) -> (batch, rows, columns, dim)`` with
    ``rows = (height + 2 * padding - kernel) // stride + 1``. Cost: ``inputs * dim * kernel^2`` multiply-adds an output
    token.
    """

    slot = "convolution"

    class Config(core.Config):
        """Without overlap there are no zeros around the grid, otherwise ``kernel // 2`` where ``padding`` is left open."""

        inputs: int = core.bound()
        dim: int = core.bound()
        kernel: int = 3
        stride: int = 1
        padding: int = core.derived(lambda c: 0 if c.kernel == c.stride else c.kernel // 2)
        bias: bool = True
        norm: core.Config | None = None
        activation: Activation | None = None
        init: core.Init = core.Init("uniform_fan_in")

    axes = {"weight": "dim inputs kernel kernel", "bias": "dim"}
    fixed = {"kernel": "its indices are places, not channels"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.weight = self.parameter("weight", config.init)
        self.bias = self.parameter("bias", core.ZEROS) if config.bias else None
        if not (self.norm is None or isinstance(self.norm, BatchNorm)):
            raise core.UsageError(
                f"a convolution takes in a batch norm, not {self.norm.name!r}; give that its own slot"
            )

    def adapted(self, tensor: str, source: Tensor, config: Config) -> Tensor:
        """Other input channels by ``adapt_channels``; another kernel by bicubic resampling of the filters."""
        source = adapt_channels(source, self.config.inputs) if config.inputs != self.config.inputs else source
        if config.kernel != self.config.kernel:
            source = F.interpolate(source, (self.config.kernel,) * 2, mode="bicubic", antialias=True)
        return source

    def filters(self) -> tuple[Tensor, Tensor | None]:
        """The filters and biases that act in evaluation mode."""
        if self.norm is None:
            return self.weight, self.bias
        scale, shift = self.norm.affine()
        return self.weight * scale[:, None, None, None], shift if self.bias is None else shift + scale * self.bias

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve; windows that lie side by side are a product."""
        config: NormedConvolution.Config = self.config
        if min(x.shape[1:3]) + 2 * config.padding < config.kernel:
            raise core.UsageError(
                f"a grid of {tuple(x.shape[1:3])} is smaller than the filters of {config.kernel}; give a larger image or "
                f"a smaller patch_size"
            )
        if config.kernel == config.stride and not config.padding:
            return patch_convolution(x, weight, bias)
        y = F.conv2d(x.movedim(-1, 1), weight, bias, stride=config.stride, padding=config.padding)
        return y.movedim(1, -1).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise, activate."""
        if self.training and self.norm is not None:
            y = self.norm(self.convolve(x, self.weight, self.bias))
        else:
            y = self.convolve(x, *self.filters())
        activation = self.config.activation
        return y if activation is None else ACTIVATIONS[activation](y)

    def deployed(self) -> core.Part:
        """Filters and biases without a norm."""
        if self.norm is None:
            return self
        weight, bias = self.filters()
        return filled(self.config.replace(norm=None, bias=True), {"weight": weight, "bias": cast(Tensor, bias)})
