"""Visformer: a Transformer taken step by step towards a convolutional network, and stopped where both help.

Visformer: The Vision-friendly Transformer. Three stages of falling resolution; the first has layers of grouped 3 x 3
convolutions between two products and no attention, the later ones attend globally. Batch norms stand in the place of
layer norms, the mean over places in that of the class token, and learned positions at the start of every stage. Against
ViT the stages and the convolutions are new, against ResNet the attention.

Names: our ``embed.tokens.layers`` are their ``stem`` and ``patch_embed1``, ``stages.{i}.down.down`` their
``patch_embed{i+1}``, the ``position`` beside it their ``pos_embed{i+1}``; ``channel_mixer.fc1`` and ``fc2`` are their
``mlp.conv1`` and ``conv3``, ``channel_mixer.weight`` their ``conv2``.
"""

from typing import Any

from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.core.keymap import KeyMap, Permute, Reshape, Row, row
from anyformer.ops.activation import ACTIVATIONS
from anyformer.ops.linear import Activation
from anyformer.parts.channel_mixers.mlp import MLP
from anyformer.parts.convolutions.normed_convolution import NormedConvolution
from anyformer.parts.down.strided_down import StridedDown
from anyformer.parts.embeds.convolutional_stem import halving_stem
from anyformer.parts.embeds.narrow_stem import NarrowStem
from anyformer.parts.embeds.positioned_embed import PositionedEmbed
from anyformer.parts.heads.classifier import MeanPoolHead
from anyformer.parts.linear.linear import Linear
from anyformer.parts.norms.batch_norm import BatchNorm
from anyformer.parts.norms.batch_norm_rows import batch_norm_rows
from anyformer.parts.positions.learned_positions import LearnedPositions
from anyformer.parts.residuals.residual import PlainResidual
from anyformer.parts.token_mixers.attention import Attention
from anyformer.skeletons.coarse import COARSE
from anyformer.skeletons.pyramid import Pyramid, Stage

PAPER = core.Paper(
    "visformer",
    contributes=("model", "part"),
    extends=("vit",),
    deviations=(
        "The official code scales queries and keys by the fourth root of the head's width each; here the logits are scaled.",
        "Convolutions start uniform in their fan in, where the official code starts them normal in their fan out.",
        "The names net1 to net7 of the official code, which step from DeiT to this network, are not built.",
    ),
)


