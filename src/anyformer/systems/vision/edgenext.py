"""EdgeNeXt: a light pyramid of convolutions, with split depth-wise transpose attention (SDTA) closing its later stages.

EdgeNeXt: Efficiently Amalgamated CNN-Transformer Architecture for Mobile Vision Applications. Convolution encoders are
ConvNeXt's layer with kernels that grow from stage to stage (section 3); the SDTA encoder splits channels into groups,
passes them through a cascade of depth-wise convolutions, and then attends over channels instead of pixels, so its cost is
linear in pixels.

Names: our ``mixer`` is their ``dwconv`` or, in an SDTA layer, ``convs``, ``pos_embd``, ``norm_xca``, ``xca`` and
``gamma_xca`` together; ``channel_mixer.fc1`` and ``fc2`` their ``pwconv1`` and ``pwconv2``.
"""

from math import ceil, pi
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.core.keymap import KeyMap, Reshape, Row, row
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

PAPER = core.Paper(
    "edgenext",
    contributes=("model", "part"),
    extends=("convnext",),
    deviations=(
        "The paper draws the perceptron of an SDTA encoder on top of the attention's residual; the official code adds its "
        "output to the input of the whole encoder, and so does this file.",
        "The official position encoding is computed in float32 whatever the model's type; so it is here.",
    ),
)


