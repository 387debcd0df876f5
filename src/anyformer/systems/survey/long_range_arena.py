"""Long Range Arena: one small encoder and one head for tasks of a thousand tokens and more, with a slot for the mixer.

Long Range Arena: A Benchmark for Efficient Transformers (Tay et al. 2020, arXiv:2011.04006) compares attentions that are
cheaper than softmax attention on tasks that need no pretraining: nested lists, bytes of text, pixels read as a sequence. Here
are the encoder of its vanilla Transformer, with the numbers of each task's configuration in the official code, and small
encoders that differ in the mixer alone. The tasks are :mod:`anyformer.data.list_operations`,
:mod:`anyformer.data.pathfinder` and :mod:`anyformer.data.source_packages`.

The library's linear mixers are causal. In their encoders a token sees earlier ones only, and the mean over all tokens is
classified, as it is in the small encoder with attention, so that the mixer is all that differs.

Names: our ``embed.tokens.class_token`` is their ``cls``, ``head.hidden`` their ``mlp``, ``head.linear`` their ``logits``;
``heads`` times the head's width is their ``qkv_dim``.
"""

import math
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anyformer import core
from anyformer.core.pattern import parse_part
from anyformer.data.list_operations import DIGITS, NAMES
from anyformer.parts.channel_mixers.mlp import MLP
from anyformer.parts.embeds.token_table import Tokens, TokenTable
from anyformer.parts.linear.linear import Linear
from anyformer.parts.norms.layer_norm import LayerNorm
from anyformer.skeletons.blocks import layer_block
from anyformer.skeletons.text_encoder import TextEncoder

PAPER = core.Paper(
    "long_range_arena",
    contributes=("model", "experiment"),
    deviations=(
        "The numbers of the sizes are those of the official code's configurations, which were read; the paper's tables were "
        "not.",
        "The authors take every token 0 for a pad, black pixels too, and their mean counts pads. Here pads are named, reach "
        "nobody, and are not counted.",
        "The authors' GELU is the approximation by a hyperbolic tangent, this one is exact; they differ by up to 5e-4.",
        "There is no dropout, which the authors have after every product and in the attention.",
        "Of the six tasks there are the data of three, drawn or read at hand: pieces of source by package stand for reviews of "
        "films by sentiment, and the pictures of paths are of a generator of our own.",
    ),
)


