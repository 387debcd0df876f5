"""Parallel convolutions that one convolution replaces (RepVGG, arXiv:2101.03697; MobileOne, arXiv:2206.04040)."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.parts.convolutions.convolution import Filters


def together(filters: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The sum of convolutions as one: filters of any odd kernels with their centres on one another, biases added."""
    widest = max(weight.shape[-1] for weight, _ in filters)
    padded = [F.pad(weight, ((widest - weight.shape[-1]) // 2,) * 4) for weight, _ in filters]
    return sum(padded[1:], padded[0]), sum((bias for _, bias in filters[1:]), filters[0][1])


class ParallelConvolution(core.Part, name="parallel_convolution"):
    """The sum of convolutions of one stride with kernels of several sizes, and of a norm of the input where one is given.

    Trained as branches, each with a batch norm; in evaluation all are one convolution with the widest kernel (RepVGG,
    section 3.3), computed on the way.

    Shapes: ``(batch, height, width, inputs) -> (batch, ceil(height / stride), ceil(width / stride), dim)``. Cost: that of
    the widest branch in evaluation, of all of them in training.
    """

    slot = "convolution"

    class Config(core.Config):
        """``branches`` are of one kind; ``multiplier`` is for those that convolve each channel by itself."""

        inputs: int = core.bound()
        dim: int = core.bound()
        multiplier: int = core.bound()
        branches: tuple[core.Config, ...]
        identity: core.Config | None = None

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        kinds = {(branch.part, getattr(branch, "stride", 0)) for branch in config.branches}
        if len(kinds) != 1 or not isinstance(self.branches[0], Filters):
            raise core.UsageError("parallel convolutions are of one kind and of one stride, and there is at least one")
        if config.identity is not None and (self.branches[0].config.stride > 1 or config.inputs != config.dim):
            raise core.UsageError("an identity beside convolutions needs a stride of 1 and as many channels out as in")

    def filters(self) -> tuple[Tensor, Tensor]:
        """The one convolution that acts in evaluation mode."""
        filters = [branch.filters() for branch in self.branches]
        if self.identity is not None:
            scale, shift = self.identity.affine()
            filters.append((self.branches[0].diagonal(scale), shift))
        return together(filters)

    def forward(self, x: Tensor) -> Tensor:
        """Add up the branches."""
        if not self.training:
            return self.branches[0].convolve(x, *self.filters())
        y = self.branches[0](x)
        for branch in self.branches[1:]:
            y = y + branch(x)
        return y if self.identity is None else y + self.identity(x)

    def deployed(self) -> core.Part:
        """One convolution."""
        return self.branches[0].plain(*self.filters())


class MobileOne(core.Part, name="mobile_one"):
    """``gelu(squeeze(convolution(x)))``: MobileOne's block, section 3.2, where the activation was a ReLU.

    Shapes and cost: those of the convolution.
    """

    slot = "convolution"

    class Config(core.Config):
        """``squeeze`` re-weighs the channels where it is given."""

        inputs: int = core.bound()
        dim: int = core.bound()
        multiplier: int = core.bound()
        convolution: core.Config
        squeeze: core.Config | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, re-weigh, activate."""
        y = self.convolution(x)
        return F.gelu(y if self.squeeze is None else self.squeeze(y))
