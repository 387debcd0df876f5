"""How attention and Mamba-2 are best put together: layer beside layer, or head beside head within a layer.

Hybrid Architectures for Language Models: Systematic Analysis and Design Insights, which holds two kinds of hybrids against
each other under equal budgets. *Inter-layer*: whole layers of attention among layers of Mamba-2, one to five for efficiency
and one to one for quality, never in front. *Intra-layer*: layers in which half of the heads attend and half are Mamba-2's,
two among eleven plain Mamba-2 layers, spread evenly. What the halves give differs in size, so that each is normalised; then
their difference is best, which takes the noise out of attention, and the concatenation next. Every layer has a perceptron.

Names: our ``mixer1`` is the attention of such a layer, ``mixer2`` its Mamba-2; ``fusion`` "sum" with a last product each is
the concatenation of the paper with one product for both, which is the same function.
"""

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from anyformer import core
from anyformer.core.joins import Concatenate, Counts
from anyformer.core.keymap import Join, KeyMap, Row, row
from anyformer.ops.linear import Activation
from anyformer.parts.channel_mixers.gated_mlp import GatedMLP
from anyformer.parts.embeds.token_table import TokenTable
from anyformer.parts.heads.vocabulary import VocabularyHead
from anyformer.parts.linear.linear import Linear
from anyformer.parts.norms.rms_norm import RMSNorm
from anyformer.parts.positions.rotary import Rotary
from anyformer.parts.token_mixers.grouped_query_attention import GroupedQueryAttention
from anyformer.parts.token_mixers.mamba2 import GroupedRMSNorm, Mamba2
from anyformer.skeletons.blocks import layer_block
from anyformer.skeletons.decoder import Decoder

PAPER = core.Paper(
    "hybrid_lm_analysis",
    contributes=("model", "part"),
    extends=("llama", "mamba2_hybrid"),
    deviations=(
        "The text itself could not be read, only detailed notes on its third version. From these are the primitives "
        "(Llama 3.2 and Mamba-2), the ratios, the places, the fusions and what they are worth. That the norm of each half is "
        "over single heads, and stands before its last product, is our reading of their 'group' norm and 'two' outputs.",
        "Widths and depths at 1B follow from printed sizes: 10M and 25M parameters a block, caches of 256 and 13.4 MiB at "
        "8,192 tokens, two intra-layer blocks among thirteen. The depths of the inter-layer hybrids are ours.",
        "The paper's start could not be read: products start normally, 0.02, Mamba-2's own numbers as in its paper.",
    ),
)


class PreNormLinear(core.LinearPart, name="pre_norm_linear"):
    """A norm before a product: in the place of a mixer's last product it normalises what the heads give.

    Shapes: ``(..., inputs) -> (..., outputs)``. Cost: ``inputs * outputs`` multiply-adds a token.
    """

    class Config(core.Config):
        """One part a slot."""

        inputs: int = core.bound()
        outputs: int = core.bound()
        norm: core.Config
        linear: core.Config = core.linear(bias=False)

    axes = {"linear.weight": "outputs inputs"}

    @classmethod
    def binds(cls, config: Any) -> dict[str, dict[str, str]]:
        """The norm runs over the inputs."""
        return {"norm": {"dim": "inputs"}}

    def forward(self, x: Tensor, act: Activation | None = None, add: Tensor | None = None) -> Tensor:
        """Normalise, then the product, then ``act``, then ``add``."""
        return self.linear(self.norm(x), act, add)

    def scaled(self, scale: Tensor) -> bool:
        """By the product."""
        return self.linear.scaled(scale)


class ParallelState(core.State):
    """Where a stream stands in two mixers side by side."""

    first: Any
    second: Any


