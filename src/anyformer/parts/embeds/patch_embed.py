"""Patch embeddings: non-overlapping patches of an image through one linear map."""

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.ops.convolution import image_patch_convolution


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Filters ``(outputs, inputs, h, w)`` for another number of input channels, keeping the mean response.

    One channel takes the sum over all; more channels repeat the filters, scaled so that equal channels give the same.
    """
    if channels == 1:
        return weight.sum(dim=1, keepdim=True)
    old = weight.shape[1]
    return weight[:, torch.arange(channels) % old] * (old / channels)


class PatchEmbed(core.Embed, name="patch_embed"):
    """Cut the image into ``patch`` x ``patch`` squares and map each to ``dim`` channels; what does not fill one is cut off.

    Shapes: ``(batch, channels, height, width) -> (batch, height // patch, width // patch, dim)``. Cost:
    ``channels * dim`` multiply-adds a pixel.
    """

    class Config(core.Config):
        """``norm`` follows the map where it is given."""

        dim: int = core.bound()
        channels: int = 3
        patch: int
        norm: core.Config | None = None
        init: core.Init = core.Init("truncated_normal", 0.02)
        bias_init: core.Init = core.ZEROS

    axes = {"weight": "dim channels patch patch", "bias": "dim"}
    fixed = {"patch": "its indices are places, not channels"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.weight = self.parameter("weight", config.init)
        self.bias = self.parameter("bias", config.bias_init)

    def adapted(self, tensor: str, source: Tensor, config: Config) -> Tensor:
        """Other channels by :func:`adapt_channels`; another patch size by bicubic resampling of the filters."""
        source = adapt_channels(source, self.config.channels) if config.channels != self.config.channels else source
        if config.patch != self.config.patch:
            source = F.interpolate(source, (self.config.patch, self.config.patch), mode="bicubic", antialias=True)
        return source

    def forward(self, raw: Tensor) -> tuple[Tensor, core.Context]:
        """Map the patches."""
        if min(raw.shape[2:]) < self.config.patch:
            raise core.UsageError(f"an image of {tuple(raw.shape[2:])} holds no patch of {self.config.patch}")
        x = image_patch_convolution(raw, self.weight, self.bias)
        if self.norm is not None:
            x = self.norm(x)
        return x, core.Context(layout=core.Layout(grid=(x.shape[1], x.shape[2])))


class PrefixedPatchEmbed(core.Embed, name="prefixed_patch_embed"):
    """Patches after ``prefix`` learned tokens, with a learned position added to every token (arXiv:2010.11929, eq. 1).

    Shapes: ``(batch, channels, height, width) -> (batch, prefix + rows * columns, dim)``.
    """

    class Config(core.Config):
        """``rows`` and ``columns`` are the grid that the position table is for."""

        dim: int = core.bound()
        patch: core.Config
        prefix: int = 1
        rows: int
        columns: int
        prefix_init: core.Init = core.Init("normal", 1e-6)
        position_init: core.Init = core.Init("truncated_normal", 0.02)

    axes = {"prefix": "1 prefix dim", "positions": "1 (prefix + rows columns) dim"}
    fixed = dict.fromkeys(("prefix", "rows", "columns"), "its indices are tokens, not channels")

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.prefix = self.parameter("prefix", config.prefix_init)
        self.positions = self.parameter("positions", config.position_init)

    def adapted(self, tensor: str, source: Tensor, config: Config) -> Tensor:
        """Positions of the grid resampled (bicubic, antialiased) in float32; those of the prefix as they are."""
        if tensor != "positions":
            return super().adapted(tensor, source, config)
        layout = core.Layout(grid=(config.rows, config.columns), prefix=config.prefix)
        prefix, grid = layout.split(source)
        resampled = F.interpolate(
            grid.movedim(-1, 1).float(), (self.config.rows, self.config.columns), mode="bicubic", antialias=True
        )
        return torch.cat((prefix, resampled.movedim(1, -1).flatten(1, 2).to(source.dtype)), dim=1)

    def forward(self, raw: Tensor) -> tuple[Tensor, core.Context]:
        """Map the patches, put the prefix before them, add the positions.

        Raises:
            UsageError: when the image gives another grid than the position table is for.
        """
        config: PrefixedPatchEmbed.Config = self.config
        patches, ctx = self.patch(raw)
        if patches.shape[1:3] != (config.rows, config.columns):
            raise core.UsageError(
                f"the image gives a grid of {tuple(patches.shape[1:3])}, this model's positions are for "
                f"{(config.rows, config.columns)}; create it with img_size={tuple(raw.shape[2:])} or adapt it"
            )
        layout = core.Layout(grid=(config.rows, config.columns), prefix=config.prefix)
        x = torch.cat((self.prefix.expand(raw.shape[0], -1, -1), patches.flatten(1, 2)), dim=1) + self.positions
        return x, dataclasses.replace(ctx, layout=layout)
