"""Swin: a pyramid of attention in windows, shifted in every other layer so that windows exchange information.

Swin Transformer: Hierarchical Vision Transformer using Shifted Windows. Attention runs inside windows of M x M tokens with
a learned bias for every relative position (section 3.2, eq. 4); odd layers shift the windows by half, done by rolling the
grid and masking what was not adjacent (figure 4); between the stages, 2x2 neighbours merge (section 3.1).

Names: our ``mixer.table`` is their ``attn.relative_position_bias_table``, ``mixer.index`` and ``mixer.mask`` their buffers
``relative_position_index`` and ``attn_mask``; our ``stages.{i+1}.down`` is their ``layers.{i}.downsample``.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.core.keymap import KeyMap, Row, row
from anyformer.ops.attention import attention
from anyformer.parts.channel_mixers.mlp import MLP
from anyformer.parts.embeds.patch_embed import PatchEmbed
from anyformer.parts.heads.classifier import MeanPoolHead
from anyformer.parts.linear.linear import Linear
from anyformer.parts.norms.layer_norm import LayerNorm
from anyformer.parts.residuals.residual import PlainResidual
from anyformer.skeletons.blocks import PreNormBlock
from anyformer.skeletons.pyramid import Pyramid, Stage

PAPER = core.Paper(
    "swin",
    contributes=("model", "part"),
    deviations=(
        "The paper's embedding and merging have no norm; the official code has one after the embedding and one before the "
        "merging map, and so does this file.",
        "Grids that no window divides are padded at the bottom and right after the shift, as timm does; padded tokens are "
        "not masked. The official classifier refuses such grids.",
    ),
)

FAR = -100.0  # what the official mask adds to the logits of tokens that are no neighbours


def relative_index(rows: int, columns: int) -> Tensor:
    """For every pair of tokens of a window, the row of the bias table: ``(rows * columns, rows * columns)``."""
    place = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")).flatten(1)
    down, across = place[:, :, None] - place[:, None, :]
    return (down + rows - 1) * (2 * columns - 1) + across + columns - 1


def shift_mask(grid: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """What to add to the logits of shifted windows: ``(windows, tokens, tokens)``, 0 within a region, ``FAR`` across."""
    regions = torch.zeros(1, dtype=torch.int64)
    for size, w, s in zip(grid, window, shift, strict=True):
        place = torch.arange(size)
        part = (place >= size - w).long() + (place >= size - s).long() if s else torch.zeros_like(place)
        regions = regions[..., None] * 3 + part
    tokens = to_windows(regions.reshape(1, *grid, 1), window).flatten(1, 2)[0].squeeze(-1)
    tokens = tokens.reshape(-1, window[0] * window[1])
    return (tokens[:, :, None] != tokens[:, None, :]).float() * FAR


def to_windows(x: Tensor, window: tuple[int, int]) -> Tensor:
    """``(batch, height, width, channels)`` to ``(batch, windows, tokens, channels)``, both row by row."""
    batch, height, width, channels = x.shape
    rows, columns = window
    x = x.reshape(batch, height // rows, rows, width // columns, columns, channels)
    return x.transpose(2, 3).reshape(batch, (height // rows) * (width // columns), rows * columns, channels)


def from_windows(x: Tensor, window: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """The inverse of :func:`to_windows`."""
    rows, columns = window
    height, width = grid
    x = x.reshape(x.shape[0], height // rows, width // columns, rows, columns, x.shape[-1])
    return x.transpose(2, 3).reshape(x.shape[0], height, width, x.shape[-1])


class WindowAttention(core.TokenMixer, name="window_attention"):
    """Attention inside windows of ``rows`` x ``columns`` tokens, which lie ``shift`` tokens further; eq. 3 and 4.

    Shapes: ``(batch, height, width, dim)`` to the same. Cost: ``4 * dim * heads * head_dim`` multiply-adds a token for the
    products and ``2 * rows * columns * heads * head_dim`` for the attention: O(tokens).
    """

    class Config(core.Config):
        """``grid_rows`` and ``grid_columns``: the grid whose shift mask is kept; other grids get theirs on the way."""

        dim: int = core.bound()
        heads: int
        head_dim: int = core.derived(lambda c: c.dim // c.heads)
        scale: float = core.derived(lambda c: c.head_dim**-0.5)
        rows: int
        columns: int
        shift_rows: int = 0
        shift_columns: int = 0
        grid_rows: int
        grid_columns: int
        table_init: core.Init = core.Init("truncated_normal", 0.02)
        qkv: core.Config | None = core.linear()
        proj: core.Config | None = core.linear()

        @property
        def row_offsets(self) -> int:
            """How many rows two tokens of a window can lie apart, in both directions."""
            return 2 * self.rows - 1

        @property
        def column_offsets(self) -> int:
            """How many columns they can."""
            return 2 * self.columns - 1

        @property
        def tokens(self) -> int:
            """The number of tokens of a window."""
            return self.rows * self.columns

        @property
        def windows(self) -> int:
            """The number of windows on the grid whose mask is kept."""
            return -(-self.grid_rows // self.rows) * -(-self.grid_columns // self.columns)

    axes = {
        "table": "(row_offsets column_offsets) heads",
        "index": "tokens tokens",
        "mask": "windows tokens tokens",
        "qkv.weight": "(q:heads head_dim + k:heads head_dim + v:heads head_dim) dim",
        "proj.weight": "dim (heads head_dim)",
    }
    refuses = {"stream": "windows look at both sides of a token", "prefix": "needs a grid"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.table = self.parameter("table", config.table_init)
        self.register_buffer("index", relative_index(config.rows, config.columns), persistent=False)
        mask = self.mask_for((config.grid_rows, config.grid_columns))
        self.register_buffer("mask", mask, persistent=False)

    def mask_for(self, grid: tuple[int, int]) -> Tensor | None:
        """The shift mask of a grid, on its padded size; None where nothing is shifted."""
        config: WindowAttention.Config = self.config
        if not config.shift_rows and not config.shift_columns:
            return None
        padded = (-(-grid[0] // config.rows) * config.rows, -(-grid[1] // config.columns) * config.columns)
        return shift_mask(padded, (config.rows, config.columns), (config.shift_rows, config.shift_columns))

    def adapted(self, tensor: str, source: Tensor, config: Config) -> Tensor:
        """The bias table for another window, resampled bicubically as a picture a head."""
        if tensor != "table":
            return super().adapted(tensor, source, config)
        picture = source.T.reshape(1, -1, config.row_offsets, config.column_offsets).float()
        size = (self.config.row_offsets, self.config.column_offsets)
        resampled = F.interpolate(picture, size, mode="bicubic", align_corners=False)
        return resampled.flatten(2)[0].T.to(source.dtype)

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Shift, cut into windows, attend, put back."""
        config: WindowAttention.Config = self.config
        height, width = core.grid_of(ctx, self)
        window = (config.rows, config.columns)
        shift = (config.shift_rows, config.shift_columns)
        x = x.roll((-shift[0], -shift[1]), dims=(1, 2)) if any(shift) else x
        below, right = -height % config.rows, -width % config.columns
        x = F.pad(x, (0, 0, 0, right, 0, below)) if below or right else x
        tokens = to_windows(x, window)
        batch, windows, count, _ = tokens.shape
        qkv = self.qkv(tokens).view(batch, windows, count, 3, config.heads, config.head_dim)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).flatten(2, 3).unbind(0)  # (batch, windows * heads, tokens, head_dim)
        bias = self.table[self.index].permute(2, 0, 1)[None]
        kept = (height, width) == (config.grid_rows, config.grid_columns)
        mask = self.mask if kept else self.mask_for((height, width))
        bias = bias.expand(windows, -1, -1, -1) if mask is None else bias + mask.to(x)[:, None]
        mixed = attention(q, k, v, scale=config.scale, bias=bias.flatten(0, 1)[None])
        mixed = mixed.view(batch, windows, config.heads, count, config.head_dim).transpose(2, 3).flatten(3)
        x = from_windows(self.proj(mixed), window, (height + below, width + right))
        x = x[:, :height, :width] if below or right else x
        return x.roll(shift, dims=(1, 2)) if any(shift) else x