class ParallelMixers(core.TokenMixer, name="parallel_mixers"):
    """Two mixers see the same tokens, and what they give is subtracted or added: an intra-layer hybrid.

    Each mixer has a share of the heads, and a last product of its own; ``shared(path=...)`` in place of the second one's makes
    them one product of the fused heads. Section 3.2. Shapes: ``(batch, tokens, dim)`` to the same. Cost and state: those of
    both.
    """

    class Config(core.Config):
        """``fusion`` is of what ``mixer1`` and ``mixer2`` give, each times a learned number where ``scales`` says its start.

        Left open they are attention in half the width, heads of 64 channels, and Mamba-2 half as wide as alone.
        """

        dim: int = core.bound()
        mixer1: core.Config = core.derived(
            lambda c: GroupedQueryAttention.Config(kv_heads=max(1, c.dim // 128), head_dim=min(64, c.dim // 2))
        )
        mixer2: core.Config = core.derived(lambda c: Mamba2.Config(expand=1.0))
        fusion: Literal["difference", "sum"] = "difference"
        scales: core.Init | None = None

    axes = {"scales": "2"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.scales = None if config.scales is None else self.parameter("scales", config.scales)

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Mix whole rows, or packed sequences."""
        return self._fused(self.mixer1(x, ctx), self.mixer2(x, ctx))

    def init_state(self, batch: int, capacity: int, like: Tensor) -> ParallelState:
        """Those of both."""
        return ParallelState(*(mixer.init_state(batch, capacity, like) for mixer in (self.mixer1, self.mixer2)))

    def stream(self, x: Tensor, ctx: core.Context, state: ParallelState) -> tuple[Tensor, ParallelState]:
        """Mix the next tokens."""
        y1, first = self.mixer1.stream(x, ctx, state.first)
        y2, second = self.mixer2.stream(x, ctx, state.second)
        return self._fused(y1, y2), ParallelState(first=first, second=second)

    def _fused(self, first: Tensor, second: Tensor) -> Tensor:
        if self.scales is not None:
            first, second = first * self.scales[0], second * self.scales[1]
        return first - second if self.config.fusion == "difference" else first + second


@dataclass(frozen=True)
class Size:
    """The numbers of a size: ``layers`` has T for attention, M for Mamba-2 and H for both, head beside head."""

    layers: str
    dim: int = 2048
    hidden: int = 8192
    heads: int = 32
    kv_heads: int = 8
    p: int = 64
    state: int = 128
    fusion: Literal["difference", "sum"] = "difference"
    base: float | None = 500000.0
    vocabulary: int = 128256


def spread(letter: str, count: int, depth: int) -> str:
    """``count`` layers of a kind in the middle of equal spans of ``depth`` layers, the others Mamba-2's."""
    places = {(2 * place + 1) * depth // (2 * count) for place in range(count)}
    return "".join(letter if layer in places else "M" for layer in range(depth))


_BYTES: dict[str, Any] = {"heads": 4, "kv_heads": 2, "p": 16, "state": 16, "base": 10000.0, "vocabulary": 256}

SIZES: dict[str, Size] = {
    "hybrid_lm_transformer_1b": Size("T" * 16),
    "hybrid_lm_mamba_1b": Size("M" * 13),
    "hybrid_lm_inter_1to5_1b": Size(spread("T", 2, 13)),
    "hybrid_lm_inter_1to1_1b": Size(spread("T", 7, 14)),
    "hybrid_lm_intra_1to5_1b": Size(spread("H", 2, 13)),
    "hybrid_lm_intra_1to5_concat_1b": Size(spread("H", 2, 13), fusion="sum"),
    "hybrid_lm_intra_1to5_nope_1b": Size(spread("H", 2, 13), base=None),
    "hybrid_lm_micro": Size(spread("H", 1, 3), dim=64, hidden=176, **_BYTES),
    "hybrid_lm_mini": Size(spread("T", 1, 4), dim=128, hidden=352, **_BYTES),
}
SMALL = ("hybrid_lm_micro", "hybrid_lm_mini")  # of bytes, not of the paper: for tests and tight budgets


def pattern(name: str, *, vocabulary: int | None = None) -> core.Config:
    """The pattern of a size; ``vocabulary`` is Llama 3's, or that of bytes for the small sizes, unless it is given."""
    size = SIZES[name]
    # Small widths and short trainings need weights that keep the variance of what passes through them.
    start = core.Init("xavier_uniform") if name in SMALL else core.Init("normal", 0.02)
    linear, norm = Linear.Config(bias=False, init=start), RMSNorm.Config(eps=1e-5)
    position = None if size.base is None else Rotary.Config(base=size.base)
    group, head_dim = size.heads // size.kv_heads, size.dim // size.heads
    heads = 2 * size.dim // size.p

    def attention(share: int, last: core.Config) -> core.Config:
        """A share of the heads."""
        return GroupedQueryAttention.Config(
            kv_heads=size.kv_heads // share, group=group, head_dim=head_dim, position=position, qkv=linear, proj=last
        )

    def mamba(share: int, norm: core.Config | None, last: core.Config) -> core.Config:
        return Mamba2.Config(p=size.p, heads=heads // share, state=size.state, in_proj=linear, norm=norm, out_proj=last)

    def normed(heads: int) -> core.Config:
        """The last product, after a norm of each head."""
        return PreNormLinear.Config(norm=GroupedRMSNorm.Config(groups=heads), linear=linear)

    halves = ParallelMixers.Config(
        mixer1=attention(2, normed(size.heads // 2)), mixer2=mamba(2, None, normed(heads // 2)), fusion=size.fusion
    )
    kinds = {"T": attention(1, linear), "M": mamba(1, GroupedRMSNorm.Config(), linear), "H": halves}
    perceptron = GatedMLP.Config(hidden=size.hidden, fc1=linear, fc2=linear)
    blocks = {letter: layer_block(kind, perceptron, norm) for letter, kind in kinds.items()}
    return Decoder.Config(
        dim=size.dim,
        vocabulary=size.vocabulary if vocabulary is None else vocabulary,
        embed=TokenTable.Config(table=linear),
        blocks=tuple(blocks[letter] for letter in size.layers),
        norm=norm,
        head=VocabularyHead.Config(linear=core.Shared.Config(path="embed.table")),
    )


def data_config(name: str) -> dict[str, Any]:
    """What a text must look like; the sizes of the paper were trained on 8,192 tokens."""
    small = name in SMALL
    tokenizer = "bytes" if small else "meta-llama/Llama-3.2-1B"
    return {"vocabulary": SIZES[name].vocabulary, "tokenizer": tokenizer, "context": None if small else 8192}


PUBLISHED: dict[str, core.Published] = {}


def _oracle(spec: Any) -> KeyMap:
    """The names of the transcription, which are TorchTitan's and Mamba-2's."""
    theirs, ours = "layers.{i}", "blocks.{i}"
    gates = tuple(f"{theirs}.feed_forward.w{number}.weight" for number in (1, 3))
    mixers = (line for layer, block in enumerate(spec.blocks) for line in _mixer(layer, block.mixer))
    return KeyMap(
        (
            row("tok_embeddings.weight", "embed.table.weight"),
            *mixers,
            row(f"{theirs}.mixer_norm.weight", f"{ours}.norm1.weight"),
            row(f"{theirs}.ffn_norm.weight", f"{ours}.norm2.weight"),
            row(gates, f"{ours}.channel_mixer.fc1.weight", Join(count=2)),
            row(f"{theirs}.feed_forward.w2.weight", f"{ours}.channel_mixer.fc2.weight"),
            row("norm.weight", "norm.weight"),
        )
    )


def _mixer(layer: int, mixer: Any) -> tuple[Row, ...]:
    theirs, ours = f"layers.{layer}.mixer", f"blocks.{layer}.mixer"
    if mixer.part is ParallelMixers:
        return (
            *_attention(mixer.mixer1, f"{theirs}.attention", f"{ours}.mixer1"),
            row(f"{theirs}.attention.norm.weight", f"{ours}.mixer1.proj.norm.weight"),
            row(f"{theirs}.attention.wo.weight", f"{ours}.mixer1.proj.linear.weight"),
            *_mamba2(f"{theirs}.mamba", f"{ours}.mixer2"),
            row(f"{theirs}.mamba.norm.weight", f"{ours}.mixer2.out_proj.norm.weight"),
            row(f"{theirs}.mamba.out_proj.weight", f"{ours}.mixer2.out_proj.linear.weight"),
        )
    if mixer.part is Mamba2:
        last = tuple(row(f"{theirs}.{name}.weight", f"{ours}.{name}.weight") for name in ("norm", "out_proj"))
        return (*_mamba2(theirs, ours), *last)
    return (*_attention(mixer, theirs, ours), row(f"{theirs}.wo.weight", f"{ours}.proj.weight"))


def _attention(mixer: Any, theirs: str, ours: str) -> tuple[Row, ...]:
    key = mixer.kv_heads * mixer.head_dim
    roles = tuple(f"{theirs}.w{role}.weight" for role in "qkv")
    heads = row(roles, f"{ours}.qkv.weight", Concatenate((mixer.group * key, key, key)))
    return (heads,) if mixer.position is None else (heads, row((), f"{ours}.position.pair", Counts()))


def _mamba2(theirs: str, ours: str) -> tuple[Row, ...]:
    return (
        row(f"{theirs}.in_proj.weight", f"{ours}.in_proj.weight"),
        row(f"{theirs}.conv1d.{{p}}", f"{ours}.convolution.{{p}}"),
        row(f"{theirs}.dt_bias", f"{ours}.step_bias"),
        row(f"{theirs}.A_log", f"{ours}.log_rates"),
        row(f"{theirs}.D", f"{ours}.skip"),
    )


KEYS = {"oracle": _oracle}
