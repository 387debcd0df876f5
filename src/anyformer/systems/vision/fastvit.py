"""FastViT: a hybrid whose skip connections and branches are trained, and then folded into single convolutions.

FastViT: A Fast Hybrid Vision Transformer using Structural Reparameterization. RepMixer mixes tokens by a depth-wise
convolution without a skip connection at inference (section 3.2.1); stem and down-sampling are factorised convolutions with
more branches in training (section 3.2.2); large depth-wise kernels stand before the perceptrons, and as position encoding
before the attention of the last stage (section 3.2.3). ``anyformer.passes.reparameterize`` gives the deploy form.

Names: our ``convolution.branches`` are their ``rbr_conv`` and ``rbr_scale``, ``identity`` their ``rbr_skip``,
``channel_mixer`` their ``convffn``, ``down`` their patch embeddings between stages, and ``head.convolution`` their
``conv_exp``.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from anyformer import core
from anyformer.core.keymap import KeyMap, Row, row
from anyformer.parts.channel_mixers.convolution_mlp import ConvolutionMLP
from anyformer.parts.convolutions.convolution import Convolution, GroupedConvolution
from anyformer.parts.convolutions.parallel import MobileOne, ParallelConvolution
from anyformer.parts.convolutions.squeeze_excitation import SqueezeExcitation
from anyformer.parts.down.convolution_down import ConvolutionDown
from anyformer.parts.embeds.convolutional_stem import ConvolutionalStem
from anyformer.parts.heads.convolution_head import ConvolutionHead
from anyformer.parts.linear.linear import Linear
from anyformer.parts.norms.batch_norm import BatchNorm
from anyformer.parts.residuals.residual import ScaledResidual
from anyformer.parts.token_mixers.attention import Attention
from anyformer.parts.token_mixers.depthwise import DepthwiseConvolution
from anyformer.parts.token_mixers.rep_mixer import ConditionalPosition, RepMixer
from anyformer.skeletons.pyramid import Pyramid, Stage

PAPER = core.Paper(
    "fastvit",
    contributes=("model", "part", "pass"),
    deviations=(
        "The official code computes an activation after the large-kernel convolution and throws it away; there is none here.",
        "In the stem no convolution but the last has an identity branch, whatever its stride.",
    ),
)


class RepMixerBlock(core.Block, name="rep_mixer_block"):
    """``x = mixer(x)``, whose skip connection is its own, then ``residual(x, channel_mixer(x))``; figure 2."""

    class Config(core.Config):
        """Without a ``channel_mixer``, the mixer alone."""

        dim: int = core.bound()
        mixer: core.Config
        channel_mixer: core.Config | None = None
        residual: core.Config | None = None

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """One layer."""
        x = self.mixer(x, ctx)
        return x if self.channel_mixer is None else self.residual(x, self.channel_mixer(x, ctx))

    def deployed(self) -> core.Part:
        """The branch scaled by its own weights."""
        if self.channel_mixer is not None:
            self.residual = self.residual.folded(self.channel_mixer)
        return self


class AttentionBlock(core.Block, name="batch_norm_attention_block"):
    """``x = residual1(x, mixer(norm(x)))``, then ``x = residual2(x, channel_mixer(x))``, which has a norm inside; figure 2."""

    class Config(core.Config):
        """``norm`` is absent where the mixer has taken it in."""

        dim: int = core.bound()
        norm: core.Config | None = None
        mixer: core.Config
        residual1: core.Config
        channel_mixer: core.Config
        residual2: core.Config

    norm: core.Part | None

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """One layer."""
        x = self.residual1(x, self.mixer(x if self.norm is None else self.norm(x), ctx))
        return self.residual2(x, self.channel_mixer(x, ctx))

    def deployed(self) -> core.Part:
        """Both branches scaled by their own weights, the norm taken in by the queries, keys and values."""
        self.residual1 = self.residual1.folded(self.mixer)
        self.residual2 = self.residual2.folded(self.channel_mixer)
        attends = isinstance(self.mixer, Attention) and isinstance(self.mixer.qkv, Linear)
        if attends and isinstance(self.norm, BatchNorm):
            self.mixer.qkv = self.mixer.qkv.after(*self.norm.affine())
            self.norm, self.config = None, self.config.replace(norm=None)
        return self


SIZES: dict[str, dict[str, Any]] = {
    "fastvit_t8": {"depths": (2, 2, 4, 2), "dims": (48, 96, 192, 384), "ratio": 3},
    "fastvit_t12": {"depths": (2, 2, 6, 2), "dims": (64, 128, 256, 512), "ratio": 3},
    "fastvit_s12": {"depths": (2, 2, 6, 2), "dims": (64, 128, 256, 512), "ratio": 4},
    "fastvit_sa12": {"depths": (2, 2, 6, 2), "dims": (64, 128, 256, 512), "ratio": 4, "attention": True},
    "fastvit_sa24": {"depths": (4, 4, 12, 4), "dims": (64, 128, 256, 512), "ratio": 4, "attention": True},
    "fastvit_sa36": {"depths": (6, 6, 18, 6), "dims": (64, 128, 256, 512), "ratio": 4, "attention": True},
    "fastvit_ma36": {"depths": (6, 6, 18, 6), "dims": (76, 152, 304, 608), "ratio": 4, "attention": True},
    "fastvit_micro": {"depths": (2, 2, 2), "dims": (32, 64, 128), "ratio": 3},
    "fastvit_mini": {"depths": (2, 2, 4), "dims": (48, 96, 192), "ratio": 3, "attention": True},
}
SMALL = ("fastvit_micro", "fastvit_mini")  # not of the paper: for small images and tight budgets
SMALLEST_PATCH = 2  # four times the steps in the same minutes are worth more than single pixels
POSITION_STAGE = 3  # the attention of the fourth stage has a position encoding; our small sizes have three
HEAD_DIM = 32
NORM = BatchNorm.Config()


def parallel(kind: Any, *kernels: int, stride: int = 1, identity: bool = False) -> core.Config:
    """Convolutions of one kind beside one another, each with its norm."""
    return ParallelConvolution.Config(
        branches=tuple(kind.Config(kernel=kernel, stride=stride, norm=NORM) for kernel in kernels),
        identity=NORM if identity else None,
    )


def stem(channels: int, patch: int) -> core.Config:
    """A 3 x 3 convolution, depth-wise ones, a 1 x 1 convolution; all but the last halve the grid until it is ``patch`` smaller.

    Raises:
        UsageError: where ``patch`` is no power of two.
    """
    halvings = patch.bit_length() - 1
    if patch != 2**halvings:
        raise core.UsageError(f"patch_size={patch}: the stem halves the grid, so give a power of two")
    strides = (2,) * halvings + (1,) * (2 - halvings)
    return ConvolutionalStem.Config(
        channels=channels,
        layers=(
            MobileOne.Config(convolution=parallel(Convolution, 3, 1, stride=strides[0])),
            *(MobileOne.Config(convolution=parallel(GroupedConvolution, 3, 1, stride=s)) for s in strides[1:]),
            MobileOne.Config(convolution=parallel(Convolution, 1, identity=True)),
        ),
    )


def pattern(
    name: str,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    img_size: int | tuple[int, int] | None = None,
    patch_size: int = 4,
    drop_path_rate: float = 0.0,
) -> core.Config:
    """The pattern of a size, for images of any size (``img_size`` changes nothing); ``patch_size`` is the stem's stride."""
    size = SIZES[name]
    # Small widths and short trainings need weights that keep the variance of what passes through them.
    linear = Linear.Config(init=core.Init("xavier_uniform")) if name in SMALL else None
    scale = core.Init("constant", 0.1 if name in SMALL else 1e-5)
    rates = iter(core.ramp(drop_path_rate, sum(size["depths"])))
    mixer = RepMixer.Config(convolution=parallel(GroupedConvolution, 3, 1, identity=True), norm=NORM, init=scale)
    channel_mixer = ConvolutionMLP.Config(
        ratio=float(size["ratio"]),
        convolution=GroupedConvolution.Config(kernel=7, norm=NORM, init=core.Init("truncated_normal", 0.02)),
        fc1=linear,
        fc2=linear,
    )

    def layer(stage: int, dim: int) -> core.Config:
        join = ScaledResidual.Config(init=scale, drop_path=next(rates))
        if not attends(stage):
            return RepMixerBlock.Config(mixer=mixer, channel_mixer=channel_mixer, residual=join)
        qkv = Linear.Config(bias=False) if linear is None else linear.replace(bias=False)
        attention = Attention.Config(heads=dim // HEAD_DIM, qkv=qkv, proj=linear)
        return AttentionBlock.Config(
            norm=NORM, mixer=attention, residual1=join, channel_mixer=channel_mixer, residual2=join
        )

    def attends(stage: int) -> bool:
        return "attention" in size and stage == len(size["dims"]) - 1

    position = ConditionalPosition.Config(convolution=DepthwiseConvolution.Config(init=core.Init("uniform_fan_in")))
    down = ConvolutionDown.Config(
        large=parallel(GroupedConvolution, 7, 3, stride=2),
        pointwise=MobileOne.Config(convolution=parallel(Convolution, 1, identity=True)),
    )
    return Pyramid.Config(
        embed=stem(in_chans, patch_size),
        stages=tuple(
            Stage.Config(
                dim=dim,
                down=down if stage else None,
                blocks=(
                    *((RepMixerBlock.Config(mixer=position),) if attends(stage) and stage == POSITION_STAGE else ()),
                    *(layer(stage, dim) for _ in range(depth)),
                ),
            )
            for stage, (depth, dim) in enumerate(zip(size["depths"], size["dims"], strict=True))
        ),
        head=ConvolutionHead.Config(
            num_classes=num_classes,
            convolution=MobileOne.Config(
                convolution=parallel(GroupedConvolution, 3, 1), squeeze=SqueezeExcitation.Config()
            ),
        ),
    )


def data_config(name: str) -> dict[str, Any]:
    """What the published weights expect of an image."""
    return {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "size": [256, 256],
        "channels": 3,
        "interpolation": "bicubic",
        "crop": 0.95 if name == "fastvit_ma36" else 0.9,
    }


_TABLE = "table 2 of arXiv:2303.14189v2, counted with fvcore; read as the replication balala8/FastViT_pytorch quotes it"
_FEWER = "the authors' code has 3 to 12 % more parameters than is printed, its deploy form too; ours are the code's"
PUBLISHED = {
    name: core.Published(params=params, macs=macs, at=(256, 256), source=_TABLE, explained=_FEWER)
    for name, params, macs in (
        ("fastvit_t8", 3.6e6, 0.7e9),
        ("fastvit_t12", 6.8e6, 1.4e9),
        ("fastvit_s12", 8.8e6, 1.8e9),
        ("fastvit_sa12", 10.9e6, 1.9e9),
        ("fastvit_sa24", 20.6e6, 3.8e9),
        ("fastvit_sa36", 30.4e6, 5.6e9),
        ("fastvit_ma36", 42.7e6, 7.9e9),
    )
}


@dataclass(frozen=True)
class Pointwise:
    """Their tensor has two more dimensions of length 1 at its end: a 1 x 1 convolution, a scale of an image's channels."""

    def forward(self, theirs: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        """Without them."""
        return [tensor.reshape(shape) for tensor, shape in zip(theirs, shapes, strict=True)]

    def backward(self, ours: list[Tensor]) -> list[Tensor]:
        """With them."""
        return [tensor[..., None, None] for tensor in ours]


@dataclass(frozen=True, kw_only=True)
class Names:
    """The words of a format for the same things."""

    stem: str
    convolution: str
    scale: str
    identity: str
    large: str
    channel_mixer: str
    gamma: str
    squeeze: tuple[str, str]
    final: str
    head: str

    def norm(self, theirs: str, ours: str) -> list[Row]:
        """A batch norm."""
        moments = ("running_mean", "running_var", "num_batches_tracked")
        return [row(f"{theirs}.{name}", f"{ours}.{name}") for name in ("{p}", *moments)]

    def normed(self, theirs: str, ours: str) -> list[Row]:
        """A convolution with a norm."""
        return [row(f"{theirs}.conv.weight", f"{ours}.weight"), *self.norm(f"{theirs}.bn", f"{ours}.norm")]

    def parallel(self, theirs: str, ours: str) -> list[Row]:
        """Parallel convolutions."""
        return [
            *self.normed(f"{theirs}.{self.convolution}.0", f"{ours}.branches.0"),
            *self.normed(f"{theirs}.{self.scale}", f"{ours}.branches.1"),
            *self.norm(f"{theirs}.{self.identity}", f"{ours}.identity"),
        ]

    def pointwise(self, theirs: str, ours: str) -> list[Row]:
        """A 1 x 1 convolution that is a linear layer of ours."""
        return [row(f"{theirs}.weight", f"{ours}.weight", Pointwise()), row(f"{theirs}.bias", f"{ours}.bias")]

    def scaling(self, theirs: str, ours: str) -> Row:
        """A layer scale."""
        return row(theirs + self.gamma, f"{ours}.gamma", Pointwise())

    def down(self, theirs: str, ours: str) -> list[Row]:
        """The convolutions between two stages."""
        return [
            *self.normed(f"{theirs}.proj.0.{self.large}", f"{ours}.large.branches.0"),
            *self.normed(f"{theirs}.proj.0.small_conv", f"{ours}.large.branches.1"),
            *self.parallel(f"{theirs}.proj.1", f"{ours}.pointwise.convolution"),
        ]

    def block(self, theirs: str, ours: str) -> list[Row]:
        """A layer of either kind."""
        mlp = f"{theirs}.{self.channel_mixer}"
        return [
            *self.parallel(f"{theirs}.token_mixer.mixer", f"{ours}.mixer.convolution"),
            *self.norm(f"{theirs}.token_mixer.norm.{self.identity}", f"{ours}.mixer.norm"),
            self.scaling(f"{theirs}.token_mixer.layer_scale", f"{ours}.mixer"),
            *self.norm(f"{theirs}.norm", f"{ours}.norm"),
            row(f"{theirs}.token_mixer.qkv.{{p}}", f"{ours}.mixer.qkv.{{p}}"),
            row(f"{theirs}.token_mixer.proj.{{p}}", f"{ours}.mixer.proj.{{p}}"),
            *self.normed(f"{mlp}.conv", f"{ours}.channel_mixer.convolution"),
            *self.pointwise(f"{mlp}.fc1", f"{ours}.channel_mixer.fc1"),
            *self.pointwise(f"{mlp}.fc2", f"{ours}.channel_mixer.fc2"),
            self.scaling(f"{theirs}.layer_scale", f"{ours}.residual"),
            *(self.scaling(f"{theirs}.layer_scale_{i}", f"{ours}.residual{i}") for i in (1, 2)),
        ]

    def ends(self) -> list[Row]:
        """Stem and head."""
        final, ours = f"{self.final}.se.", "head.convolution.squeeze."
        return [
            *self.parallel(f"{self.stem}.{{i}}", "embed.layers.{i}.convolution"),
            *self.parallel(self.final, "head.convolution.convolution"),
            *self.pointwise(final + self.squeeze[0], ours + "fc1"),
            *self.pointwise(final + self.squeeze[1], ours + "fc2"),
            row(f"{self.head}.{{p}}", "head.linear.{p}"),
        ]


def _positioned(spec: Any) -> bool:
    return any(isinstance(stage.blocks[0].mixer, ConditionalPosition.Config) for stage in spec.stages)


def _timm(spec: core.Config) -> KeyMap:
    names = Names(
        stem="stem",
        convolution="conv_kxk",
        scale="conv_scale",
        identity="identity",
        large="large_conv",
        channel_mixer="mlp",
        gamma=".gamma",
        squeeze=("fc1", "fc2"),
        final="final_conv",
        head="head.fc",
    )
    rows = [*names.ends(), *names.down("stages.{s}.downsample", "stages.{s}.down")]
    if _positioned(spec):
        stage = f"stages.{POSITION_STAGE}"
        rows.append(row(f"{stage}.pos_emb.pos_enc.{{p}}", f"{stage}.blocks.0.mixer.convolution.{{p}}"))
        rows += names.block(f"{stage}.blocks.{{j}}", f"{stage}.blocks.{{j+1}}")
    return KeyMap((*rows, *names.block("stages.{s}.blocks.{j}", "stages.{s}.blocks.{j}")))


def _official(spec: Any) -> KeyMap:
    names = Names(
        stem="patch_embed",
        convolution="rbr_conv",
        scale="rbr_scale",
        identity="rbr_skip",
        large="lkb_origin",
        channel_mixer="convffn",
        gamma="",
        squeeze=("reduce", "expand"),
        final="conv_exp",
        head="head",
    )
    rows = names.ends()
    for stage in range(len(spec.stages)):  # theirs is one row of stages and of what lies between them
        place, shift = 2 * stage, ""
        if stage:
            rows += names.down(f"network.{place - 1}", f"stages.{stage}.down")
        if stage == POSITION_STAGE and _positioned(spec):
            rows.append(row(f"network.{place}.pe.{{p}}", f"stages.{stage}.blocks.0.mixer.convolution.{{p}}"))
            place, shift = place + 1, "+1"
        rows += names.block(f"network.{place}.{{j}}", f"stages.{stage}.blocks.{{j{shift}}}")
    return KeyMap(tuple(rows))


KEYS = {"timm": _timm, "official": _official}