class GroupedConvolutionMLP(core.ChannelMixer, name="grouped_convolution_mlp"):
    """``fc2(act(convolution(act(fc1(x)))))``: a perceptron with ``groups`` groups of convolutions in its middle.

    Shapes: ``(batch, height, width, dim)`` to the same. Cost: ``hidden * (2 * dim + width * kernel^2)`` multiply-adds a
    token.
    """

    class Config(core.Config):
        """``hidden`` is ``ratio`` times ``dim`` where it is left open; each group has ``width`` of these channels."""

        dim: int = core.bound()
        ratio: float = 2.0
        hidden: int = core.derived(lambda c: int(c.dim * c.ratio))
        groups: int = 8
        width: int = core.derived(lambda c: c.hidden // c.groups)
        kernel: int = 3
        activation: Activation = "gelu"
        init: core.Init = core.Init("uniform_fan_in")
        fc1: core.Config | None = core.linear(bias=False)
        fc2: core.Config | None = core.linear(bias=False)

    axes = {
        "weight": "(groups width) width kernel kernel",
        "fc1.weight": "hidden dim",
        "fc2.weight": "dim hidden",
    }
    definitions = {"hidden": "groups width"}
    fixed = {"kernel": "its indices are places, not channels"}
    refuses = {"prefix": "needs a grid", "mask": "every place of the grid counts"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.weight = self.parameter("weight", config.init)

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Widen, activate, convolve, activate, narrow."""
        config: GroupedConvolutionMLP.Config = self.config
        core.grid_of(ctx, self)
        hidden = self.fc1(x, config.activation).movedim(-1, 1)
        hidden = F.conv2d(hidden, self.weight, padding=config.kernel // 2, groups=config.groups)
        return self.fc2(ACTIVATIONS[config.activation](hidden).movedim(1, -1).contiguous())

    def scaled(self, scale: Tensor) -> bool:
        """By the last product."""
        return self.fc2.scaled(scale)


class VisformerBlock(core.Block, name="visformer_block"):
    """A Transformer layer whose norms are batch norms, or its second half alone.

    Shapes: ``(batch, height, width, dim)`` to the same. Cost: that of the mixers.
    """

    class Config(core.Config):
        """``mixer``, ``norm1`` and ``residual1`` are given or absent together, and a norm where a mixer has taken it in."""

        dim: int = core.bound()
        norm1: core.Config | None = None
        mixer: core.Config | None = None
        residual1: core.Config | None = None
        norm2: core.Config | None = None
        channel_mixer: core.Config
        residual2: core.Config

    norm1: core.Part | None
    norm2: core.Part | None

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """One layer."""
        if self.mixer is not None:
            x = self.residual1(x, self.mixer(x if self.norm1 is None else self.norm1(x), ctx))
        return self.residual2(x, self.channel_mixer(x if self.norm2 is None else self.norm2(x), ctx))

    def deployed(self) -> core.Part:
        """The norm before grouped convolutions in the product behind it.

        The others stay: the biases that took them in would be more numbers than they are, and save next to no time on
        the small grids of the later stages.
        """
        mixer = self.channel_mixer
        foldable = isinstance(mixer, GroupedConvolutionMLP) and isinstance(mixer.fc1, Linear)
        if foldable and isinstance(self.norm2, BatchNorm):
            mixer.fc1 = mixer.fc1.after(*self.norm2.affine())
            self.norm2, self.config = None, self.config.replace(norm2=None)
        return self


class PositionedDown(core.Down, name="positioned_down"):
    """``down(x) + position``. Shapes, cost and trace: those of ``down``."""

    class Config(core.Config):
        """``position`` gives a vector a place of the smaller grid."""

        inputs: int = core.bound()
        dim: int = core.bound()
        down: core.Config
        position: core.Config

    def forward(self, x: Tensor, ctx: core.Context) -> tuple[Tensor, core.Context, Any]:
        """Make it smaller, add."""
        x, ctx, trace = self.down(x, ctx)
        return x + self.position(core.grid_of(ctx, self), x), ctx, trace


_DEPTHS = (7, 4, 4)
SIZES: dict[str, dict[str, Any]] = {
    "visformer_tiny": {"dims": (96, 192, 384), "depths": _DEPTHS, "hidden": 16, "heads": 3, "patch": 8, "image": 224},
    "visformer_small": {"dims": (192, 384, 768), "depths": _DEPTHS, "hidden": 32, "heads": 6, "patch": 8, "image": 224},
    "visformer_micro": {"dims": (32, 64, 128), "depths": (2, 1, 1), "hidden": 16, "heads": 2, "patch": 4, "image": 32},
    "visformer_mini": {"dims": (48, 96, 192), "depths": (3, 2, 2), "hidden": 16, "heads": 3, "patch": 4, "image": 32},
}
SMALL = ("visformer_micro", "visformer_mini")  # not of the paper: for small images and tight budgets
SMALLEST_PATCH = 2  # four times the steps in the same minutes are worth more than single pixels


def pattern(
    name: str,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    img_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    drop_path_rate: float = 0.0,
) -> core.Config:
    """The pattern of a size; ``patch_size`` is the stride of the whole stem, a convolution's 2 and a patch's rest.

    Raises:
        UsageError: for a stride above 1 that is odd, or an image without a token for the last stage.
    """
    size = SIZES[name]
    patch = patch_size or size["patch"]
    halved = 2 if patch > 1 else 1
    if patch % halved:
        raise core.UsageError(f"patch_size={patch}: a convolution of the stem halves the grid, so give an even one")
    norm, bare = BatchNorm.Config(), Linear.Config(bias=False)
    # Small widths and short trainings need weights that keep the variance of what passes through them.
    linear = bare.replace(init=core.Init("xavier_uniform")) if name in SMALL else bare
    height, width = core.pair(img_size or size["image"])
    small, rest = name in SMALL and patch >= COARSE, patch // halved
    grid = [-(-side // patch) if small else -(-side // halved) // rest for side in (height, width)]
    if min(grid) < 2 ** (len(size["dims"]) - 1):
        raise core.UsageError(
            f"{name}: an image of {height} x {width} leaves no token for the last stage; give a smaller patch_size"
        )
    rates = iter(core.ramp(drop_path_rate, sum(size["depths"])))

    def positions(stage: int) -> core.Config:
        rows, columns = (side // 2**stage for side in grid)
        return LearnedPositions.Config(rows=rows, columns=columns)

    def layer(stage: int) -> core.Config:
        join = PlainResidual.Config(drop_path=next(rates))
        if not stage:
            mixer = GroupedConvolutionMLP.Config(fc1=linear, fc2=linear)
            return VisformerBlock.Config(norm2=norm, channel_mixer=mixer, residual2=join)
        return VisformerBlock.Config(
            norm1=norm,
            mixer=Attention.Config(heads=size["heads"], qkv=linear, proj=linear),
            residual1=join,
            norm2=norm,
            channel_mixer=MLP.Config(fc1=linear, fc2=linear),
            residual2=join,
        )

    def smaller(stage: int) -> core.Config:
        halving = NormedConvolution.Config(kernel=2, stride=2, norm=norm)
        return PositionedDown.Config(down=StridedDown.Config(convolution=halving), position=positions(stage))

    first = NormedConvolution.Config(kernel=7, stride=halved, bias=False, norm=norm, activation="relu")
    second = NormedConvolution.Config(kernel=rest, stride=rest, norm=norm)
    stem = NarrowStem.Config(channels=in_chans, hidden=size["hidden"], layers=(first, second))
    return Pyramid.Config(
        embed=PositionedEmbed.Config(
            tokens=halving_stem(in_chans, patch) if small else stem,
            position=positions(0),
        ),
        stages=tuple(
            Stage.Config(
                dim=dim,
                down=smaller(stage) if stage else None,
                blocks=tuple(layer(stage) for _ in range(depth)),
            )
            for stage, (depth, dim) in enumerate(zip(size["depths"], size["dims"], strict=True))
        ),
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
        "crop": 0.875,
    }


_TABLE = "official model table"
PUBLISHED = {
    "visformer_tiny": core.Published(params=10.3e6, macs=1.3e9, at=(224, 224), source=_TABLE),
    "visformer_small": core.Published(params=40.2e6, macs=4.9e9, at=(224, 224), source=_TABLE),
}


def _keys(spec: Any, norm: str) -> KeyMap:
    """Both formats have the same names but for what ``norm`` puts behind a batch norm's; products are 1 x 1 convolutions."""
    stem = "embed.tokens.layers"
    rows: list[Row] = [
        row("stem.0.weight", f"{stem}.0.weight"),
        *batch_norm_rows(f"stem.1{norm}", f"{stem}.0.norm"),
        *batch_norm_rows(f"norm{norm}", "norm"),
        row("head.{p}", "head.linear.{p}"),
    ]
    for index, stage in enumerate(spec.stages):
        patch = f"stages.{index}.down.down.convolution" if index else f"{stem}.1"
        holder, place = ("embed", spec.embed) if not index else (f"stages.{index}.down", stage.down)
        picture = Permute((0, 2, 3, 1), unflat=(1, place.position.rows, place.position.columns, stage.dim))
        theirs, ours = f"stage{index + 1}.{{j}}.", f"stages.{index}.blocks.{{j}}."
        wide, narrow = Reshape((-1, stage.dim, 1, 1)), Reshape((stage.dim, -1, 1, 1))
        rows += [
            row(f"patch_embed{index + 1}.proj.{{p}}", f"{patch}.{{p}}"),
            *batch_norm_rows(f"patch_embed{index + 1}.norm{norm}", f"{patch}.norm"),
            row(f"pos_embed{index + 1}", f"{holder}.position.table", picture),
            *batch_norm_rows(f"{theirs}norm{{n}}{norm}", f"{ours}norm{{n}}"),
            row(theirs + "attn.qkv.weight", ours + "mixer.qkv.weight", wide),
            row(theirs + "attn.proj.weight", ours + "mixer.proj.weight", narrow),
            row(theirs + "mlp.conv1.weight", ours + "channel_mixer.fc1.weight", wide),
            row(theirs + "mlp.conv2.weight", ours + "channel_mixer.weight"),
            row(theirs + "mlp.conv3.weight", ours + "channel_mixer.fc2.weight", narrow),
        ]
    return KeyMap(tuple(rows))


def _timm(spec: Any) -> KeyMap:
    return _keys(spec, "")


def _official(spec: Any) -> KeyMap:
    return _keys(spec, ".bn")


KEYS = {"timm": _timm, "official": _official}
