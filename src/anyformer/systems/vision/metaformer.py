"""MetaFormer: the Transformer's layer with any token mixer; PoolFormer shows it with one that only averages.

MetaFormer Is Actually What You Need for Vision. Each layer is a norm, a token mixer, a norm and a perceptron, each pair
with a residual (eq. 2, 3); in PoolFormer the mixer is a 3x3 average pooling less the identity (eq. 4), which has no
parameters. Norms are group norms with one group, and learned scales stand in the residuals. Against Swin it has no
attention and no windows; patches overlap, in the stem and between the stages.

Two forms of the classifier are in use, with the same weights under the same names. The authors' code normalises the last
features over grid and channels and then averages them; timm averages first and normalises the channels of the mean. Both
divide the same numbers by a spread an image, timm's by the smaller one. A model is built in timm's form, which the proof
levels hold it against; the scores of the authors' code come from ``create_model("poolformer_s12", norm_first=True)``, for
weights of either format.

Names: our ``embed`` is their ``patch_embed.proj``, ``stages.{i}.blocks`` their ``network.{2i}``, ``stages.{i}.down`` their
``network.{2i-1}.proj``; ``residual1.gamma`` and ``residual2.gamma`` their ``layer_scale_1`` and ``layer_scale_2``.
"""

from typing import Any

from anyformer import core
from anyformer.core.keymap import KeyMap, Reshape, Row, row
from anyformer.parts.channel_mixers.mlp import MLP
from anyformer.parts.down.overlapped_down import OverlappedDown
from anyformer.parts.embeds.overlapped_patch_embed import OverlappedPatchEmbed
from anyformer.parts.heads.classifier import MeanPoolHead
from anyformer.parts.linear.linear import Linear
from anyformer.parts.norms.group_norm import GroupNorm
from anyformer.parts.norms.layer_norm import LayerNorm
from anyformer.parts.residuals.residual import ScaledResidual
from anyformer.parts.token_mixers.pooling import Pooling
from anyformer.skeletons.blocks import PreNormBlock
from anyformer.skeletons.coarse import coarse
from anyformer.skeletons.pyramid import Pyramid, Stage

PAPER = core.Paper(
    "metaformer",
    contributes=("model", "part"),
    deviations=(
        "By default the classifier is timm's, which normalises the channels of the mean of the last features. The official "
        "code normalises the features and averages them then, which norm_first=True gives; without it, official weights "
        "give scores that are larger than the authors'.",
    ),
)

_S, _M = (64, 128, 320, 512), (96, 192, 384, 768)
SIZES: dict[str, dict[str, Any]] = {
    "poolformer_s12": {"depths": (2, 2, 6, 2), "dims": _S, "scale": 1e-5, "crop": 0.9},
    "poolformer_s24": {"depths": (4, 4, 12, 4), "dims": _S, "scale": 1e-5, "crop": 0.9},
    "poolformer_s36": {"depths": (6, 6, 18, 6), "dims": _S, "scale": 1e-6, "crop": 0.9},
    "poolformer_m36": {"depths": (6, 6, 18, 6), "dims": _M, "scale": 1e-6, "crop": 0.95},
    "poolformer_m48": {"depths": (8, 8, 24, 8), "dims": _M, "scale": 1e-6, "crop": 0.95},
    "poolformer_micro": {"depths": (2, 2, 2), "dims": (32, 64, 128), "scale": 0.1, "crop": 0.9},
    "poolformer_mini": {"depths": (2, 2, 4), "dims": (48, 96, 192), "scale": 0.1, "crop": 0.9},
}
SMALL = ("poolformer_micro", "poolformer_mini")  # not of the paper: for small images and tight budgets
SMALLEST_PATCH = 2  # four times the steps in the same minutes are worth more than single pixels


