"""TransNormer: linear attention whose denominator gives way to a norm, above layers that attend inside blocks.

Two things hold linear attention back: the denominator's gradients have no bound, and its weights spread over the whole
sequence even in early layers. NormAttention leaves the denominator out and normalises the output instead; DiagAttention,
in the lower half of the layers, attends inside blocks of 64 tokens that do not overlap. T1 rectifies the products in the
blocks, normalises their output too, and takes ELU of queries and keys above; T2 has softmax in the blocks and 1 + ELU
above. Against the linear Transformer there is no sum of keys, against RetNet no decay.

Names, theirs being those of the authors' fork of fairseq: our ``in_proj`` is their ``q_proj``, ``k_proj`` and ``v_proj``, one
below the other, ``position.frequency`` and ``position.mirror`` their ``urpe.theta`` and ``urpe.v``, ``channel_mixer`` their
``glu`` with ``l1`` and ``l2`` in ``fc1`` and ``l3`` in ``fc2``.
"""

import math
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.core.joins import Counts, Tie
from anyformer.core.keymap import Join, KeyMap, Reshape, row
from anyformer.ops import block_attention as blocks
from anyformer.ops.linear_attention import linear_attention
from anyformer.parts.channel_mixers.gated_mlp import GatedMLP
from anyformer.parts.embeds.token_table import Tokens, TokenTable
from anyformer.parts.heads.vocabulary import VocabularyHead
from anyformer.parts.linear.linear import Linear
from anyformer.parts.token_mixers.linear_memory import (
    LinearMemory,
    MemoryState,
    at_least_single,
    counted,
    heads,
    merged,
)
from anyformer.skeletons.blocks import layer_block
from anyformer.skeletons.decoder import Decoder

PAPER = core.Paper(
    "transnormer",
    contributes=("model", "part"),
    deviations=(
        "Sizes, norms, positions and starts are those of transnormer_t1 and transnormer_t2 in the authors' fork of fairseq. "
        "The paper was read in summaries alone; its figures of parameters are noted from memory.",
        "The gate has SiLU, as the fork had until 28 October 2022, after the paper; since then it takes the name that "
        "its models ask for, swish, for no activation.",
        "The vocabulary of 267,744 is what fairseq makes of WikiText-103, from memory.",
        "The reflection before the rotary positions is drawn at random once and stored, as theirs is.",
        "The bidirectional models (masked language modelling, Long-Range Arena) are left out: these are decoders.",
    ),
)


