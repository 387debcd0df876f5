"""EfficientFormer: a pure Transformer as fast as MobileNet, whose features change their form only once.

EfficientFormer: Vision Transformers at MobileNet Speed. All but the last layers work on pictures of features ("4-D"):
pooling mixes tokens, as in PoolFormer, and perceptrons are 1 x 1 convolutions with batch norms, which fold. The last
layers of the last stage work on rows of tokens ("3-D"): attention with learned biases by distance, as in LeViT, layer
norms and plain perceptrons. Against PoolFormer the batch norms stand in the perceptrons, and the attention is new.

Names: our ``stages.{i}.blocks`` are their ``network.{2i}`` without its ``Flat``, ``stages.{i}.down`` their
``network.{2i-1}``, ``mixer.table`` their ``token_mixer.attention_biases``; ``head.label`` and ``head.teacher`` their
``head`` and ``dist_head``.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.core.keymap import KeyMap, Reshape, Row, row
from anyformer.ops.attention import attention
from anyformer.ops.linear import Activation
from anyformer.parts.channel_mixers.mlp import MLP
from anyformer.parts.convolutions.normed_convolution import NormedConvolution
from anyformer.parts.down.strided_down import StridedDown
from anyformer.parts.embeds.narrow_stem import NarrowStem
from anyformer.parts.heads.classifier import MeanPoolHead
from anyformer.parts.heads.distilled import DistilledScores
from anyformer.parts.linear.batch_norm_linear import BatchNormLinear
from anyformer.parts.linear.linear import Linear
from anyformer.parts.norms.batch_norm import BatchNorm
from anyformer.parts.norms.batch_norm_rows import batch_norm_rows
from anyformer.parts.norms.layer_norm import LayerNorm
from anyformer.parts.residuals.residual import ScaledResidual
from anyformer.parts.token_mixers.pooling import Pooling
from anyformer.skeletons.blocks import PreNormBlock
from anyformer.skeletons.coarse import coarse
from anyformer.skeletons.pyramid import Pyramid, Stage

PAPER = core.Paper(
    "efficientformer",
    contributes=("model", "part"),
    extends=("metaformer",),
    deviations=(
        "Attention biases are made for the grid of the image; the official code and timm know a grid of 7 x 7 alone.",
        "The search for these sizes by measured latency is not part of this file.",
    ),
)


def distances(rows: int, columns: int) -> Tensor:
    """For every pair of tokens of a grid, how far they lie apart: ``(tokens, tokens)``, rows apart times ``columns`` more."""
    place = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")).flatten(1)
    down, across = (place[:, :, None] - place[:, None, :]).abs()
    return down * columns + across


class DistanceBiasedAttention(core.TokenMixer, name="distance_biased_attention"):
    """Attention with a learned bias a head for every pair of distances, down and across, whatever their signs.

    LeViT's attention (arXiv:2104.01136) without its norms. Shapes: ``(batch, height, width, dim)`` to the same. Cost:
    ``dim * heads * 2 * (key_dim + value_dim)`` multiply-adds a token for the products, and
    ``tokens * heads * (key_dim + value_dim)`` for the attention: O(tokens^2) in all.
    """

    class Config(core.Config):
        """``rows`` and ``columns`` are those of the grid; values are wider than queries and keys."""

        dim: int = core.bound()
        heads: int = 8
        key_dim: int = 32
        value_dim: int = core.derived(lambda c: 4 * c.key_dim)
        scale: float = core.derived(lambda c: c.key_dim**-0.5)
        rows: int
        columns: int
        qkv: core.Config | None = core.linear()
        proj: core.Config | None = core.linear()

        @property
        def tokens(self) -> int:
            """The number of tokens of the grid."""
            return self.rows * self.columns

    axes = {
        "table": "heads (rows columns)",
        "index": "tokens tokens",
        "qkv.weight": "(heads (q:key_dim + k:key_dim + v:value_dim)) dim",
        "proj.weight": "dim (heads value_dim)",
    }
    fixed = dict.fromkeys(("rows", "columns"), "its indices are places, not channels")
    refuses = {
        "stream": "every token attends to all others, later ones too",
        "prefix": "needs a grid",
        "mask": "every place of the grid counts",
    }

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.table = self.parameter("table", core.ZEROS)
        self.register_buffer("index", distances(config.rows, config.columns), persistent=False)

    def adapted(self, tensor: str, source: Tensor, config: Config) -> Tensor:
        """The biases of another grid, resampled bicubically as a picture a head."""
        if tensor != "table":
            return super().adapted(tensor, source, config)
        picture = source.unflatten(1, (config.rows, config.columns))[None].float()
        size = (self.config.rows, self.config.columns)
        resampled = F.interpolate(picture, size, mode="bicubic", align_corners=False)
        return resampled[0].flatten(1).to(source.dtype)

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Attend over all tokens.

        Raises:
            UsageError: for another grid than the biases are for.
        """
        config: DistanceBiasedAttention.Config = self.config
        grid = core.grid_of(ctx, self)
        if tuple(grid) != (config.rows, config.columns):
            raise core.UsageError(
                f"the features lie on a grid of {tuple(grid)}, the attention biases are for {(config.rows, config.columns)}; "
                f"create the model with the img_size of these images, or adapt it"
            )
        qkv = self.qkv(x.flatten(1, -2)).unflatten(-1, (config.heads, -1)).transpose(1, 2)
        q, k, v = qkv.split((config.key_dim, config.key_dim, config.value_dim), dim=-1)
        mixed = attention(q, k, v, scale=config.scale, bias=self.table[:, self.index][None])
        return self.proj(mixed.transpose(1, 2).flatten(2)).view(x.shape)

    def scaled(self, scale: Tensor) -> bool:
        """By the last product."""
        return self.proj.scaled(scale)


