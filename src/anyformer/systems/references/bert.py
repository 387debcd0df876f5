"""BERT: the encoder of text that fills in what was masked, from both sides.

BERT: Pre-training of Deep Bidirectional Transformers (Devlin et al. 2018, arXiv:1810.04805): the encoder of the first
Transformer, with the norms after the residual sums, learned positions, GELU, and a vector for the first and the second of
two texts. Scores of every token's identity come from a further layer and the table of the tokens. Against GPT-2 a token
sees later ones too, so that there is no stream.

Names: our ``embed.tokens.tokens.table``, ``embed.tokens.positions`` and ``embed.types`` are their ``word_embeddings``,
``position_embeddings`` and ``token_type_embeddings``; ``mixer.qkv`` is their ``query``, ``key`` and ``value``, ``mixer.proj``
and ``norm1`` their ``attention.output``; ``channel_mixer.fc1`` their ``intermediate.dense``, ``fc2`` and ``norm2`` their
``output``; the head is their ``cls.predictions``.
"""

from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.core.joins import Tie
from anyformer.core.keymap import Join, KeyMap, Row, row
from anyformer.parts.channel_mixers.mlp import MLP
from anyformer.parts.embeds.positioned_token_table import PositionedTokenTable
from anyformer.parts.embeds.token_table import Tokens, TokenTable
from anyformer.parts.linear.linear import Linear
from anyformer.parts.norms.layer_norm import LayerNorm
from anyformer.parts.token_mixers.attention import Attention
from anyformer.skeletons.post_norm_block import PostNormBlock
from anyformer.skeletons.text_encoder import TextEncoder

PAPER = core.Paper(
    "bert",
    contributes=("model", "part"),
    deviations=(
        "The model is that of masked tokens: the pooled first token and the scores of whether one text follows another, "
        "which pre-training has beside it, are not here, and their weights are to be left out of a file first.",
        "Positions are counted over the tokens that count, so that pads before a text do not move it.",
        "There is no dropout in training.",
        "Sizes are those of the paper, and of the published configurations as transformers has them, noted from memory "
        "but for the smaller one, which is transformers' default.",
    ),
)


class Segments(NamedTuple):
    """Texts, some of pairs.

    Attributes:
        ids: (batch, tokens), whole numbers below the vocabulary.
        keep: (batch, tokens), True where a token counts; all do when None.
        types: (batch, tokens), 0 in the first text of a row and 1 in the second; 0 everywhere when None.
    """

    ids: Tensor
    keep: Tensor | None = None
    types: Tensor | None = None