class SimpleRMSNorm(core.Norm, name="simple_rms_norm"):
    """Each token's channels over their root mean square, without a scale. arXiv:2210.10340; the fork's ``SimpleRMSNorm``.

    Shapes: ``(..., dim) -> (..., dim)``. Cost: O(dim) a token.
    """

    class Config(core.Config):
        """``eps`` is added to the root."""

        dim: int = core.bound()
        eps: float = 1e-8

    reduces = ("dim",)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise over the last axis."""
        wide = x.to(at_least_single(x))
        root = torch.linalg.vector_norm(wide, dim=-1, keepdim=True) * self.config.dim**-0.5
        return (wide / (root + self.config.eps)).to(x.dtype)


class MirroredRotary(core.Part, name="mirrored_rotary"):
    """A reflection that never changes, then a turn of neighbouring channels by learned angles a position.

    Products of turned queries and keys depend on their distance, whatever the reflection. The fork's ``Urpe``, with a
    Householder matrix before a rotary one. Shapes: ``(batch, heads, tokens, head_dim)`` to the same.
    """

    slot = "query_key_position"

    class Config(core.Config):
        """Angles start at ``base ** (-2 i / head_dim)``."""

        head_dim: int = core.bound()
        base: float = 10000.0

        @property
        def half(self) -> int:
            """The number of pairs."""
            return self.head_dim // 2

    axes = {"frequency": "half", "mirror": "head_dim"}
    definitions = {"head_dim": "half 2"}
    fixed = {"half": "the reflection's vector has length one over all channels"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.frequency = torch.nn.Parameter(config.base ** (-torch.arange(config.half) / config.half))
        mirror = torch.empty(config.head_dim)
        core.Init("normal").fill(mirror)
        self.register_buffer("mirror", F.normalize(mirror, dim=0))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """``x`` turned for ``positions``, which are ``(tokens,)`` or ``(batch, 1, tokens)`` whole numbers."""
        # Learned angles are no round numbers: single precision would lose them at a thousand turns.
        angle = torch.remainder(positions[..., None] * self.frequency.double(), 2 * math.pi).to(at_least_single(x))
        cosine, sine = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        x = x - 2 * (x @ self.mirror)[..., None] * self.mirror
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        return torch.stack((first * cosine - second * sine, first * sine + second * cosine), -1).flatten(-2)


class NormAttention(LinearMemory, name="norm_attention"):
    """``S = S + k v^T``, ``o = S^T q``, all heads' outputs normalised together; queries and keys are ELU or 1 + ELU.

    arXiv:2210.10340, NormAttention. What ``ctx.mask`` keeps out writes nothing.

    Shapes: ``(batch, tokens, dim)`` to the same. Cost: ``4 dim heads key`` multiply-adds a token for the products, and
    O(heads * key^2) for the memory, which is the state.
    """

    class Config(core.Config):
        """``key`` and ``value`` are the widths of a head."""

        dim: int = core.bound()
        heads: int
        key: int = core.derived(lambda c: c.dim // c.heads)
        value: int = core.derived(lambda c: c.dim // c.heads)
        activation: Literal["elu", "1+elu"] = "1+elu"
        position: core.Config = MirroredRotary.Config()
        in_proj: core.Config = core.linear()
        norm: core.Config = SimpleRMSNorm.Config()
        out_proj: core.Config = core.linear()

    axes = {
        "in_proj.weight": "(q:heads key + k:heads key + v:heads value) dim",
        "out_proj.weight": "dim (heads value)",
    }

    @classmethod
    def binds(cls, config: Any) -> dict[str, dict[str, str]]:
        """The norm runs over all heads, positions turn the keys of one."""
        return {"norm": {"dim": "heads value"}, "position": {"head_dim": "key"}}

    def mix(self, x: Tensor, ctx: core.Context, state: MemoryState | None) -> tuple[Tensor, MemoryState]:
        """See :class:`~anyformer.parts.token_mixers.linear_memory.LinearMemory`."""
        config: NormAttention.Config = self.config
        both, v = self.in_proj(x).split((2 * config.heads * config.key, config.heads * config.value), dim=-1)
        positions = torch.arange(x.shape[1], device=x.device) if ctx.positions is None else ctx.positions
        both = F.elu(both) if config.activation == "elu" else 1 + F.elu(both)
        both = self.position(heads(both, 2 * config.heads), positions[:, None] if positions.ndim == 2 else positions)
        q, k = both.chunk(2, dim=1)
        k, v = counted(ctx, k, heads(v, config.heads))
        memory = None if state is None else state.memory
        y, memory = linear_attention(q, k, v, state=memory, offsets=ctx.offsets)
        return self.out_proj(self.norm(merged(y))), MemoryState(memory=memory, convolution=None)


class DiagAttention(core.TokenMixer, name="diag_attention"):
    """Causal attention inside blocks that do not overlap, with a softmax, or rectified and normalised.

    Positions are counted from the start of each block. arXiv:2210.10340, DiagAttention. What ``ctx.mask`` keeps out is no
    key and fills no block.

    Shapes: ``(batch, tokens, dim)`` to the same. Cost: ``4 dim^2`` multiply-adds a token for the products, and O(block *
    dim) for the attention. State: ``2 dim`` numbers for each token of one block.
    """

    class Config(core.Config):
        """``scale`` multiplies the products; ``norm`` runs over all heads."""

        dim: int = core.bound()
        heads: int
        head_dim: int = core.derived(lambda c: c.dim // c.heads)
        block: int = 64
        weights: blocks.Weights = "softmax"
        scale: float = core.derived(lambda c: c.head_dim**-0.5)
        position: core.Config = MirroredRotary.Config()
        in_proj: core.Config = core.linear()
        norm: core.Config | None = None
        out_proj: core.Config = core.linear()

    axes = {
        "in_proj.weight": "(q:heads head_dim + k:heads head_dim + v:heads head_dim) dim",
        "out_proj.weight": "dim (heads head_dim)",
    }

    @classmethod
    def binds(cls, config: Any) -> dict[str, dict[str, str]]:
        """The norm runs over all heads."""
        return {"norm": {"dim": "heads head_dim"}}

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Mix whole rows, or packed sequences."""
        places, q, k, v = self._heads(x, ctx, None)
        options = {"block": self.config.block, **self._options()}
        return self._out(blocks.block_attention(q, k, v, places, keep=ctx.mask, **options))

    def init_state(self, batch: int, capacity: int, like: Tensor) -> blocks.BlockState:
        """An empty block."""
        config: DiagAttention.Config = self.config
        return blocks.new_block(like, batch, config.heads, config.block, config.head_dim, config.head_dim)

    def stream(self, x: Tensor, ctx: core.Context, state: blocks.BlockState) -> tuple[Tensor, blocks.BlockState]:
        """Mix the next tokens."""
        places, q, k, v = self._heads(x, ctx, state)
        y, state = blocks.streamed_block_attention(q, k, v, places, state, keep=ctx.mask, **self._options())
        return self._out(y), state

    def scaled(self, scale: Tensor) -> bool:
        """By the last product."""
        return self.out_proj.scaled(scale)

    def _heads(
        self, x: Tensor, ctx: core.Context, state: blocks.BlockState | None
    ) -> tuple[blocks.Places, Tensor, Tensor, Tensor]:
        config: DiagAttention.Config = self.config
        both, v = heads(self.in_proj(x), 3 * config.heads).split((2 * config.heads, config.heads), dim=1)
        places = blocks.places_of(v, config.block, state=state, keep=ctx.mask, offsets=ctx.offsets)
        q, k = self.position(both, places.place[:, None] % config.block).chunk(2, dim=1)
        k, v = counted(ctx, k, v)
        return places, q, k, v

    def _options(self) -> dict[str, Any]:
        return {"scale": self.config.scale, "weights": self.config.weights}

    def _out(self, y: Tensor) -> Tensor:
        y = merged(y)
        return self.out_proj(y if self.norm is None else self.norm(y))