def pattern(
    name: str,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    img_size: int | tuple[int, int] | None = None,
    patch_size: int = 4,
    drop_path_rate: float = 0.0,
    norm_first: bool = False,
) -> core.Config:
    """The pattern of a size, for images of any size (``img_size`` changes nothing); ``patch_size`` is the stem's stride.

    The stem's filters are 7 x 7 at the published stride of 4, and at others overlap likewise. ``norm_first`` normalises the
    last features before their mean, as the authors' code does.
    """
    size = SIZES[name]
    norm = GroupNorm.Config(eps=1e-5)
    # Small widths and short trainings need weights that keep the variance of what passes through them.
    linear = Linear.Config(init=core.Init("xavier_uniform")) if name in SMALL else None
    rates = iter(core.ramp(drop_path_rate, sum(size["depths"])))

    def layer() -> core.Config:
        join = ScaledResidual.Config(init=core.Init("constant", size["scale"]), drop_path=next(rates))
        return PreNormBlock.Config(
            norm1=norm,
            mixer=Pooling.Config(kernel=3),
            residual1=join,
            norm2=norm,
            channel_mixer=MLP.Config(fc1=linear, fc2=linear),
            residual2=join,
        )

    whole = Pyramid.Config(
        embed=OverlappedPatchEmbed.Config(
            channels=in_chans,
            kernel=max(2 * patch_size - 1, 3),
            stride=patch_size,
            padding=max(patch_size // 2, 1),
        ),
        stages=tuple(
            Stage.Config(
                dim=dim,
                down=OverlappedDown.Config() if stage else None,
                blocks=tuple(layer() for _ in range(depth)),
            )
            for stage, (depth, dim) in enumerate(zip(size["depths"], size["dims"], strict=True))
        ),
        norm=norm if norm_first else None,
        head=MeanPoolHead.Config(num_classes=num_classes, norm=None if norm_first else LayerNorm.Config(eps=1e-6)),
    )
    return coarse(whole, in_chans, patch_size) if name in SMALL else whole


def data_config(name: str) -> dict[str, Any]:
    """What the published weights expect of an image."""
    return {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "size": [224, 224],
        "channels": 3,
        "interpolation": "bicubic",
        "crop": SIZES[name]["crop"],
    }


_TABLE = "official model table"
PUBLISHED = {
    "poolformer_s12": core.Published(params=12e6, macs=1.8e9, at=(224, 224), source=_TABLE),
    "poolformer_s24": core.Published(params=21e6, macs=3.4e9, at=(224, 224), source=_TABLE),
    "poolformer_s36": core.Published(params=31e6, macs=5.0e9, at=(224, 224), source=_TABLE),
    "poolformer_m36": core.Published(params=56e6, macs=8.8e9, at=(224, 224), source=_TABLE),
    "poolformer_m48": core.Published(params=73e6, macs=11.6e9, at=(224, 224), source=_TABLE),
}


def _layers(spec: Any, theirs: str, scale: str, stage: int) -> tuple[Row, ...]:
    """The layers of a stage: their perceptron is two 1x1 convolutions."""
    ours, dim = f"stages.{stage}.blocks.{{j}}.", spec.stages[stage].dim
    return (
        row(theirs + "norm{n}.{p}", ours + "norm{n}.{p}"),
        row(theirs + scale, ours + "residual{n}.gamma"),
        row(theirs + "mlp.fc1.weight", ours + "channel_mixer.fc1.weight", Reshape((-1, dim, 1, 1))),
        row(theirs + "mlp.fc2.weight", ours + "channel_mixer.fc2.weight", Reshape((dim, -1, 1, 1))),
        row(theirs + "mlp.fc1.bias", ours + "channel_mixer.fc1.bias"),
        row(theirs + "mlp.fc2.bias", ours + "channel_mixer.fc2.bias"),
    )


def _last_norm(spec: Any) -> str:
    """Where the norm before the classifier stands: before the mean, or after it."""
    return "head.norm.{p}" if spec.norm is None else "norm.{p}"


def _timm(spec: Any) -> KeyMap:
    rows = [
        row("stem.conv.{p}", "embed.{p}"),
        row("stages.{s}.downsample.conv.{p}", "stages.{s}.down.{p}"),
        row("head.norm.{p}", _last_norm(spec)),
        row("head.fc.{p}", "head.linear.{p}"),
    ]
    for stage in range(len(spec.stages)):
        rows += _layers(spec, f"stages.{stage}.blocks.{{j}}.", "layer_scale{n}.scale", stage)
    return KeyMap(tuple(rows))


def _official(spec: Any) -> KeyMap:
    rows = [
        row("patch_embed.proj.{p}", "embed.{p}"),
        row("norm.{p}", _last_norm(spec)),
        row("head.{p}", "head.linear.{p}"),
    ]
    for stage in range(len(spec.stages)):
        rows += _layers(spec, f"network.{2 * stage}.{{j}}.", "layer_scale_{n}", stage)
        if stage:
            rows.append(row(f"network.{2 * stage - 1}.proj.{{p}}", f"stages.{stage}.down.{{p}}"))
    return KeyMap(tuple(rows))


KEYS = {"timm": _timm, "official": _official}
INERT = {
    "stages.*.blocks.*.norm1.bias": "a constant is in the mean as in what is taken off, so pooling gives none of it"
}
