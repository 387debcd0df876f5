"""CaiT: ViTs that stay trainable when they are deep, and whose class token comes late.

Going deeper with Image Transformers. A learned scale a channel, near 0 at the start, stands in every residual (LayerScale,
eq. 4); the class token is absent while the patches attend to one another, and then attends to them in a stage of its own,
in which they no longer change (class attention, eq. 5 to 8). Heads mix their logits and their weights (talking heads).
Against DeiT there are no new products a token but these; the networks are 24 to 48 layers deep.

Names: our ``blocks`` are theirs, ``head.layers`` their ``blocks_token_only``, ``head.token`` their ``cls_token``, a block's
``mixer.logits`` and ``mixer.weights`` their ``attn.proj_l`` and ``attn.proj_w``, ``residual1.gamma`` and
``residual2.gamma`` their ``gamma_1`` and ``gamma_2``.
"""

import dataclasses
from typing import Any

import torch
from torch import Tensor

from anyformer import core
from anyformer.core.keymap import KeyMap, Reshape, Row, row
from anyformer.ops.attention import attention
from anyformer.parts.channel_mixers.mlp import MLP
from anyformer.parts.embeds.patch_embed import PatchEmbed
from anyformer.parts.embeds.positioned_embed import PositionedEmbed
from anyformer.parts.linear.linear import Linear
from anyformer.parts.norms.layer_norm import LayerNorm
from anyformer.parts.positions.learned_positions import LearnedPositions
from anyformer.parts.residuals.residual import ScaledResidual
from anyformer.skeletons.blocks import PreNormBlock
from anyformer.skeletons.isotropic import Isotropic

PAPER = core.Paper(
    "cait",
    contributes=("model", "part"),
    extends=("vit", "deit"),
    deviations=(
        "The equations named here are from memory; the wiring is that of the official code.",
        "The stage of class attention is the head's, so that the features of a model are those of its patches.",
    ),
)


