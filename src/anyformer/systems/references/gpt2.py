"""GPT-2: the decoder with learned positions that language models were held against before Llama.

Language Models are Unsupervised Multitask Learners (Radford et al. 2019, section 2.3), as in the released code: layer
norms before each branch and at the end, positions that are learned vectors, a perceptron with the tanh form of GELU,
biases everywhere, and scores from the table of the tokens. Against Llama it knows no text longer than its context.

Names: our ``embed.tokens.table`` is their ``wte``, ``embed.positions`` their ``wpe``; ``mixer.qkv`` and ``mixer.proj`` are
their ``attn.c_attn`` and ``attn.c_proj``, ``channel_mixer.fc1`` and ``fc2`` their ``mlp.c_fc`` and ``mlp.c_proj``, which they
store transposed; ``norm1`` and ``norm2`` are their ``ln_1`` and ``ln_2``, ``norm`` their ``ln_f``.
"""

from typing import Any, NamedTuple

from anyformer import core
from anyformer.core.joins import Tie
from anyformer.core.keymap import KeyMap, Permute, Row, row
from anyformer.parts.channel_mixers.tanh_mlp import TanhMLP
from anyformer.parts.embeds.positioned_token_table import PositionedTokenTable
from anyformer.parts.embeds.token_table import TokenTable
from anyformer.parts.heads.vocabulary import VocabularyHead
from anyformer.parts.linear.linear import Linear
from anyformer.parts.norms.layer_norm import LayerNorm
from anyformer.parts.token_mixers.grouped_query_attention import GroupedQueryAttention
from anyformer.skeletons.blocks import layer_block
from anyformer.skeletons.decoder import Decoder

PAPER = core.Paper(
    "gpt2",
    contributes=("model", "part"),
    deviations=(
        "Sizes are those of the published configurations, the smallest the default of transformers; the figures of the "
        "paper's table of sizes, and that the authors corrected them, are noted from memory.",
        "Weights start as in transformers, whose vectors of positions start as large as all others.",
        "There is no dropout in training.",
    ),
)


class Size(NamedTuple):
    """The numbers of a size."""

    dim: int
    depth: int
    heads: int
    vocabulary: int = 50257
    context: int = 1024
    tokenizer: str = "openai-community/gpt2"


SIZES = {
    "gpt2": Size(768, 12, 12),
    "gpt2_medium": Size(1024, 24, 16, tokenizer="openai-community/gpt2-medium"),
    "gpt2_large": Size(1280, 36, 20, tokenizer="openai-community/gpt2-large"),
    "gpt2_xl": Size(1600, 48, 25, tokenizer="openai-community/gpt2-xl"),
    "gpt2_micro": Size(64, 2, 4, vocabulary=256, context=256, tokenizer="bytes"),
    "gpt2_mini": Size(128, 4, 4, vocabulary=256, context=256, tokenizer="bytes"),
}
SMALL = ("gpt2_micro", "gpt2_mini")  # of bytes, not of the paper: for tests and tight budgets


def pattern(name: str, *, vocabulary: int | None = None) -> core.Config:
    """The pattern of a size; ``vocabulary`` is that of the published weights, or of bytes, unless it is given."""
    size = SIZES[name]
    # Small widths and short trainings need weights that keep the variance of what passes through them.
    table = first = last = core.Init("xavier_uniform")
    if name not in SMALL:
        table = first = core.Init("normal", 0.02)
        last = core.Init("normal", 0.02 * (2 * size.depth) ** -0.5)  # of both branches of every layer
    widening, narrowing, norm = Linear.Config(init=first), Linear.Config(init=last), LayerNorm.Config(eps=1e-5)
    attention = GroupedQueryAttention.Config(kv_heads=size.heads, qkv=widening, proj=narrowing)
    block = layer_block(attention, TanhMLP.Config(fc1=widening, fc2=narrowing), norm)
    return Decoder.Config(
        dim=size.dim,
        vocabulary=size.vocabulary if vocabulary is None else vocabulary,
        embed=PositionedTokenTable.Config(
            context=size.context, tokens=TokenTable.Config(table=Linear.Config(bias=False, init=table)), init=table
        ),
        blocks=(block,) * size.depth,
        norm=norm,
        head=VocabularyHead.Config(linear=core.Shared.Config(path="embed.tokens.table")),
    )


def data_config(name: str) -> dict[str, Any]:
    """What the published weights expect of a text."""
    size = SIZES[name]
    return {"vocabulary": size.vocabulary, "tokenizer": size.tokenizer, "context": size.context}


_SOURCE = "Radford et al. 2019, table 2, from memory"
PUBLISHED = {
    "gpt2": core.Published(
        params=117e6, macs=None, at=(64,), source=_SOURCE, explained="the authors later corrected it to 124 million"
    ),
    "gpt2_medium": core.Published(params=345e6, macs=None, at=(64,), source=_SOURCE),
    "gpt2_large": core.Published(params=762e6, macs=None, at=(64,), source=_SOURCE),
    "gpt2_xl": core.Published(params=1542e6, macs=None, at=(64,), source=_SOURCE),
}


def _transformers(spec: Any) -> KeyMap:
    return _key_map(row("transformer.wte.weight", "embed.tokens.table.weight"))


def _oracle(spec: Any) -> KeyMap:
    """As the module has them: tied tensors under both names."""
    return _key_map(row(("transformer.wte.weight", "lm_head.weight"), "embed.tokens.table.weight", Tie()))


def _key_map(table: Row) -> KeyMap:
    theirs, ours = "transformer.h.{i}", "blocks.{i}"
    products = {
        "attn.c_attn": "mixer.qkv",
        "attn.c_proj": "mixer.proj",
        "mlp.c_fc": "channel_mixer.fc1",
        "mlp.c_proj": "channel_mixer.fc2",
    }
    return KeyMap(
        (
            table,
            row("transformer.wpe.weight", "embed.positions"),
            *(row(f"{theirs}.ln_{i}.{{p}}", f"{ours}.norm{i}.{{p}}") for i in (1, 2)),
            *(row(f"{theirs}.{a}.weight", f"{ours}.{b}.weight", Permute((1, 0))) for a, b in products.items()),
            *(row(f"{theirs}.{a}.bias", f"{ours}.{b}.bias") for a, b in products.items()),
            row("transformer.ln_f.{p}", "norm.{p}"),
        )
    )


KEYS = {"transformers": _transformers, "oracle": _oracle}