class SinusoidalTokens(core.Embed, name="sinusoidal_tokens"):
    """Token vectors, and sines and cosines of the tokens' positions, which fairseq counts from 2.

    Shapes: ``(batch, tokens)`` whole numbers, or :class:`~anyformer.parts.embeds.token_table.Tokens`, to ``(batch, tokens,
    dim)``. The numbers of the channels are stored with the weights, because a pruned model keeps the waves of those it kept.
    """

    class Config(core.Config):
        """``waves`` is how many channels there were before any was cut, half of them sines."""

        vocabulary: int = core.bound()
        dim: int = core.bound()
        first: int = 2
        base: float = 10000.0
        waves: int = core.derived(lambda c: c.dim)
        tokens: core.Config = TokenTable.Config()

    axes = {"channel": "dim"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.register_buffer("channel", torch.arange(config.dim))

    def forward(self, raw: Tensor | Tokens) -> tuple[Tensor, core.Context]:
        """Look up, and add the waves."""
        return self.stream(raw, 0)

    def stream(self, raw: Tensor | Tokens, seen: Any) -> tuple[Tensor, core.Context]:
        """The same after so many tokens, a number or ``(batch, 1)``."""
        config: SinusoidalTokens.Config = self.config
        x, ctx = self.tokens(raw)
        positions = torch.arange(x.shape[1], device=x.device) if ctx.positions is None else ctx.positions
        half, precise = config.waves // 2, at_least_single(x)
        rate = torch.exp((self.channel % half).to(precise) * (-math.log(config.base) / (half - 1)))
        angle = (positions + seen + config.first)[..., None] * rate
        return x + torch.where(self.channel < half, angle.sin(), angle.cos()).to(x.dtype), ctx


SIZES: dict[str, dict[str, Any]] = {
    "transnormer_t1": {"dim": 512, "depth": 6, "heads": 8, "block": 64, "kind": "t1"},
    "transnormer_t2": {"dim": 512, "depth": 6, "heads": 8, "block": 64, "kind": "t2"},
    "transnormer_micro": {"dim": 64, "depth": 2, "heads": 2, "block": 16, "kind": "t2"},
    "transnormer_rectified_micro": {"dim": 64, "depth": 2, "heads": 2, "block": 16, "kind": "t1"},
    "transnormer_mini": {"dim": 128, "depth": 4, "heads": 2, "block": 64, "kind": "t2"},
}
SMALL = ("transnormer_micro", "transnormer_rectified_micro", "transnormer_mini")  # not of the paper: for bytes


def pattern(name: str, *, vocabulary: int | None = None) -> core.Config:
    """The pattern of a size; ``vocabulary`` is that of the published models, or of bytes, unless it is given."""
    size = SIZES[name]
    dim, rectified = size["dim"], size["kind"] == "t1"
    glorot, default = core.Init("xavier_uniform"), core.Init("uniform_fan_in")
    # Three products in one have twice the fans of each alone, with which Glorot's range is theirs times a root of two.
    apart = core.Init("xavier_uniform", 2**0.5)
    norm = SimpleRMSNorm.Config()
    out = Linear.Config(init=glorot)
    diag = DiagAttention.Config(
        heads=size["heads"],
        block=size["block"],
        weights="relu" if rectified else "softmax",
        in_proj=Linear.Config(init=apart, bias_init=default),
        norm=norm if rectified else None,
        out_proj=out,
    )
    linear = NormAttention.Config(
        heads=size["heads"],
        activation="elu" if rectified else "1+elu",
        in_proj=Linear.Config(init=glorot, bias_init=default),
        norm=norm,
        out_proj=out,
    )
    # Small widths and short trainings need weights that keep the variance of what passes through them.
    fully = Linear.Config(init=glorot if name in SMALL else default, bias_init=default)
    lower, upper = (layer_block(mixer, GatedMLP.Config(fc1=fully, fc2=fully), norm) for mixer in (diag, linear))
    table = Linear.Config(bias=False, init=core.Init("normal", dim**-0.5))
    return Decoder.Config(
        dim=dim,
        vocabulary=vocabulary or data_config(name)["vocabulary"],
        embed=SinusoidalTokens.Config(tokens=TokenTable.Config(scale=math.sqrt(dim), table=table)),
        blocks=(lower,) * (size["depth"] // 2) + (upper,) * (size["depth"] // 2),
        norm=norm,
        head=VocabularyHead.Config(linear=core.Shared.Config(path="embed.tokens.table")),
    )


def data_config(name: str) -> dict[str, Any]:
    """What the published models expect of a text."""
    if name in SMALL:
        return {"vocabulary": 256, "tokenizer": "bytes", "context": None}
    return {"vocabulary": 267744, "tokenizer": "wikitext-103", "context": None}


PUBLISHED = {
    name: core.Published(params=155.99e6, macs=None, at=(64,), source="arXiv:2210.10340, from memory")
    for name in ("transnormer_t1", "transnormer_t2")
}


def _oracle(spec: Any) -> KeyMap:
    """The names of the authors' fork, without the head, which is the table."""
    return _names(spec, row("decoder.embed_tokens.weight", "embed.tokens.table.weight"))


def _official(spec: Any) -> KeyMap:
    """The names of a checkpoint's tensors that hold weights."""
    table = ("decoder.embed_tokens.weight", "decoder.output_projection.weight")
    return _names(spec, row(table, "embed.tokens.table.weight", Tie()))


def _names(spec: Any, table: Any) -> KeyMap:
    theirs, ours = "decoder.layers.{i}", "blocks.{i}"
    pairs = spec.blocks[0].mixer.head_dim // 2
    return KeyMap(
        (
            table,
            row((), "embed.channel", Counts()),
            row(
                tuple(f"{theirs}.self_attn.{role}_proj.{{p}}" for role in "qkv"), f"{ours}.mixer.in_proj.{{p}}", Join()
            ),
            row(f"{theirs}.self_attn.urpe.theta", f"{ours}.mixer.position.frequency", Reshape((1, 1, pairs))),
            row(f"{theirs}.self_attn.urpe.v", f"{ours}.mixer.position.mirror"),
            row(f"{theirs}.self_attn.out_proj.{{p}}", f"{ours}.mixer.out_proj.{{p}}"),
            row(tuple(f"{theirs}.glu.l{i}.{{p}}" for i in (1, 2)), f"{ours}.channel_mixer.fc1.{{p}}", Join(count=2)),
            row(f"{theirs}.glu.l3.{{p}}", f"{ours}.channel_mixer.fc2.{{p}}"),
        )
    )


KEYS = {"official": _official, "oracle": _oracle}