class PatchMerging(core.Down, name="patch_merging"):
    """The four tokens of each 2x2 square side by side, normalised, through one linear map; section 3.1.

    Odd grids get a row or column of zeros. Shapes: ``(batch, height, width, inputs) -> (batch, ceil(height / 2),
    ceil(width / 2), dim)``. Cost: ``inputs * dim`` multiply-adds an input token. The trace is the layout before.
    """

    class Config(core.Config):
        """``inputs`` channels become ``dim``."""

        inputs: int = core.bound()
        dim: int = core.bound()
        norm: core.Config
        reduction: core.Config = core.linear(bias=False)

    axes = {"reduction.weight": "dim (2 2 inputs)"}

    @classmethod
    def binds(cls, config: Config) -> dict[str, dict[str, str]]:
        """The norm runs over all four tokens' channels."""
        return {"norm": {"dim": "2 2 inputs"}}

    def forward(self, x: Tensor, ctx: core.Context) -> tuple[Tensor, core.Context, core.Layout | None]:
        """Merge; columns are the slower of the two inner indices, as in the official order."""
        height, width = core.grid_of(ctx, self)
        x = F.pad(x, (0, 0, 0, width % 2, 0, height % 2)) if height % 2 or width % 2 else x
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).permute(0, 1, 3, 4, 2, 5).flatten(3)
        layout = core.Layout(grid=(height // 2, width // 2))
        return self.reduction(self.norm(x)), dataclasses.replace(ctx, layout=layout), ctx.layout


_DEEP, _SHALLOW = (2, 2, 18, 2), (2, 2, 6, 2)
SIZES: dict[str, dict[str, Any]] = {
    "swin_tiny_patch4_window7_224": {"dim": 96, "depths": _SHALLOW, "heads": (3, 6, 12, 24), "window": 7, "image": 224},
    "swin_small_patch4_window7_224": {"dim": 96, "depths": _DEEP, "heads": (3, 6, 12, 24), "window": 7, "image": 224},
    "swin_base_patch4_window7_224": {"dim": 128, "depths": _DEEP, "heads": (4, 8, 16, 32), "window": 7, "image": 224},
    "swin_large_patch4_window7_224": {"dim": 192, "depths": _DEEP, "heads": (6, 12, 24, 48), "window": 7, "image": 224},
    "swin_base_patch4_window12_384": {"dim": 128, "depths": _DEEP, "heads": (4, 8, 16, 32), "window": 12, "image": 384},
    "swin_large_patch4_window12_384": {
        "dim": 192,
        "depths": _DEEP,
        "heads": (6, 12, 24, 48),
        "window": 12,
        "image": 384,
    },
    "swin_micro": {"dim": 48, "depths": (2, 2), "heads": (3, 6), "window": 4, "image": 32},
    "swin_mini": {"dim": 64, "depths": (2, 2, 2), "heads": (2, 4, 8), "window": 4, "image": 32},
}
SMALL = ("swin_micro", "swin_mini")  # not of the paper: for small images and tight budgets
SMALLEST_PATCH = 2  # one pixel is too little for a token that attends


def pattern(
    name: str,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    img_size: int | tuple[int, int] | None = None,
    patch_size: int = 4,
    drop_path_rate: float = 0.0,
) -> core.Config:
    """The pattern of a size; a window that is not smaller than the grid becomes the grid, without a shift."""
    size = SIZES[name]
    norm = LayerNorm.Config(eps=1e-5)
    # Small widths and short trainings need weights that keep the variance of what passes through them.
    linear = Linear.Config(init=core.Init("xavier_uniform")) if name in SMALL else None
    rates = iter(core.ramp(drop_path_rate, sum(size["depths"])))
    grid = tuple(side // patch_size for side in core.pair(img_size or size["image"]))
    stages: list[core.Config] = []
    for stage, (depth, heads) in enumerate(zip(size["depths"], size["heads"], strict=True)):
        grid = tuple(-(-side // 2) for side in grid) if stage else grid
        rows, columns = (min(size["window"], side) for side in grid)
        half = tuple(w // 2 if side > w else 0 for w, side in zip((rows, columns), grid, strict=True))
        blocks: list[core.Config] = []
        for index in range(depth):
            join = PlainResidual.Config(drop_path=next(rates))
            mixer = WindowAttention.Config(
                heads=heads,
                rows=rows,
                columns=columns,
                shift_rows=half[0] * (index % 2),
                shift_columns=half[1] * (index % 2),
                grid_rows=grid[0],
                grid_columns=grid[1],
                qkv=linear,
                proj=linear,
            )
            blocks.append(
                PreNormBlock.Config(
                    norm1=norm,
                    mixer=mixer,
                    residual1=join,
                    norm2=norm,
                    channel_mixer=MLP.Config(fc1=linear, fc2=linear),
                    residual2=join,
                )
            )
        down = PatchMerging.Config(norm=norm) if stage else None
        stages.append(Stage.Config(dim=size["dim"] * 2**stage, down=down, blocks=tuple(blocks)))
    return Pyramid.Config(
        embed=PatchEmbed.Config(channels=in_chans, patch=patch_size, norm=norm, init=core.Init("uniform_fan_in")),
        stages=tuple(stages),
        norm=norm,
        head=MeanPoolHead.Config(num_classes=num_classes),
    )


def data_config(name: str) -> dict[str, Any]:
    """What the published weights expect of an image."""
    side = SIZES[name]["image"]
    return {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "size": [side, side],
        "channels": 3,
        "interpolation": "bicubic",
        "crop": 1.0 if side == 384 else 0.9,
    }


_TABLE = "official model table"
PUBLISHED = {
    "swin_tiny_patch4_window7_224": core.Published(params=28e6, macs=4.5e9, at=(224, 224), source=_TABLE),
    "swin_small_patch4_window7_224": core.Published(params=50e6, macs=8.7e9, at=(224, 224), source=_TABLE),
    "swin_base_patch4_window7_224": core.Published(params=88e6, macs=15.4e9, at=(224, 224), source=_TABLE),
    "swin_large_patch4_window7_224": core.Published(params=197e6, macs=34.5e9, at=(224, 224), source=_TABLE),
    "swin_base_patch4_window12_384": core.Published(params=88e6, macs=47.1e9, at=(384, 384), source=_TABLE),
    "swin_large_patch4_window12_384": core.Published(params=197e6, macs=103.9e9, at=(384, 384), source=_TABLE),
}


def _keys(down: Row, more: tuple[Row, ...], head: str) -> KeyMap:
    theirs, ours = "layers.{s}.blocks.{j}.", "stages.{s}.blocks.{j}."
    return KeyMap(
        (
            row("patch_embed.proj.{p}", "embed.{p}"),
            row("patch_embed.norm.{p}", "embed.norm.{p}"),
            down,
            row(theirs + "norm1.{p}", ours + "norm1.{p}"),
            row(theirs + "attn.relative_position_bias_table", ours + "mixer.table"),
            row(theirs + "attn.qkv.{p}", ours + "mixer.qkv.{p}"),
            row(theirs + "attn.proj.{p}", ours + "mixer.proj.{p}"),
            row(theirs + "norm2.{p}", ours + "norm2.{p}"),
            row(theirs + "mlp.fc1.{p}", ours + "channel_mixer.fc1.{p}"),
            row(theirs + "mlp.fc2.{p}", ours + "channel_mixer.fc2.{p}"),
            row("norm.{p}", "norm.{p}"),
            row(head + ".{p}", "head.linear.{p}"),
            *more,
        )
    )


def _timm(spec: core.Config) -> KeyMap:
    norm = row("layers.{s}.downsample.norm.{p}", "stages.{s}.down.norm.{p}")
    reduction = row("layers.{s}.downsample.reduction.weight", "stages.{s}.down.reduction.weight")
    return _keys(norm, (reduction,), "head.fc")


def _official(spec: core.Config) -> KeyMap:
    norm = row("layers.{s}.downsample.norm.{p}", "stages.{s+1}.down.norm.{p}")
    reduction = row("layers.{s}.downsample.reduction.weight", "stages.{s+1}.down.reduction.weight")
    index = row("layers.{s}.blocks.{j}.attn.relative_position_index", "stages.{s}.blocks.{j}.mixer.index")
    mask = row("layers.{s}.blocks.{j}.attn_mask", "stages.{s}.blocks.{j}.mixer.mask")
    return _keys(norm, (reduction, index, mask), "head")


KEYS = {"timm": _timm, "official": _official}