class SegmentTable(core.Embed, name="segment_table"):
    """The vectors of the token, of its place and of its text, summed and normalised.

    Shapes: ``(batch, tokens)`` whole numbers, :class:`~anyformer.parts.embeds.token_table.Tokens` in rows, or
    :class:`Segments` -> ``(batch, tokens, dim)``. Errors: UsageError for packed sequences, and for a text longer than the
    context.
    """

    class Config(core.Config):
        """``kinds`` of texts are told apart; ``init`` is how their vectors start."""

        vocabulary: int = core.bound()
        dim: int = core.bound()
        kinds: int = 2
        tokens: core.Config
        norm: core.Config
        init: core.Init = core.Init("normal", 0.02)

    axes = {"types": "kinds dim"}
    fixed = {"kinds": "its indices are numbers of texts, not channels"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.types = self.parameter("types", config.init)

    def forward(self, raw: Tensor | Tokens | Segments) -> tuple[Tensor, core.Context]:
        """Look up, add, normalise."""
        types = raw.types if isinstance(raw, Segments) else None
        x, ctx = self.tokens(Tokens(raw.ids, raw.keep) if isinstance(raw, Segments) else raw)
        if ctx.offsets is not None:
            raise core.UsageError("packed sequences would see one another here; give them as rows with pads")
        x = x + (self.types[0] if types is None else F.embedding(types, self.types))
        return self.norm(x), ctx


class MaskedTokenHead(core.Head, name="masked_token_head"):
    """``linear(norm(gelu(transform(x)))) + bias``: a score for every token of the vocabulary; section 3.1, task 1.

    Shapes: ``(batch, tokens, dim) -> (batch, tokens, vocabulary)``. Cost: ``dim * (dim + vocabulary)`` multiply-adds a token.
    """

    class Config(core.Config):
        """``linear`` may be shared with the table of the tokens, as here; the bias is the head's own."""

        vocabulary: int = core.bound()
        dim: int = core.bound()
        transform: core.Config = core.linear()
        norm: core.Config
        linear: core.Config = core.linear(bias=False)

    axes = {"transform.weight": "dim dim", "linear.weight": "vocabulary dim", "bias": "vocabulary"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.bias = self.parameter("bias", core.ZEROS)

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Score."""
        return self.linear(self.norm(self.transform(x, "gelu"))) + self.bias


class Size(NamedTuple):
    """The numbers of a size."""

    dim: int
    depth: int
    heads: int
    vocabulary: int = 30522
    context: int = 512
    tokenizer: str = "google-bert/bert-base-uncased"


SIZES = {
    "bert_base_uncased": Size(768, 12, 12),
    "bert_large_uncased": Size(1024, 24, 16, tokenizer="google-bert/bert-large-uncased"),
    "bert_micro": Size(64, 2, 4, vocabulary=256, context=256, tokenizer="bytes"),
    "bert_mini": Size(128, 4, 4, vocabulary=256, context=256, tokenizer="bytes"),
}
SMALL = ("bert_micro", "bert_mini")  # of bytes, not of the paper: for tests and tight budgets


def pattern(name: str, *, vocabulary: int | None = None) -> core.Config:
    """The pattern of a size; ``vocabulary`` is that of the published weights, or of bytes, unless it is given."""
    size = SIZES[name]
    # The norms keep the size of what passes, so that small sizes need no start of their own; a larger one is hard to train.
    start = core.Init("normal", 0.02)
    linear, norm = Linear.Config(init=start), LayerNorm.Config(eps=1e-12)
    tokens = PositionedTokenTable.Config(
        context=size.context, tokens=TokenTable.Config(table=Linear.Config(bias=False, init=start)), init=start
    )
    block = PostNormBlock.Config(
        mixer=Attention.Config(heads=size.heads, qkv=linear, proj=linear),
        norm1=norm,
        channel_mixer=MLP.Config(fc1=linear, fc2=linear),
        norm2=norm,
    )
    return TextEncoder.Config(
        dim=size.dim,
        vocabulary=size.vocabulary if vocabulary is None else vocabulary,
        embed=SegmentTable.Config(tokens=tokens, norm=norm, init=start),
        blocks=(block,) * size.depth,
        head=MaskedTokenHead.Config(
            transform=linear, norm=norm, linear=core.Shared.Config(path="embed.tokens.tokens.table")
        ),
    )


def data_config(name: str) -> dict[str, Any]:
    """What the published weights expect of a text."""
    size = SIZES[name]
    return {"vocabulary": size.vocabulary, "tokenizer": size.tokenizer, "context": size.context}


_SOURCE = "arXiv:1810.04805, section 3"
PUBLISHED = {
    "bert_base_uncased": core.Published(params=110e6, macs=None, at=(64,), source=_SOURCE),
    "bert_large_uncased": core.Published(params=340e6, macs=None, at=(64,), source=_SOURCE),
}


def _transformers(spec: Any) -> KeyMap:
    return _key_map(
        row("bert.embeddings.word_embeddings.weight", "embed.tokens.tokens.table.weight"),
        row("cls.predictions.bias", "head.bias"),
    )


def _oracle(spec: Any) -> KeyMap:
    """As the module has them: tied tensors under both names."""
    tables = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
    return _key_map(
        row(tables, "embed.tokens.tokens.table.weight", Tie()),
        row(("cls.predictions.bias", "cls.predictions.decoder.bias"), "head.bias", Tie()),
    )


def _key_map(*tied: Row) -> KeyMap:
    theirs, ours = "bert.encoder.layer.{i}", "blocks.{i}"
    heads = tuple(f"{theirs}.attention.self.{role}" for role in ("query", "key", "value"))
    return KeyMap(
        (
            *tied,
            row("bert.embeddings.position_embeddings.weight", "embed.tokens.positions"),
            row("bert.embeddings.token_type_embeddings.weight", "embed.types"),
            row("bert.embeddings.LayerNorm.{p}", "embed.norm.{p}"),
            *(row([f"{h}.{p}" for h in heads], f"{ours}.mixer.qkv.{p}", Join()) for p in ("weight", "bias")),
            row(f"{theirs}.attention.output.dense.{{p}}", f"{ours}.mixer.proj.{{p}}"),
            row(f"{theirs}.attention.output.LayerNorm.{{p}}", f"{ours}.norm1.{{p}}"),
            row(f"{theirs}.intermediate.dense.{{p}}", f"{ours}.channel_mixer.fc1.{{p}}"),
            row(f"{theirs}.output.dense.{{p}}", f"{ours}.channel_mixer.fc2.{{p}}"),
            row(f"{theirs}.output.LayerNorm.{{p}}", f"{ours}.norm2.{{p}}"),
            row("cls.predictions.transform.dense.{p}", "head.transform.{p}"),
            row("cls.predictions.transform.LayerNorm.{p}", "head.norm.{p}"),
        )
    )


KEYS = {"transformers": _transformers, "oracle": _oracle}