class HeadMix(core.Part, name="head_mix"):
    """Every head's number for a pair of tokens becomes a weighted sum of all heads' for this pair, plus a bias a head.

    Shapes: ``(batch, heads, queries, keys)`` to the same. Cost: ``heads^2`` multiply-adds a pair.
    """

    slot = "head_mix"

    class Config(core.Config):
        """``init`` is the start of the weights."""

        heads: int = core.bound()
        init: core.Init = core.Init("truncated_normal", 0.02)

    axes = {"weight": "heads heads", "bias": "heads"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.weight = self.parameter("weight", config.init)
        self.bias = self.parameter("bias", core.ZEROS)

    def forward(self, x: Tensor) -> Tensor:
        """Mix; the heads stay where they are, so nothing is copied for it."""
        return (self.weight @ x.flatten(2) + self.bias[:, None]).view(x.shape)


class TalkingHeadsAttention(core.TokenMixer, name="talking_heads_attention"):
    """Attention whose heads mix their logits before the softmax and their weights behind it (arXiv:2003.02436).

    Any grid is taken as one row of tokens, prefix tokens included. ``ctx.mask`` keeps tokens out as keys. Shapes:
    ``(batch, *grid, dim) -> (batch, *grid, dim)``. Cost: ``4 * dim * heads * head_dim`` multiply-adds a token for the
    products, and ``2 * tokens * heads * (head_dim + heads)`` for the attention: O(tokens^2) in all, of memory as well.
    """

    class Config(core.Config):
        """``scale`` multiplies the logits before they are mixed."""

        dim: int = core.bound()
        heads: int
        head_dim: int = core.derived(lambda c: c.dim // c.heads)
        scale: float = core.derived(lambda c: c.head_dim**-0.5)
        qkv: core.Config | None = core.linear()
        proj: core.Config | None = core.linear()
        logits: core.Config = HeadMix.Config()
        weights: core.Config = HeadMix.Config()

    axes = {
        "qkv.weight": "(q:heads head_dim + k:heads head_dim + v:heads head_dim) dim",
        "proj.weight": "dim (heads head_dim)",
    }
    refuses = {"stream": "every token attends to all others, later ones too"}

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Attend over all tokens."""
        config: TalkingHeadsAttention.Config = self.config
        tokens = x.flatten(1, -2)
        batch, count, _ = tokens.shape
        qkv = self.qkv(tokens).view(batch, count, 3, config.heads, config.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        logits = self.logits(q * config.scale @ k.transpose(-2, -1))
        if ctx.mask is not None:
            logits = logits.masked_fill(~ctx.mask[:, None, None, :], torch.finfo(logits.dtype).min)
        weights = self.weights(logits.softmax(dim=-1))
        if ctx.mask is not None:  # the bias of the weights reaches keys that the softmax kept out
            weights = weights * ctx.mask[:, None, None, :]
        return self.proj((weights @ v).transpose(1, 2).flatten(2)).view(x.shape)

    def scaled(self, scale: Tensor) -> bool:
        """By the last product."""
        return self.proj.scaled(scale)


class ClassAttention(core.Part, name="class_attention"):
    """The prefix tokens attend to all tokens, themselves included; eq. 5 to 7.

    ``ctx.mask`` keeps tokens out as keys. Shapes: ``(batch, prefix + tokens, dim) -> (batch, prefix, dim)``. Cost:
    ``2 * dim * heads * head_dim`` multiply-adds a token, linear in the tokens.
    """

    slot = "class_attention"

    class Config(core.Config):
        """``scale`` multiplies the logits."""

        dim: int = core.bound()
        heads: int
        head_dim: int = core.derived(lambda c: c.dim // c.heads)
        scale: float = core.derived(lambda c: c.head_dim**-0.5)
        q: core.Config | None = core.linear()
        k: core.Config | None = core.linear()
        v: core.Config | None = core.linear()
        proj: core.Config | None = core.linear()

    axes = {
        "q.weight": "(heads head_dim) dim",
        "k.weight": "(heads head_dim) dim",
        "v.weight": "(heads head_dim) dim",
        "proj.weight": "dim (heads head_dim)",
    }

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Attend from the prefix."""
        config: ClassAttention.Config = self.config
        prefix = 0 if ctx.layout is None else ctx.layout.prefix

        def heads(y: Tensor) -> Tensor:
            return y.unflatten(-1, (config.heads, config.head_dim)).transpose(1, 2)

        keep = None if ctx.mask is None else ctx.mask[:, None, None, :]
        q, k, v = heads(self.q(x[:, :prefix])), heads(self.k(x)), heads(self.v(x))
        mixed = attention(q, k, v, scale=config.scale, bias=keep)
        return self.proj(mixed.transpose(1, 2).flatten(2))

    def scaled(self, scale: Tensor) -> bool:
        """By the last product."""
        return self.proj.scaled(scale)


class ClassAttentionLayer(core.Part, name="class_attention_layer"):
    """A Transformer layer for the prefix tokens alone, which see all others; the others pass as they are; eq. 5 to 8.

    Shapes: ``(batch, prefix + tokens, dim)`` to the same. Cost: that of the attention; the perceptron's is a prefix token's.
    """

    slot = "class_attention_layer"

    class Config(core.Config):
        """One part a slot."""

        dim: int = core.bound()
        norm1: core.Config
        attention: core.Config
        residual1: core.Config
        norm2: core.Config
        channel_mixer: core.Config
        residual2: core.Config

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """One layer."""
        prefix = 0 if ctx.layout is None else ctx.layout.prefix
        token = self.residual1(x[:, :prefix], self.attention(self.norm1(x), ctx))
        token = self.residual2(token, self.channel_mixer(self.norm2(token), ctx))
        return torch.cat((token, x[:, prefix:]), dim=1)

    def deployed(self) -> core.Part:
        """Both branches scaled by their own weights."""
        self.residual1 = self.residual1.folded(self.attention)
        self.residual2 = self.residual2.folded(self.channel_mixer)
        return self


class ClassAttentionHead(core.Head, name="class_attention_head"):
    """A learned token before the tokens of the grid, layers for it, a norm of it, then scores; section 3.

    Without classes it gives the normalised token. Shapes: ``(batch, *grid, dim) -> (batch, num_classes)``. Cost: that of
    the layers.
    """

    class Config(core.Config):
        """``num_classes`` = 0 leaves the linear map out."""

        dim: int = core.bound()
        num_classes: int = 1000
        token_init: core.Init = core.Init("truncated_normal", 0.02)
        layers: tuple[core.Config, ...]
        norm: core.Config
        linear: core.Config = core.linear()

    axes = {"token": "1 1 dim", "linear.weight": "num_classes dim"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.token = self.parameter("token", config.token_init)
        if config.num_classes == 0:
            self.linear = None

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Gather what the token sees, score it."""
        grid = core.grid_of(ctx, self)
        ctx = dataclasses.replace(ctx, layout=core.Layout(grid=grid, prefix=1))
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x.flatten(1, -2)), dim=1)
        for layer in self.layers:
            x = layer(x, ctx)
        token = self.norm(x[:, 0])
        return token if self.linear is None else self.linear(token)


SIZES: dict[str, dict[str, Any]] = {
    "cait_xxs24_224": {"dim": 192, "depth": 24, "heads": 4, "scale": 1e-5, "image": 224},
    "cait_xxs24_384": {"dim": 192, "depth": 24, "heads": 4, "scale": 1e-5, "image": 384},
    "cait_xxs36_224": {"dim": 192, "depth": 36, "heads": 4, "scale": 1e-5, "image": 224},
    "cait_xxs36_384": {"dim": 192, "depth": 36, "heads": 4, "scale": 1e-5, "image": 384},
    "cait_xs24_384": {"dim": 288, "depth": 24, "heads": 6, "scale": 1e-5, "image": 384},
    "cait_s24_224": {"dim": 384, "depth": 24, "heads": 8, "scale": 1e-5, "image": 224},
    "cait_s24_384": {"dim": 384, "depth": 24, "heads": 8, "scale": 1e-5, "image": 384},
    "cait_s36_384": {"dim": 384, "depth": 36, "heads": 8, "scale": 1e-6, "image": 384},
    "cait_m36_384": {"dim": 768, "depth": 36, "heads": 16, "scale": 1e-6, "image": 384},
    "cait_m48_448": {"dim": 768, "depth": 48, "heads": 16, "scale": 1e-6, "image": 448},
    "cait_micro": {"dim": 64, "depth": 4, "heads": 2, "scale": 0.1, "image": 32, "patch": 4},
    "cait_mini": {"dim": 96, "depth": 6, "heads": 4, "scale": 0.1, "image": 32, "patch": 4},
}
SMALL = ("cait_micro", "cait_mini")  # not of the paper: for small images and tight budgets
SMALLEST_PATCH = 2  # one pixel is too little for a token that attends
CLASS_DEPTH = 2  # layers of class attention, whatever the size


def pattern(
    name: str,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    img_size: int | tuple[int, int] | None = None,
    patch_size: int | None = None,
    drop_path_rate: float = 0.0,
) -> core.Config:
    """The pattern of a size; ``drop_path_rate`` is that of every block but those of class attention, which drop nothing."""
    size = SIZES[name]
    patch = patch_size or size.get("patch", 16)
    height, width = core.pair(img_size or size["image"])
    if min(height, width) < patch:
        raise core.UsageError(
            f"{name}: an image of {height} x {width} holds no patch of {patch}; give a smaller patch_size"
        )
    norm, small = LayerNorm.Config(eps=1e-6), name in SMALL
    # Small widths and short trainings need weights that keep the variance of what passes through them.
    linear = Linear.Config(init=core.Init("xavier_uniform")) if small else None
    mix = HeadMix.Config(init=core.Init("xavier_uniform")) if small else HeadMix.Config()
    scale = core.Init("constant", size["scale"])
    rate = core.ramp(drop_path_rate, 2)[-1]  # which is checked there
    join, kept = ScaledResidual.Config(init=scale, drop_path=rate), ScaledResidual.Config(init=scale)
    channel_mixer = MLP.Config(fc1=linear, fc2=linear)
    block = PreNormBlock.Config(
        norm1=norm,
        mixer=TalkingHeadsAttention.Config(heads=size["heads"], qkv=linear, proj=linear, logits=mix, weights=mix),
        residual1=join,
        norm2=norm,
        channel_mixer=channel_mixer,
        residual2=join,
    )
    reading = ClassAttentionLayer.Config(
        norm1=norm,
        attention=ClassAttention.Config(heads=size["heads"], q=linear, k=linear, v=linear, proj=linear),
        residual1=kept,
        norm2=norm,
        channel_mixer=channel_mixer,
        residual2=kept,
    )
    return Isotropic.Config(
        dim=size["dim"],
        embed=PositionedEmbed.Config(
            tokens=PatchEmbed.Config(channels=in_chans, patch=patch, init=core.Init("uniform_fan_in")),
            position=LearnedPositions.Config(
                rows=height // patch,
                columns=width // patch,
                # positions as large as the patches let attention choose places from the first step on
                init=core.Init("truncated_normal", 0.6 if small else 0.02),
            ),
        ),
        blocks=(block,) * size["depth"],
        head=ClassAttentionHead.Config(num_classes=num_classes, layers=(reading,) * CLASS_DEPTH, norm=norm),
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
        "crop": 1.0,
    }


_TABLE = "official model table"
_TIMM = "timm's table of inference benchmarks, results/benchmark-infer-amp-nchw-pt113-cu117-rtx3090.csv"
PUBLISHED = {
    name: core.Published(params=params, macs=macs, at=(SIZES[name]["image"],) * 2, source=source)
    for name, params, macs, source in (
        ("cait_xxs24_224", 11.96e6, 2.53e9, _TIMM),
        ("cait_xxs24_384", 12.03e6, 9.63e9, _TIMM),
        ("cait_xxs36_224", 17.30e6, 3.77e9, _TIMM),
        ("cait_xxs36_384", 17.37e6, 14.35e9, _TIMM),
        ("cait_xs24_384", 27e6, 19.3e9, _TABLE),
        ("cait_s24_224", 47e6, 9.4e9, _TABLE),
        ("cait_s24_384", 47e6, 32.2e9, _TABLE),
        ("cait_s36_384", 68e6, 48.0e9, _TABLE),
        ("cait_m36_384", 271e6, 173.3e9, _TABLE),
        ("cait_m48_448", 356e6, 329.6e9, _TABLE),
    )
}


def _keys(spec: Any, prefix: str) -> KeyMap:
    """Both formats have the same names, the official ones with a prefix, as their training script left it."""
    rows = [
        row("cls_token", "head.token"),
        row("pos_embed", "embed.position.table", Reshape((1, -1, spec.dim))),
        row("patch_embed.proj.{p}", "embed.tokens.{p}"),
        row("norm.{p}", "head.norm.{p}"),
        row("head.{p}", "head.linear.{p}"),
        *_layer("blocks.{i}.", "blocks.{i}.", "mixer", {"qkv": "qkv", "proj_l": "logits", "proj_w": "weights"}),
        *_layer("blocks_token_only.{i}.", "head.layers.{i}.", "attention", {"q": "q", "k": "k", "v": "v"}),
    ]
    return KeyMap(tuple(row(prefix + line.theirs[0], line.ours, line.operation) for line in rows))


def _layer(theirs: str, ours: str, mixer: str, products: dict[str, str]) -> tuple[Row, ...]:
    return (
        *(row(f"{theirs}gamma_{i}", f"{ours}residual{i}.gamma") for i in (1, 2)),
        row(theirs + "norm{n}.{p}", ours + "norm{n}.{p}"),
        *(row(f"{theirs}attn.{a}.{{p}}", f"{ours}{mixer}.{b}.{{p}}") for a, b in {**products, "proj": "proj"}.items()),
        row(theirs + "mlp.fc{n}.{p}", ours + "channel_mixer.fc{n}.{p}"),
    )


def _timm(spec: Any) -> KeyMap:
    return _keys(spec, "")


def _official(spec: Any) -> KeyMap:
    return _keys(spec, "module.")


KEYS = {"timm": _timm, "official": _official}
INERT = {
    "blocks.*.mixer.logits.bias": "it adds one number to all logits of a head, which their softmax does not feel",
    "head.layers.*.attention.k.bias": "it adds one number to all logits of a query, which their softmax does not feel",
}