class NormFreeBlock(core.Block, name="norm_free_block"):
    """``x = residual1(x, mixer(x))``, then ``x = residual2(x, channel_mixer(x))``: a "4-D" layer, whose norms are inside.

    Shapes: ``(batch, height, width, dim)`` to the same. Cost: that of the mixers.
    """

    class Config(core.Config):
        """One part a slot."""

        dim: int = core.bound()
        mixer: core.Config
        residual1: core.Config
        channel_mixer: core.Config
        residual2: core.Config

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """One layer."""
        x = self.residual1(x, self.mixer(x, ctx))
        return self.residual2(x, self.channel_mixer(x, ctx))

    def deployed(self) -> core.Part:
        """Branches scaled by their own weights, where they have any."""
        self.residual1 = self.residual1.folded(self.mixer)
        self.residual2 = self.residual2.folded(self.channel_mixer)
        return self


class DistilledMeanHead(core.Head, name="distilled_mean_head"):
    """The mean over tokens, then scores of two linear maps, one of which learns from a teacher.

    In training both come out, so that each has a loss of its own; in evaluation their mean. Without classes it gives the
    mean token. Shapes: ``(batch, *grid, dim) -> (batch, num_classes)``.
    """

    class Config(core.Config):
        """``num_classes`` = 0 leaves both linear maps out."""

        dim: int = core.bound()
        num_classes: int = 1000
        label: core.Config = core.linear()
        teacher: core.Config = core.linear()

    axes = {"label.weight": "num_classes dim", "teacher.weight": "num_classes dim"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.num_classes == 0:
            self.label = self.teacher = None

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor | DistilledScores:
        """Pool, score twice."""
        core.grid_of(ctx, self)
        pooled = x.flatten(1, -2).mean(dim=1)
        if self.label is None or self.teacher is None:
            return pooled
        label, teacher = self.label(pooled), self.teacher(pooled)
        return DistilledScores(label, teacher) if self.training else (label + teacher) / 2


# "attending": how many of the last layers attend; of ours none is distilled
SIZES: dict[str, dict[str, Any]] = {
    "efficientformer_l1": {"dims": (48, 96, 224, 448), "depths": (3, 2, 6, 4), "attending": 1, "image": 224},
    "efficientformer_l3": {"dims": (64, 128, 320, 512), "depths": (4, 4, 12, 6), "attending": 4, "image": 224},
    "efficientformer_l7": {"dims": (96, 192, 384, 768), "depths": (6, 6, 18, 8), "attending": 8, "image": 224},
    "efficientformer_micro": {"dims": (32, 64, 128), "depths": (2, 2, 2), "attending": 1, "image": 32},
    "efficientformer_mini": {"dims": (48, 96, 192), "depths": (2, 2, 4), "attending": 2, "image": 32},
}
SMALL = ("efficientformer_micro", "efficientformer_mini")  # not of the paper: for small images and tight budgets
SMALLEST_PATCH = 2  # four times the steps in the same minutes are worth more than single pixels


def pattern(
    name: str,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    img_size: int | tuple[int, int] | None = None,
    patch_size: int = 4,
    drop_path_rate: float = 0.0,
) -> core.Config:
    """The pattern of a size; ``patch_size`` is the stem's stride.

    Raises:
        UsageError: where ``patch_size`` is no power of two.
    """
    size = SIZES[name]
    halvings = patch_size.bit_length() - 1
    if patch_size != 2**halvings:
        raise core.UsageError(f"patch_size={patch_size}: the stem halves the grid, so give a power of two")
    small, last = name in SMALL, len(size["dims"]) - 1
    # a chain of convolutions that halve, and round up, is one division that rounds up
    rows, columns = (-(-side // (patch_size * 2**last)) for side in core.pair(img_size or size["image"]))
    # Small widths and short trainings need weights that keep the variance of what passes through them.
    init = core.Init("xavier_uniform") if small else core.Init("truncated_normal", 0.02)
    normed, plain = BatchNormLinear.Config(init=init), Linear.Config(init=init)
    batch_norm, layer_norm = BatchNorm.Config(), LayerNorm.Config(eps=1e-5)
    rates = iter(core.ramp(drop_path_rate, sum(size["depths"])))

    def layer(attends: bool) -> core.Config:
        join = ScaledResidual.Config(init=core.Init("constant", 0.1 if small else 1e-5), drop_path=next(rates))
        if not attends:
            channel_mixer = MLP.Config(fc1=normed, fc2=normed)
            return NormFreeBlock.Config(
                mixer=Pooling.Config(kernel=3), residual1=join, channel_mixer=channel_mixer, residual2=join
            )
        return PreNormBlock.Config(
            norm1=layer_norm,
            mixer=DistanceBiasedAttention.Config(rows=rows, columns=columns, qkv=plain, proj=plain),
            residual1=join,
            norm2=layer_norm,
            channel_mixer=MLP.Config(fc1=plain, fc2=plain),
            residual2=join,
        )

    def convolution(stride: int, activation: Activation | None = None) -> core.Config:
        return NormedConvolution.Config(kernel=3, stride=stride, norm=batch_norm, activation=activation)

    strides = (2,) * halvings + (1,) * (2 - halvings)
    whole = Pyramid.Config(
        embed=NarrowStem.Config(channels=in_chans, layers=tuple(convolution(stride, "relu") for stride in strides)),
        stages=tuple(
            Stage.Config(
                dim=dim,
                down=StridedDown.Config(convolution=convolution(2)) if stage else None,
                blocks=tuple(layer(stage == last and depth - i <= size["attending"]) for i in range(depth)),
            )
            for stage, (depth, dim) in enumerate(zip(size["depths"], size["dims"], strict=True))
        ),
        norm=layer_norm,
        head=(MeanPoolHead if small else DistilledMeanHead).Config(num_classes=num_classes),
    )
    return coarse(whole, in_chans, patch_size) if small else whole


def data_config(name: str) -> dict[str, Any]:
    """What the published weights expect of an image."""
    side = SIZES[name]["image"]
    return {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "size": [side, side],
        "channels": 3,
        "interpolation": "bicubic",
        "crop": 0.875,
    }


_TABLE = "timm's table of inference benchmarks, results/benchmark-infer-amp-nchw-pt113-cu117-rtx3090.csv"
PUBLISHED = {
    "efficientformer_l1": core.Published(params=12.29e6, macs=1.30e9, at=(224, 224), source=_TABLE),
    "efficientformer_l3": core.Published(params=31.41e6, macs=3.93e9, at=(224, 224), source=_TABLE),
    "efficientformer_l7": core.Published(params=82.23e6, macs=10.17e9, at=(224, 224), source=_TABLE),
}


def _pictured(theirs: str, ours: str, dim: int) -> tuple[Row, ...]:
    """Layers on pictures: their products are 1 x 1 convolutions."""
    wide, narrow = Reshape((-1, dim, 1, 1)), Reshape((dim, -1, 1, 1))
    return (
        row(theirs + "mlp.fc1.weight", ours + "channel_mixer.fc1.weight", wide),
        row(theirs + "mlp.fc2.weight", ours + "channel_mixer.fc2.weight", narrow),
        row(theirs + "mlp.fc{n}.bias", ours + "channel_mixer.fc{n}.bias"),
        *batch_norm_rows(theirs + "mlp.norm{n}", ours + "channel_mixer.fc{n}.norm"),
    )


def _attending(theirs: str, ours: str) -> tuple[Row, ...]:
    """Layers on rows of tokens."""
    return (
        row(theirs + "norm{n}.{p}", ours + "norm{n}.{p}"),
        row(theirs + "token_mixer.attention_biases", ours + "mixer.table"),
        row(theirs + "token_mixer.attention_bias_idxs", ours + "mixer.index"),
        row(theirs + "token_mixer.qkv.{p}", ours + "mixer.qkv.{p}"),
        row(theirs + "token_mixer.proj.{p}", ours + "mixer.proj.{p}"),
        row(theirs + "mlp.fc{n}.{p}", ours + "channel_mixer.fc{n}.{p}"),
    )


def _layers(spec: Any, stage: int, theirs: str, scale: str) -> list[Row]:
    """The layers of a stage; where they begin to attend, a module without tensors has a place in their row."""
    rows: list[Row] = []
    blocks = spec.stages[stage].blocks
    plain = sum(block.part is NormFreeBlock for block in blocks)
    if stage < len(spec.stages) - 1:
        numbered = [("{j}", "{j}", True)]
    else:
        numbered = [(str(j + (j >= plain)), str(j), j < plain) for j in range(len(blocks))]
    for place, index, pictured in numbered:
        block, ours = f"{theirs}{place}.", f"stages.{stage}.blocks.{index}."
        rows.append(row(block + scale, ours + "residual{n}.gamma"))
        rows += _pictured(block, ours, spec.stages[stage].dim) if pictured else _attending(block, ours)
    return rows


def _ends(spec: Any, stem: tuple[tuple[str, str], ...], teacher: str) -> list[Row]:
    """Stem, last norm and head, whose scores are of one kind or of two."""
    label = "head.linear.{p}" if isinstance(spec.head, MeanPoolHead.Config) else "head.label.{p}"
    rows = [row("norm.{p}", "norm.{p}"), row("head.{p}", label), row(teacher + ".{p}", "head.teacher.{p}")]
    for index, (convolution, norm) in enumerate(stem):
        rows.append(row(convolution + ".{p}", f"embed.layers.{index}.{{p}}"))
        rows += batch_norm_rows(norm, f"embed.layers.{index}.norm")
    return rows


def _timm(spec: Any) -> KeyMap:
    rows = _ends(spec, (("stem.conv1", "stem.norm1"), ("stem.conv2", "stem.norm2")), "head_dist")
    rows.append(row("stages.{s}.downsample.conv.{p}", "stages.{s}.down.convolution.{p}"))
    rows += batch_norm_rows("stages.{s}.downsample.norm", "stages.{s}.down.convolution.norm")
    for stage in range(len(spec.stages)):
        rows += _layers(spec, stage, f"stages.{stage}.blocks.", "ls{n}.gamma")
    return KeyMap(tuple(rows))


def _official(spec: Any) -> KeyMap:
    rows = _ends(spec, (("patch_embed.0", "patch_embed.1"), ("patch_embed.3", "patch_embed.4")), "dist_head")
    for stage in range(len(spec.stages)):
        rows += _layers(spec, stage, f"network.{2 * stage}.", "layer_scale_{n}")
        if stage:
            down, ours = f"network.{2 * stage - 1}", f"stages.{stage}.down.convolution"
            rows += [row(down + ".proj.{p}", ours + ".{p}"), *batch_norm_rows(down + ".norm", ours + ".norm")]
    return KeyMap(tuple(rows))


KEYS = {"timm": _timm, "official": _official}
