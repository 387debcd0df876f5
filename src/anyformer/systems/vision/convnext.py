"""ConvNeXt: a convolutional network with the macro design of a hierarchical Transformer.

A ConvNet for the 2020s. Each layer is one residual branch: a 7x7 depth-wise convolution, a norm, an inverted bottleneck
with one GELU, and a learned scale (section 2, figure 4); a norm and a strided 2x2 convolution stand between the stages.
Against Swin it has no attention and half the norms.

Names: our ``mixer`` is their ``dwconv``, ``channel_mixer.fc1`` and ``fc2`` their ``pwconv1`` and ``pwconv2``,
``residual.gamma`` their ``gamma``; a stage's ``down`` is their ``downsample_layers``.
"""

from typing import Any

from anyformer import core
from anyformer.core.keymap import KeyMap, row
from anyformer.parts.channel_mixers.mlp import MLP
from anyformer.parts.down.patch_down import PatchDown
from anyformer.parts.embeds.patch_embed import PatchEmbed
from anyformer.parts.heads.classifier import MeanPoolHead
from anyformer.parts.linear.linear import Linear
from anyformer.parts.norms.layer_norm import LayerNorm
from anyformer.parts.residuals.residual import ScaledResidual
from anyformer.parts.token_mixers.depthwise import DepthwiseConvolution
from anyformer.skeletons.blocks import MixerNormBlock
from anyformer.skeletons.coarse import coarse
from anyformer.skeletons.pyramid import Pyramid, Stage

PAPER = core.Paper("convnext", contributes=("model", "part"))

SIZES: dict[str, dict[str, tuple[int, ...]]] = {
    "convnext_tiny": {"depths": (3, 3, 9, 3), "dims": (96, 192, 384, 768)},
    "convnext_small": {"depths": (3, 3, 27, 3), "dims": (96, 192, 384, 768)},
    "convnext_base": {"depths": (3, 3, 27, 3), "dims": (128, 256, 512, 1024)},
    "convnext_large": {"depths": (3, 3, 27, 3), "dims": (192, 384, 768, 1536)},
    "convnext_xlarge": {"depths": (3, 3, 27, 3), "dims": (256, 512, 1024, 2048)},
    "convnext_micro": {"depths": (2, 2, 2), "dims": (32, 64, 128)},
    "convnext_mini": {"depths": (2, 2, 4), "dims": (48, 96, 192)},
}
SMALL = ("convnext_micro", "convnext_mini")  # not of the paper: for small images and tight budgets
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
    """The pattern of a size, for images of any size (``img_size`` changes nothing); ``patch_size`` is the stem's stride."""
    depths, dims = SIZES[name]["depths"], SIZES[name]["dims"]
    norm = LayerNorm.Config(eps=1e-6)
    # Small widths and short trainings need weights that keep the variance of what passes through them.
    linear = Linear.Config(init=core.Init("xavier_uniform")) if name in SMALL else None
    scale = core.Init("constant", 0.1 if name in SMALL else 1e-6)
    rates = iter(core.ramp(drop_path_rate, sum(depths)))
    whole = Pyramid.Config(
        embed=PatchEmbed.Config(channels=in_chans, patch=patch_size, norm=norm),
        stages=tuple(
            Stage.Config(
                dim=dim,
                down=PatchDown.Config(norm=norm) if index else None,
                blocks=tuple(
                    MixerNormBlock.Config(
                        mixer=DepthwiseConvolution.Config(kernel=7),
                        norm=norm,
                        channel_mixer=MLP.Config(fc1=linear, fc2=linear),
                        residual=ScaledResidual.Config(init=scale, drop_path=next(rates)),
                    )
                    for _ in range(depth)
                ),
            )
            for index, (depth, dim) in enumerate(zip(depths, dims, strict=True))
        ),
        head=MeanPoolHead.Config(num_classes=num_classes, norm=norm),
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
        "crop": 0.875,
    }


_TABLE = "official model table"
PUBLISHED = {
    "convnext_tiny": core.Published(params=29e6, macs=4.5e9, at=(224, 224), source=_TABLE),
    "convnext_small": core.Published(params=50e6, macs=8.7e9, at=(224, 224), source=_TABLE),
    "convnext_base": core.Published(params=89e6, macs=15.4e9, at=(224, 224), source=_TABLE),
    "convnext_large": core.Published(params=198e6, macs=34.4e9, at=(224, 224), source=_TABLE),
    "convnext_xlarge": core.Published(params=350e6, macs=60.9e9, at=(224, 224), source=_TABLE),
}


def _timm(spec: core.Config) -> KeyMap:
    return KeyMap(
        (
            row("stem.0.{p}", "embed.{p}"),
            row("stem.1.{p}", "embed.norm.{p}"),
            row("stages.{s}.downsample.0.{p}", "stages.{s}.down.norm.{p}"),
            row("stages.{s}.downsample.1.{p}", "stages.{s}.down.{p}"),
            row("stages.{s}.blocks.{j}.gamma", "stages.{s}.blocks.{j}.residual.gamma"),
            row("stages.{s}.blocks.{j}.conv_dw.{p}", "stages.{s}.blocks.{j}.mixer.{p}"),
            row("stages.{s}.blocks.{j}.norm.{p}", "stages.{s}.blocks.{j}.norm.{p}"),
            row("stages.{s}.blocks.{j}.mlp.fc1.{p}", "stages.{s}.blocks.{j}.channel_mixer.fc1.{p}"),
            row("stages.{s}.blocks.{j}.mlp.fc2.{p}", "stages.{s}.blocks.{j}.channel_mixer.fc2.{p}"),
            row("head.norm.{p}", "head.norm.{p}"),
            row("head.fc.{p}", "head.linear.{p}"),
        )
    )


def _official(spec: core.Config) -> KeyMap:
    return KeyMap(
        (
            row("downsample_layers.0.0.{p}", "embed.{p}"),
            row("downsample_layers.0.1.{p}", "embed.norm.{p}"),
            row("downsample_layers.{s}.0.{p}", "stages.{s}.down.norm.{p}"),
            row("downsample_layers.{s}.1.{p}", "stages.{s}.down.{p}"),
            row("stages.{s}.{j}.gamma", "stages.{s}.blocks.{j}.residual.gamma"),
            row("stages.{s}.{j}.dwconv.{p}", "stages.{s}.blocks.{j}.mixer.{p}"),
            row("stages.{s}.{j}.norm.{p}", "stages.{s}.blocks.{j}.norm.{p}"),
            row("stages.{s}.{j}.pwconv1.{p}", "stages.{s}.blocks.{j}.channel_mixer.fc1.{p}"),
            row("stages.{s}.{j}.pwconv2.{p}", "stages.{s}.blocks.{j}.channel_mixer.fc2.{p}"),
            row("norm.{p}", "head.norm.{p}"),
            row("head.{p}", "head.linear.{p}"),
        )
    )


KEYS = {"timm": _timm, "official": _official}
