"""ConvMixer: patches, and then nothing but convolutions that mix either places or channels.

Patches Are All You Need? The image is cut into patches, and the grid of patches keeps its size to the end (section 2). A
layer is a depth-wise convolution with a large kernel and a skip connection, then a point-wise one without; an activation
and then a batch norm follow each (eq. 2, 3). Against a ViT it has neither attention nor positions, against MLP-Mixer
convolutions in the place of perceptrons over places.

Names: our ``embed.patch`` and ``embed.norm`` are the first and third module of their row, a block's ``mixer`` and
``norm1`` those inside their ``Residual``, ``pointwise`` and ``norm2`` what follows it.
"""

from typing import Any

import torch
from torch import Tensor

from anyformer import core
from anyformer.core.keymap import KeyMap, Reshape, row
from anyformer.core.part import filled
from anyformer.ops.activation import ACTIVATIONS
from anyformer.ops.linear import Activation
from anyformer.parts.embeds.patch_embed import PatchEmbed
from anyformer.parts.heads.classifier import MeanPoolHead
from anyformer.parts.linear.linear import Linear
from anyformer.parts.norms.batch_norm import BatchNorm
from anyformer.parts.norms.batch_norm_rows import batch_norm_rows
from anyformer.parts.residuals.residual import PlainResidual, ScaledResidual
from anyformer.parts.token_mixers.depthwise import DepthwiseConvolution
from anyformer.skeletons.coarse import coarse
from anyformer.skeletons.isotropic import Isotropic

PAPER = core.Paper(
    "convmixer",
    contributes=("model", "part"),
    deviations=(
        "The sections and equations named here are from memory; the wiring is that of the official code.",
        "The released weights of ConvMixer-768/32 are of a network with ReLU in the place of GELU, as the official table "
        "says; so is that size here.",
        "Neither paper nor code drops branches in training; drop_path_rate is ours, and 0 by default.",
        "Biases start at 0, where the official code leaves torch's uniform start.",
    ),
)


class ActivatedPatchEmbed(core.Embed, name="activated_patch_embed"):
    """``norm(act(patches))``; eq. 1.

    Shapes: those of ``patch``, as its cost is.
    """

    class Config(core.Config):
        """``patch`` is an embed of patches."""

        dim: int = core.bound()
        patch: core.Config
        activation: Activation = "gelu"
        norm: core.Config

    def forward(self, raw: Tensor) -> tuple[Tensor, core.Context]:
        """Map the patches, activate, normalise."""
        x, ctx = self.patch(raw)
        return self.norm(ACTIVATIONS[self.config.activation](x)), ctx


