"""ViT: a plain Transformer encoder over image patches, with a class token and learned positions.

An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale. The image is cut into squares, each becomes a
token (eq. 1), and pre-norm layers of attention and perceptron follow (eq. 2, 3); the class token is the image (eq. 4).
Nothing knows that the tokens form a grid but the learned positions.

Names: our ``embed.patch`` is their ``embedding``, ``embed.prefix`` their ``cls``, ``embed.positions`` their
``posembed_input``, a block's ``mixer`` their ``MultiHeadDotProductAttention_1``, its ``channel_mixer`` their ``MlpBlock_3``.
"""

from typing import Any

from anyformer import core
from anyformer.core.keymap import Join, KeyMap, Permute, Reshape, row
from anyformer.parts.channel_mixers.mlp import MLP
from anyformer.parts.embeds.patch_embed import PatchEmbed, PrefixedPatchEmbed
from anyformer.parts.heads.classifier import PrefixHead
from anyformer.parts.linear.linear import Linear
from anyformer.parts.norms.layer_norm import LayerNorm
from anyformer.parts.residuals.residual import PlainResidual
from anyformer.parts.token_mixers.attention import Attention
from anyformer.skeletons.blocks import PreNormBlock
from anyformer.skeletons.isotropic import Isotropic

PAPER = core.Paper(
    "vit",
    contributes=("model", "part"),
    deviations=(
        "The official code activates with the tanh form of GELU; the weights that are in use were carried to and fine-tuned "
        "with the exact form, which is built here, as in timm.",
        "The paper pre-trains with a hidden layer before the classifier; released fine-tuned weights have none.",
    ),
)

SIZES: dict[str, dict[str, int]] = {
    "vit_tiny_patch16_224": {"dim": 192, "depth": 12, "heads": 3, "patch": 16, "image": 224},
    "vit_small_patch16_224": {"dim": 384, "depth": 12, "heads": 6, "patch": 16, "image": 224},
    "vit_base_patch16_224": {"dim": 768, "depth": 12, "heads": 12, "patch": 16, "image": 224},
    "vit_large_patch16_224": {"dim": 1024, "depth": 24, "heads": 16, "patch": 16, "image": 224},
    "vit_small_patch32_224": {"dim": 384, "depth": 12, "heads": 6, "patch": 32, "image": 224},
    "vit_base_patch32_224": {"dim": 768, "depth": 12, "heads": 12, "patch": 32, "image": 224},
    "vit_base_patch16_384": {"dim": 768, "depth": 12, "heads": 12, "patch": 16, "image": 384},
    "vit_huge_patch14_224": {"dim": 1280, "depth": 32, "heads": 16, "patch": 14, "image": 224},
    "vit_micro": {"dim": 64, "depth": 4, "heads": 2, "patch": 4, "image": 32},
    "vit_mini": {"dim": 96, "depth": 4, "heads": 12, "patch": 4, "image": 32},
}
SMALL = ("vit_micro", "vit_mini")  # not of the paper: for small images and tight budgets
SMALLEST_PATCH = 2  # one pixel is too little for a token that attends


def pattern(
    name: str,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    img_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    drop_path_rate: float = 0.0,
) -> core.Config:
    """The pattern of a size; ``drop_path_rate`` grows in a straight line from 0 to that of the last block."""
    size = SIZES[name]
    depth, patch = size["depth"], patch_size or size["patch"]
    height, width = core.pair(img_size or size["image"])
    if min(height, width) < patch:
        raise core.UsageError(
            f"{name}: an image of {height} x {width} holds no patch of {patch}; give a smaller patch_size"
        )
    norm = LayerNorm.Config(eps=1e-6)
    # Small widths and short trainings need weights that keep the variance of what passes through them.
    linear = Linear.Config(init=core.Init("xavier_uniform")) if name in SMALL else None
    return Isotropic.Config(
        dim=size["dim"],
        embed=PrefixedPatchEmbed.Config(
            patch=PatchEmbed.Config(
                channels=in_chans,
                patch=patch,
                init=core.Init("uniform_fan_in"),
            ),
            rows=height // patch,
            columns=width // patch,
            # positions as large as the patches let attention choose places from the first step on
            position_init=core.Init("truncated_normal", 0.6 if name in SMALL else 0.02),
        ),
        blocks=tuple(
            PreNormBlock.Config(
                norm1=norm,
                mixer=Attention.Config(heads=size["heads"], qkv=linear, proj=linear),
                residual1=PlainResidual.Config(drop_path=rate),
                norm2=norm,
                channel_mixer=MLP.Config(fc1=linear, fc2=linear),
                residual2=PlainResidual.Config(drop_path=rate),
            )
            for rate in core.ramp(drop_path_rate, depth)
        ),
        norm=norm,
        head=PrefixHead.Config(num_classes=num_classes),
    )


