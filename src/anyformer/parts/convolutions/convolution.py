"""Convolutions with a batch norm behind them where one is given, which is folded into their filters in evaluation."""

from typing import cast

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.core.part import filled
from anyformer.ops.convolution import strided_pointwise
from anyformer.parts.embeds.patch_embed import adapt_channels
from anyformer.parts.norms.batch_norm import BatchNorm


class Filters(core.Part):
    """What convolutions share: ``convolution(x) -> x`` with zeros around the grid, ``kernel // 2`` of them.

    The norm comes in the place of the bias. In evaluation it is an affine map, so the filters take it in on the way.
    """

    slot = "convolution"
    fixed = {"kernel": "its indices are places, not channels"}

    def __init__(self, config: core.Config) -> None:
        super().__init__(config)
        self.weight = self.parameter("weight", self.config.init)
        self.bias = self.parameter("bias", core.ZEROS) if self.norm is None else None
        if not (self.norm is None or isinstance(self.norm, BatchNorm)):
            raise core.UsageError(
                f"a convolution takes in a batch norm, not {self.norm.name!r}; give that its own slot"
            )
        if self.config.kernel % 2 == 0:
            raise core.UsageError(f"a kernel that leaves the grid as it is is odd, not {self.config.kernel}")

    def filters(self) -> tuple[Tensor, Tensor]:
        """The filters and biases that act in evaluation mode."""
        if self.norm is None:
            return self.weight, cast(Tensor, self.bias)
        scale, shift = self.norm.affine()
        return self.weight * scale[:, None, None, None], shift

    def diagonal(self, scale: Tensor) -> Tensor:
        """The 1 x 1 filters that multiply each channel by a number."""
        raise NotImplementedError

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve with filters of any odd kernel, with the stride and the grouping of the part."""
        groups = x.shape[-1] // weight.shape[1]
        if weight.shape[-1] == 1 and groups == 1:
            return strided_pointwise(x, weight.flatten(1), bias, stride=self.config.stride)
        y = F.conv2d(
            x.movedim(-1, 1), weight, bias, stride=self.config.stride, padding=weight.shape[-1] // 2, groups=groups
        )
        return y.movedim(1, -1).contiguous()

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, normalise."""
        if self.training and self.norm is not None:
            return self.norm(self.convolve(x, self.weight, None))
        return self.convolve(x, *self.filters())

    def deployed(self) -> core.Part:
        """Filters and biases without a norm."""
        return self if self.norm is None else self.plain(*self.filters())

    def plain(self, weight: Tensor, bias: Tensor) -> core.Part:
        """The same kind of part, without a norm, with these tensors."""
        config = self.config.replace(kernel=weight.shape[-1], norm=None)
        return filled(config, {"weight": weight, "bias": bias})


class Convolution(Filters, name="convolution"):
    """Every output channel sees all input channels of its ``kernel`` x ``kernel`` neighbourhood.

    Shapes: ``(batch, height, width, inputs) -> (batch, ceil(height / stride), ceil(width / stride), dim)``. Cost:
    ``inputs * dim * kernel^2`` multiply-adds an output token.
    """

    class Config(core.Config):
        """``norm`` is a batch norm, or absent, and then there is a bias."""

        inputs: int = core.bound()
        dim: int = core.bound()
        kernel: int = 3
        stride: int = 1
        norm: core.Config | None = None
        init: core.Init = core.Init("uniform_fan_in")

    axes = {"weight": "dim inputs kernel kernel", "bias": "dim"}

    def adapted(self, tensor: str, source: Tensor, config: Config) -> Tensor:
        """Other input channels by summing or spreading the filters; see ``adapt_channels``."""
        return adapt_channels(source, self.config.inputs)

    def diagonal(self, scale: Tensor) -> Tensor:
        """A diagonal matrix."""
        return (torch.eye(len(scale), dtype=scale.dtype, device=scale.device) * scale)[:, :, None, None]


class GroupedConvolution(Filters, name="grouped_convolution"):
    """Every input channel is convolved with ``multiplier`` filters of its own, whose outputs lie beside one another.

    Shapes: ``(batch, height, width, inputs) -> (batch, ceil(height / stride), ceil(width / stride), inputs * multiplier)``.
    Cost: ``inputs * multiplier * kernel^2`` multiply-adds an output token.
    """

    class Config(core.Config):
        """``norm`` is a batch norm, or absent, and then there is a bias."""

        inputs: int = core.bound()
        multiplier: int = core.bound()
        kernel: int = 3
        stride: int = 1
        norm: core.Config | None = None
        init: core.Init = core.Init("uniform_fan_in")

    axes = {"weight": "(inputs multiplier) 1 kernel kernel", "bias": "(inputs multiplier)"}

    @classmethod
    def binds(cls, config: Config) -> dict[str, dict[str, str]]:
        """The norm runs over what comes out."""
        return {"norm": {"dim": "inputs multiplier"}}

    def diagonal(self, scale: Tensor) -> Tensor:
        """One number a filter."""
        return scale[:, None, None, None]