class ConvMixerBlock(core.Block, name="convmixer_block"):
    """``x = residual(x, norm1(act(mixer(x))))``, then ``norm2(act(pointwise(x)))``; eq. 2 and 3.

    Shapes: ``(batch, height, width, dim)`` to the same. Cost: ``dim^2`` multiply-adds a token, and those of the mixer.
    """

    class Config(core.Config):
        """``norm1`` is absent where the residual and the product behind it have taken it in."""

        dim: int = core.bound()
        activation: Activation = "gelu"
        mixer: core.Config
        norm1: core.Config | None = None
        residual: core.Config
        pointwise: core.Config = core.linear()
        norm2: core.Config

    axes = {"pointwise.weight": "dim dim"}
    norm1: core.Part | None

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Mix places, then channels."""
        activation = self.config.activation
        mixed = ACTIVATIONS[activation](self.mixer(x, ctx))
        x = self.residual(x, mixed if self.norm1 is None else self.norm1(mixed))
        return self.norm2(self.pointwise(x, activation))

    def deployed(self) -> core.Part:
        """The scale of the first norm in the residual, its shift in the product behind it.

        The second norm stays: the zeros around the grid of the next convolution would have to be shifted as well.
        """
        foldable = isinstance(self.residual, PlainResidual) and isinstance(self.pointwise, Linear)
        if foldable and isinstance(self.norm1, BatchNorm):
            scale, shift = self.norm1.affine()
            self.pointwise = self.pointwise.after(torch.ones_like(shift), shift)
            joined = ScaledResidual.Config(dim=self.config.dim, drop_path=self.residual.config.drop_path)
            self.residual = filled(joined, {"gamma": scale})
            self.norm1, self.config = None, self.config.replace(norm1=None)
        return self


SIZES: dict[str, dict[str, Any]] = {
    "convmixer_1536_20": {"dim": 1536, "depth": 20, "kernel": 9, "patch": 7},
    "convmixer_768_32": {"dim": 768, "depth": 32, "kernel": 7, "patch": 7, "activation": "relu"},
    "convmixer_1024_20_ks9_p14": {"dim": 1024, "depth": 20, "kernel": 9, "patch": 14},
    "convmixer_micro": {"dim": 64, "depth": 4, "kernel": 5, "patch": 4},
    "convmixer_mini": {"dim": 128, "depth": 6, "kernel": 5, "patch": 4},
}
SMALL = ("convmixer_micro", "convmixer_mini")  # not of the paper: for small images and tight budgets
SMALLEST_PATCH = 2  # the grid never shrinks, so single pixels would cost four times as much in every layer


def pattern(
    name: str,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    img_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    drop_path_rate: float = 0.0,
) -> core.Config:
    """The pattern of a size, for images of any size (``img_size`` changes nothing)."""
    size = SIZES[name]
    activation, patch = size.get("activation", "gelu"), patch_size or size["patch"]
    norm, init = BatchNorm.Config(), core.Init("uniform_fan_in")
    whole = Isotropic.Config(
        dim=size["dim"],
        embed=ActivatedPatchEmbed.Config(
            patch=PatchEmbed.Config(channels=in_chans, patch=patch, init=init), activation=activation, norm=norm
        ),
        blocks=tuple(
            ConvMixerBlock.Config(
                activation=activation,
                mixer=DepthwiseConvolution.Config(kernel=size["kernel"], init=init),
                norm1=norm,
                residual=PlainResidual.Config(drop_path=rate),
                pointwise=Linear.Config(init=init),
                norm2=norm,
            )
            for rate in core.ramp(drop_path_rate, size["depth"])
        ),
        head=MeanPoolHead.Config(num_classes=num_classes, linear=Linear.Config(init=init)),
    )
    return coarse(whole, in_chans, patch) if name in SMALL else whole


def data_config(name: str) -> dict[str, Any]:
    """What the published weights expect of an image."""
    return {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "size": [224, 224],
        "channels": 3,
        "interpolation": "bicubic",
        "crop": 0.96,
    }


_TABLE = "timm's table of inference benchmarks, results/benchmark-infer-amp-nchw-pt113-cu117-rtx3090.csv"
_SAME = 'the counter behind the table passes over convolutions with padding="same", which the depth-wise ones are'
PUBLISHED = {
    name: core.Published(params=params, macs=macs, at=(224, 224), source=_TABLE, explained=_SAME)
    for name, params, macs in (
        ("convmixer_1536_20", 51.63e6, 48.68e9),
        ("convmixer_768_32", 21.11e6, 19.55e9),
        ("convmixer_1024_20_ks9_p14", 24.38e6, 5.55e9),
    )
}


def _keys(spec: Any, stem: tuple[str, str], block: str, head: str) -> KeyMap:
    """Both formats: they name the same tensors, by other prefixes; the second mixing is a 1 x 1 convolution of theirs."""
    ours = "blocks.{i}."
    return KeyMap(
        (
            row(stem[0] + ".{p}", "embed.patch.{p}"),
            *batch_norm_rows(stem[1], "embed.norm"),
            row(block + "0.fn.0.{p}", ours + "mixer.{p}"),
            *batch_norm_rows(block + "0.fn.2", ours + "norm1"),
            row(block + "1.weight", ours + "pointwise.weight", Reshape((spec.dim, spec.dim, 1, 1))),
            row(block + "1.bias", ours + "pointwise.bias"),
            *batch_norm_rows(block + "3", ours + "norm2"),
            row(head + ".{p}", "head.linear.{p}"),
        )
    )


def _timm(spec: Any) -> KeyMap:
    return _keys(spec, ("stem.0", "stem.2"), "blocks.{i}.", "head")


def _official(spec: Any) -> KeyMap:
    # one row of modules: three of the stem, the blocks, the mean, its flattening, the scores
    return _keys(spec, ("0", "2"), "{i+3}.", str(len(spec.blocks) + 5))


KEYS = {"timm": _timm, "official": _official}