def data_config(name: str) -> dict[str, Any]:
    """What the published weights expect of an image."""
    side = SIZES[name]["image"]
    return {
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "size": [side, side],
        "channels": 3,
        "interpolation": "bicubic",
        "crop": 1.0 if side == 384 else 0.9,
    }


_TABLE = "Table 1"
PUBLISHED = {
    "vit_base_patch16_224": core.Published(params=86e6, macs=None, at=(224, 224), source=_TABLE),
    "vit_base_patch32_224": core.Published(params=88e6, macs=None, at=(224, 224), source="official model table"),
    "vit_large_patch16_224": core.Published(params=307e6, macs=None, at=(224, 224), source=_TABLE),
    "vit_huge_patch14_224": core.Published(params=632e6, macs=None, at=(224, 224), source=_TABLE),
}


def _timm(spec: core.Config) -> KeyMap:
    return KeyMap(
        (
            row("cls_token", "embed.prefix"),
            row("pos_embed", "embed.positions"),
            row("patch_embed.proj.{p}", "embed.patch.{p}"),
            row("blocks.{i}.norm1.{p}", "blocks.{i}.norm1.{p}"),
            row("blocks.{i}.attn.qkv.{p}", "blocks.{i}.mixer.qkv.{p}"),
            row("blocks.{i}.attn.proj.{p}", "blocks.{i}.mixer.proj.{p}"),
            row("blocks.{i}.norm2.{p}", "blocks.{i}.norm2.{p}"),
            row("blocks.{i}.mlp.fc1.{p}", "blocks.{i}.channel_mixer.fc1.{p}"),
            row("blocks.{i}.mlp.fc2.{p}", "blocks.{i}.channel_mixer.fc2.{p}"),
            row("norm.{p}", "norm.{p}"),
            row("head.{p}", "head.linear.{p}"),
        )
    )


def _official(spec: Any) -> KeyMap:
    """The names of the released ``.npz`` archives: matrices lie input first, heads apart."""
    attention: Attention.Config = spec.blocks[0].mixer
    heads, width, dim = attention.heads, attention.head_dim, attention.dim
    turn = Permute((1, 0))
    block = "Transformer/encoderblock_{i}/"
    attend = block + "MultiHeadDotProductAttention_1/"
    hidden = block + "MlpBlock_3/"
    roles = ("query", "key", "value")
    return KeyMap(
        (
            row("cls", "embed.prefix"),
            row("Transformer/posembed_input/pos_embedding", "embed.positions"),
            row("embedding/kernel", "embed.patch.weight", Permute((3, 2, 0, 1))),
            row("embedding/bias", "embed.patch.bias"),
            row(block + "LayerNorm_0/scale", "blocks.{i}.norm1.weight"),
            row(block + "LayerNorm_0/bias", "blocks.{i}.norm1.bias"),
            row(
                [attend + role + "/kernel" for role in roles],
                "blocks.{i}.mixer.qkv.weight",
                Join(Permute((1, 2, 0), unflat=(heads, width, dim))),
            ),
            row(
                [attend + role + "/bias" for role in roles],
                "blocks.{i}.mixer.qkv.bias",
                Join(Reshape((heads, width))),
            ),
            row(attend + "out/kernel", "blocks.{i}.mixer.proj.weight", Permute((2, 0, 1), unflat=(dim, heads, width))),
            row(attend + "out/bias", "blocks.{i}.mixer.proj.bias"),
            row(block + "LayerNorm_2/scale", "blocks.{i}.norm2.weight"),
            row(block + "LayerNorm_2/bias", "blocks.{i}.norm2.bias"),
            row(hidden + "Dense_0/kernel", "blocks.{i}.channel_mixer.fc1.weight", turn),
            row(hidden + "Dense_0/bias", "blocks.{i}.channel_mixer.fc1.bias"),
            row(hidden + "Dense_1/kernel", "blocks.{i}.channel_mixer.fc2.weight", turn),
            row(hidden + "Dense_1/bias", "blocks.{i}.channel_mixer.fc2.bias"),
            row("Transformer/encoder_norm/scale", "norm.weight"),
            row("Transformer/encoder_norm/bias", "norm.bias"),
            row("head/kernel", "head.linear.weight", turn),
            row("head/bias", "head.linear.bias"),
        )
    )


KEYS = {"timm": _timm, "official": _official}