class CrossCovarianceAttention(core.TokenMixer, name="cross_covariance_attention"):
    """Attention over channels: each channel takes a weighted mean of the others' values (XCiT, arXiv:2106.09681, eq. 2).

    Queries and keys have length 1 over the tokens; a learned ``temperature`` a head stands for the scale. Shapes:
    ``(batch, *grid, dim)`` to the same. Cost: ``4 * dim * heads * head_dim + 2 * heads * head_dim^2`` multiply-adds a
    token: O(tokens).
    """

    class Config(core.Config):
        """``eps`` keeps the length of a silent channel off zero."""

        dim: int = core.bound()
        heads: int
        head_dim: int = core.derived(lambda c: c.dim // c.heads)
        eps: float = 1e-12
        qkv: core.Config = core.linear()
        proj: core.Config = core.linear()

    axes = {
        "temperature": "heads 1 1",
        "qkv.weight": "(q:heads head_dim + k:heads head_dim + v:heads head_dim) dim",
        "proj.weight": "dim (heads head_dim)",
    }
    reduces = ("head_dim",)
    refuses = {"stream": "the weights depend on all tokens"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.temperature = self.parameter("temperature", core.ONES)

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Attend over the channels of each head."""
        config: CrossCovarianceAttention.Config = self.config
        tokens = x.flatten(1, -2)
        batch, count, _ = tokens.shape
        qkv = self.qkv(tokens).view(batch, count, 3, config.heads, config.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 4, 1).unbind(0)  # (batch, heads, head_dim, tokens)
        q, k = F.normalize(q, dim=-1, eps=config.eps), F.normalize(k, dim=-1, eps=config.eps)
        weights = (q @ k.transpose(-2, -1) * self.temperature).softmax(dim=-1)
        return self.proj((weights @ v).permute(0, 3, 1, 2).flatten(2)).view(x.shape)

    def scaled(self, scale: Tensor) -> bool:
        """By the last product."""
        return self.proj.scaled(scale)


class FourierPosition(core.Part, name="fourier_position"):
    """Sines and cosines of the row and of the column, mapped to ``dim`` channels (DETR's encoding, arXiv:2005.12872).

    Gives ``(rows, columns, dim)``, to be added to features on a grid. Cost: ``2 * hidden * dim`` multiply-adds a token.
    """

    slot = "input_position"

    class Config(core.Config):
        """``hidden`` waves for either direction, their lengths growing up to ``2 pi temperature``; ``eps`` as official."""

        dim: int = core.bound()
        hidden: int = 32
        temperature: float = 10000.0
        eps: float = 1e-6
        projection: core.Config = core.linear()

    axes = {"projection.weight": "dim (2 hidden)"}
    fixed = {"hidden": "the lengths of all waves depend on their number"}

    def waves(self, count: int, device: torch.device) -> Tensor:
        """The waves ``(count, hidden)`` along one direction; in float32, in the official order of operations."""
        config: FourierPosition.Config = self.config
        place = torch.arange(1, count + 1, dtype=torch.float32, device=device)
        place = place / (place[-1:] + config.eps) * (2 * pi)
        index = torch.arange(config.hidden, dtype=torch.float32, device=device)
        length = config.temperature ** (2 * torch.div(index, 2, rounding_mode="floor") / config.hidden)
        angle = place[:, None] / length
        return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), dim=-1).flatten(1)

    def forward(self, grid: tuple[int, ...], like: Tensor) -> Tensor:
        """The encoding of a grid, in the type and on the device of ``like``."""
        rows, columns = grid
        down, across = self.waves(rows, like.device), self.waves(columns, like.device)
        both = torch.cat(
            (down[:, None].expand(-1, columns, -1), across[None].expand(rows, -1, -1)),
            dim=-1,
        )
        return self.projection(both.to(like.dtype))


class SDTA(core.TokenMixer, name="sdta"):
    """Channel groups pass a cascade of depth-wise convolutions, then all channels attend to one another; section 3.1.

    Of ``chunks`` groups of ``width`` channels each is convolved after the one before was added; the ``rest`` passes as it
    is. Shapes: ``(batch, height, width, dim)`` to the same. Cost: O(tokens).
    """

    class Config(core.Config):
        """``chunks`` groups are convolved, each of ``width`` channels."""

        dim: int = core.bound()
        chunks: int
        width: int = core.derived(lambda c: ceil(c.dim / (c.chunks + 1)))
        convolutions: tuple[core.Config, ...]
        position: core.Config | None = None
        norm: core.Config
        attention: core.Config
        residual: core.Config

        @property
        def rest(self) -> int:
            """The channels that are not convolved."""
            return self.dim - self.chunks * self.width

    definitions = {"dim": "chunks width + rest"}
    fixed = {"chunks": "every group has a convolution of its own"}
    refuses = {"stream": "looks at all tokens", "prefix": "needs a grid"}

    @classmethod
    def binds(cls, config: Config) -> dict[str, dict[str, str]]:
        """Each convolution sees one group."""
        return {f"convolutions.{i}": {"dim": "width"} for i in range(len(config.convolutions))}

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """The cascade, then the attention on top of it."""
        config: SDTA.Config = self.config
        grid = core.grid_of(ctx, self)
        *groups, rest = x.split((config.width,) * config.chunks + (config.rest,), dim=-1)
        mixed: list[Tensor] = []
        for group, convolution in zip(groups, self.convolutions, strict=True):
            mixed.append(convolution(group + mixed[-1] if mixed else group, ctx))
        x = torch.cat((*mixed, rest), dim=-1)
        if self.position is not None:
            x = x + self.position(grid, x)
        return self.residual(x, self.attention(self.norm(x), ctx))

    def deployed(self) -> core.Part:
        """The attention scaled by its own weights."""
        self.residual = self.residual.folded(self.attention)
        return self


SIZES: dict[str, dict[str, Any]] = {
    "edgenext_xx_small": {"depths": (2, 2, 6, 2), "dims": (24, 48, 88, 168), "heads": 4},
    "edgenext_x_small": {"depths": (3, 3, 9, 3), "dims": (32, 64, 100, 192), "heads": 4},
    "edgenext_small": {"depths": (3, 3, 9, 3), "dims": (48, 96, 160, 304), "heads": 8},
    "edgenext_base": {"depths": (3, 3, 9, 3), "dims": (80, 160, 288, 584), "heads": 8},
    "edgenext_micro": {"depths": (2, 2, 2), "dims": (32, 48, 96), "heads": 4},
    "edgenext_mini": {"depths": (2, 3, 3), "dims": (48, 96, 160), "heads": 4},
}
SMALL = ("edgenext_micro", "edgenext_mini")  # not of the paper: for small images and tight budgets
SMALLEST_PATCH = 2  # four times the steps in the same minutes are worth more than single pixels
KERNELS = (3, 5, 7, 9)
CHUNKS = (0, 1, 2, 3)  # convolved channel groups of the SDTA layer that closes a stage; none closes the first


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
    norm = LayerNorm.Config(eps=1e-6)
    # Small widths and short trainings need weights that keep the variance of what passes through them.
    linear = Linear.Config(init=core.Init("xavier_uniform")) if name in SMALL else None
    scale = core.Init("constant", 0.1 if name in SMALL else 1e-6)
    rates = iter(core.ramp(drop_path_rate, sum(size["depths"])))

    def layer(stage: int, last: bool) -> core.Config:
        rate = next(rates)
        mixer: core.Config = DepthwiseConvolution.Config(kernel=KERNELS[stage])
        if last and stage:
            mixer = SDTA.Config(
                chunks=CHUNKS[stage],
                convolutions=(DepthwiseConvolution.Config(kernel=3),) * CHUNKS[stage],
                position=FourierPosition.Config() if stage == 1 else None,
                norm=norm,
                attention=CrossCovarianceAttention.Config(heads=size["heads"]),
                residual=ScaledResidual.Config(init=scale, drop_path=rate),
            )
        return MixerNormBlock.Config(
            mixer=mixer,
            norm=norm,
            channel_mixer=MLP.Config(fc1=linear, fc2=linear),
            residual=ScaledResidual.Config(init=scale, drop_path=rate),
        )

    whole = Pyramid.Config(
        embed=PatchEmbed.Config(channels=in_chans, patch=patch_size, norm=norm),
        stages=tuple(
            Stage.Config(
                dim=dim,
                down=PatchDown.Config(norm=norm) if stage else None,
                blocks=tuple(layer(stage, index == depth - 1) for index in range(depth)),
            )
            for stage, (depth, dim) in enumerate(zip(size["depths"], size["dims"], strict=True))
        ),
        head=MeanPoolHead.Config(num_classes=num_classes, norm=norm),
    )
    return coarse(whole, in_chans, patch_size) if name in SMALL else whole


def data_config(name: str) -> dict[str, Any]:
    """What the published weights expect of an image."""
    return {
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
        "size": [256, 256],
        "channels": 3,
        "interpolation": "bicubic",
        "crop": 0.95 if name in ("edgenext_small", "edgenext_base") else 0.9,
    }


_TABLE = "official model table"
PUBLISHED = {
    "edgenext_xx_small": core.Published(params=1.33e6, macs=0.261e9, at=(256, 256), source=_TABLE),
    "edgenext_x_small": core.Published(params=2.34e6, macs=0.538e9, at=(256, 256), source=_TABLE),
    "edgenext_small": core.Published(params=5.59e6, macs=1.26e9, at=(256, 256), source=_TABLE),
    "edgenext_base": core.Published(params=18.51e6, macs=3.84e9, at=(256, 256), source=_TABLE),
}


def _keys(spec: Any, stem: str, down: str, layer: str, names: tuple[str, str, str], head: tuple[str, str]) -> KeyMap:
    """Both formats: they name the same tensors, by other prefixes and other words for the convolution and perceptron."""
    convolution, first, second = names
    ours = "stages.{s}.blocks.{j}."
    position = [c.mixer.position for stage in spec.stages for c in stage.blocks if c.mixer.part is SDTA]
    hidden = 2 * next((p.hidden for p in position if p is not None), 0)
    sdta: list[Row] = [
        row(layer + "convs.{k}.{p}", ours + "mixer.convolutions.{k}.{p}"),
        row(
            layer + "pos_embd.token_projection.weight",
            ours + "mixer.position.projection.weight",
            Reshape((-1, hidden, 1, 1)),
        ),
        row(layer + "pos_embd.token_projection.bias", ours + "mixer.position.projection.bias"),
        row(layer + "norm_xca.{p}", ours + "mixer.norm.{p}"),
        row(layer + "gamma_xca", ours + "mixer.residual.gamma"),
        row(layer + "xca.temperature", ours + "mixer.attention.temperature"),
        row(layer + "xca.qkv.{p}", ours + "mixer.attention.qkv.{p}"),
        row(layer + "xca.proj.{p}", ours + "mixer.attention.proj.{p}"),
    ]
    return KeyMap(
        (
            row(stem + ".0.{p}", "embed.{p}"),
            row(stem + ".1.{p}", "embed.norm.{p}"),
            row(down + ".0.{p}", "stages.{s}.down.norm.{p}"),
            row(down + ".1.{p}", "stages.{s}.down.{p}"),
            row(layer + "gamma", ours + "residual.gamma"),
            row(layer + convolution + ".{p}", ours + "mixer.{p}"),
            row(layer + "norm.{p}", ours + "norm.{p}"),
            row(layer + first + ".{p}", ours + "channel_mixer.fc1.{p}"),
            row(layer + second + ".{p}", ours + "channel_mixer.fc2.{p}"),
            *sdta,
            row(head[0] + ".{p}", "head.norm.{p}"),
            row(head[1] + ".{p}", "head.linear.{p}"),
        )
    )


def _timm(spec: core.Config) -> KeyMap:
    names = ("conv_dw", "mlp.fc1", "mlp.fc2")
    return _keys(spec, "stem", "stages.{s}.downsample", "stages.{s}.blocks.{j}.", names, ("head.norm", "head.fc"))


def _official(spec: core.Config) -> KeyMap:
    names = ("dwconv", "pwconv1", "pwconv2")
    return _keys(spec, "downsample_layers.0", "downsample_layers.{s}", "stages.{s}.{j}.", names, ("norm", "head"))


KEYS = {"timm": _timm, "official": _official}