class ClassTokenTable(core.Embed, name="class_token_table"):
    """Token vectors with a learned one before them, which every text begins with.

    Shapes: ``(batch, tokens)`` whole numbers, or :class:`~anyformer.parts.embeds.token_table.Tokens`, to
    ``(batch, 1 + tokens, dim)``. Errors: UsageError for packed sequences.
    """

    class Config(core.Config):
        """``tokens`` is the table."""

        vocabulary: int = core.bound()
        dim: int = core.bound()
        tokens: core.Config = TokenTable.Config()

    axes = {"class_token": "dim"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.class_token = self.parameter("class_token", core.ZEROS)

    def forward(self, raw: Tensor | Tokens) -> tuple[Tensor, core.Context]:
        """Look up, put the class token before, count the positions from it."""
        x, ctx = self.tokens(raw)
        if ctx.offsets is not None:
            raise core.UsageError("packed sequences have no class token each; give them as rows with pads")
        first = x.new_ones(len(x), 1, dtype=torch.bool)
        return torch.cat((self.class_token.expand(len(x), 1, -1), x), dim=1), replace(
            ctx,
            layout=core.Layout(grid=(x.shape[1],), prefix=1),
            mask=None if ctx.mask is None else torch.cat((first, ctx.mask), dim=1),
            positions=None if ctx.positions is None else torch.cat((~first, ctx.positions + 1), dim=1),
        )


class InterleavedSinusoids(core.Embed, name="interleaved_sinusoids"):
    """Token vectors, and at their positions a sine and a cosine of every frequency beside each other.

    Vaswani et al. 2017 (arXiv:1706.03762, section 3.5). The numbers of the channels are stored with the weights, because a
    pruned model keeps the waves of those it kept.

    Shapes and errors: those of ``tokens``, but for UsageError for packed sequences, which a classifier cannot tell apart.
    """

    class Config(core.Config):
        """``waves`` is how many channels there were before any was cut."""

        vocabulary: int = core.bound()
        dim: int = core.bound()
        base: float = 10000.0
        waves: int = core.derived(lambda c: c.dim)
        tokens: core.Config = TokenTable.Config()

    axes = {"channel": "dim"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.register_buffer("channel", torch.arange(config.dim))

    def forward(self, raw: Tensor | Tokens) -> tuple[Tensor, core.Context]:
        """Look up, add the waves."""
        config: InterleavedSinusoids.Config = self.config
        x, ctx = self.tokens(raw)
        if ctx.offsets is not None:
            raise core.UsageError("packed sequences would get one class together; give them as rows with pads")
        positions = torch.arange(x.shape[1], device=x.device) if ctx.positions is None else ctx.positions
        pair = (self.channel - self.channel % 2).to(torch.promote_types(x.dtype, torch.float32))
        angle = positions[..., None] * torch.exp(pair * (-math.log(config.base) / config.waves))
        return x + torch.where(self.channel % 2 == 0, angle.sin(), angle.cos()).to(x.dtype), ctx


class HiddenClassifier(core.Head, name="hidden_classifier"):
    """``linear(relu(hidden(pooled)))``, of the class token where there is one, else of the mean of the tokens that count.

    Shapes: ``(batch, tokens, dim) -> (batch, num_classes)``. Cost: ``hidden_dim * (dim + num_classes)`` multiply-adds a row.
    """

    class Config(core.Config):
        """``hidden_dim`` is the width between the two products."""

        dim: int = core.bound()
        num_classes: int
        hidden_dim: int
        hidden: core.Config = core.linear()
        linear: core.Config = core.linear()

    axes = {"hidden.weight": "hidden_dim dim", "linear.weight": "num_classes hidden_dim"}

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Pool, score."""
        if ctx.layout is not None and ctx.layout.prefix:
            pooled = x[:, 0]
        elif ctx.mask is None:
            pooled = x.sum(dim=1) / max(1, x.shape[1])
        else:
            counted = x.masked_fill(~ctx.mask[..., None], 0.0).sum(dim=1)
            pooled = counted / ctx.mask.sum(dim=1, keepdim=True).clamp(min=1)
        return self.linear(self.hidden(pooled, "relu"))


class Size(NamedTuple):
    """The numbers of a size; without a class token the mean is classified."""

    vocabulary: int
    classes: int
    dim: int
    depth: int
    hidden: int
    mixer: str
    tokenizer: str
    context: int | None = None
    class_token: bool = False


_LISTS = "list_operations"
_MICRO = Size(len(NAMES), DIGITS, 64, 2, 128, "", _LISTS)
_SMALL = {
    "gated_linear_attention": "gated_linear_attention(heads=2)",
    "delta_net": "delta_net(heads=2)",
    "retention": "retention(heads=2)",
    "mamba": "mamba",
    "mamba2": "mamba2(p=32, state=32)",
    "attention": "attention(heads=4)",
}
SIZES = {
    # the authors' tables have a row for the pad and, of lists, one for what is unknown
    "long_range_arena_listops": Size(17, 10, 512, 4, 1024, "attention(heads=8)", _LISTS, 2000, class_token=True),
    "long_range_arena_text": Size(257, 2, 256, 4, 1024, "attention(heads=4)", "bytes", 1000, class_token=True),
    "long_range_arena_pathfinder": Size(256, 2, 32, 4, 32, "attention(heads=4, head_dim=4)", "pixels", 1024),
    **{f"long_range_arena_{name}_micro": _MICRO._replace(mixer=mixer) for name, mixer in _SMALL.items()},
}
SMALL = tuple(f"long_range_arena_{name}_micro" for name in _SMALL)  # not of the paper: of lists, in minutes


def pattern(name: str, *, num_classes: int | None = None, vocabulary: int | None = None) -> core.Config:
    """The pattern of a size; classes and vocabulary are those of its task unless they are given."""
    size = SIZES[name]
    glorot, default = core.Init("xavier_uniform"), core.Init("uniform_fan_in", 3**0.5)
    linear, norm = Linear.Config(init=glorot), LayerNorm.Config(eps=1e-6)
    table = TokenTable.Config(table=Linear.Config(bias=False, init=core.Init("normal", 1.0)))
    block = layer_block(_started(parse_part(size.mixer)), MLP.Config(hidden=size.hidden, fc1=linear, fc2=linear), norm)
    return TextEncoder.Config(
        dim=size.dim,
        vocabulary=size.vocabulary if vocabulary is None else vocabulary,
        embed=InterleavedSinusoids.Config(tokens=ClassTokenTable.Config(tokens=table) if size.class_token else table),
        blocks=(block,) * size.depth,
        norm=norm,
        head=HiddenClassifier.Config(
            num_classes=size.classes if num_classes is None else num_classes,
            hidden_dim=size.hidden,
            hidden=Linear.Config(init=default),
            linear=Linear.Config(init=default),
        ),
    )


def _started(mixer: Any) -> core.Config:
    """With Glorot's weights where a mixer has no start of its own; the attention's products have no bias."""
    if mixer.part.name.startswith("mamba"):
        return mixer
    weights = Linear.Config(bias=False, init=core.Init("xavier_uniform"))
    products = {"qkv": weights, "proj": weights, "in_proj": weights, "out_proj": weights}
    biased = {"decay_proj": Linear.Config(init=core.Init("xavier_uniform"))}
    return mixer.replace(**{name: part for name, part in {**products, **biased}.items() if hasattr(mixer, name)})


def data_config(name: str) -> dict[str, Any]:
    """What the sequences of a size's task are: tokens of its vocabulary, made by the named tokenizer, and how many at most."""
    size = SIZES[name]
    return {"vocabulary": size.vocabulary, "tokenizer": size.tokenizer, "context": size.context}


PUBLISHED: dict[str, core.Published] = {}  # neither the paper's abstract nor the code prints parameters of these
KEYS: dict[str, Any] = {}  # no weights are public
