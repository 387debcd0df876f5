"""Patch embedding by one convolution whose windows overlap."""

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.parts.embeds.patch_embed import adapt_channels


class OverlappedPatchEmbed(core.Embed, name="overlapped_patch_embed"):
    """Convolve the image with ``kernel`` x ``kernel`` filters every ``stride`` pixels, zeros around it.

    Shapes: ``(batch, channels, height, width) -> (batch, rows, columns, dim)`` with
    ``rows = (height + 2 * padding - kernel) // stride + 1``. Cost: ``channels * dim * kernel^2`` multiply-adds a token.
    """

    class Config(core.Config):
        """``padding`` is half the stride where it is left open; ``norm`` follows the convolution where it is given."""

        dim: int = core.bound()
        channels: int = 3
        kernel: int
        stride: int
        padding: int = core.derived(lambda c: c.stride // 2)
        norm: core.Config | None = None
        init: core.Init = core.Init("uniform_fan_in")

    axes = {"weight": "dim channels kernel kernel", "bias": "dim"}
    fixed = {"kernel": "its indices are places, not channels"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.weight = self.parameter("weight", config.init)
        self.bias = self.parameter("bias", core.ZEROS)

    def adapted(self, tensor: str, source: Tensor, config: Config) -> Tensor:
        """Other channels by :func:`adapt_channels`; another kernel by bicubic resampling of the filters."""
        if config.channels != self.config.channels:
            source = adapt_channels(source, self.config.channels)
        if config.kernel != self.config.kernel:
            source = F.interpolate(source, (self.config.kernel,) * 2, mode="bicubic", antialias=True)
        return source

    def forward(self, raw: Tensor) -> tuple[Tensor, core.Context]:
        """Convolve.

        Raises:
            UsageError: when the image is smaller than the filters.
        """
        config: OverlappedPatchEmbed.Config = self.config
        if min(raw.shape[2:]) + 2 * config.padding < config.kernel:
            raise core.UsageError(
                f"an image of {tuple(raw.shape[2:])} is smaller than the filters of {config.kernel}; give a smaller patch_size"
            )
        # channels_last memory in, channels_last out: contiguous features; with one channel torch gives channels-first
        images = raw.contiguous(memory_format=torch.channels_last)
        x = F.conv2d(images, self.weight, self.bias, stride=config.stride, padding=config.padding)
        x = x.movedim(1, -1).contiguous()
        if self.norm is not None:
            x = self.norm(x)
        return x, core.Context(layout=core.Layout(grid=(x.shape[1], x.shape[2])))
