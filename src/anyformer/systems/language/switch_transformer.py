"""Switch Transformers: T5 with a mixture of experts in every second layer, of which each token sees one.

Switch Transformers: Scaling to Trillion Parameter Models with Simple and Efficient Sparsity (arXiv:2101.03961). Where other
mixtures send a token to two experts or more, one is enough (section 2.1): the router computes less, and every expert may
take fewer tokens. An expert takes a fixed number of a text's tokens; those that come too late pass by the residual alone.
All else is T5's: an encoder that attends both ways and a decoder that attends to it, attention without a scale whose
logits have a bias for each bucket of distances, which all layers of a side share, RMSNorms before each mixer, perceptrons
with ReLU without biases, and one table for source, target and scores, whose features are multiplied by ``dim**-0.5`` before.

Names: our ``mixer`` is their ``layer.0.SelfAttention``, ``cross_mixer`` their ``layer.1.EncDecAttention``, ``kv`` their
``k`` and ``v``, ``proj`` their ``o``, ``position`` their ``relative_attention_bias``; ``channel_mixer`` is the ``mlp`` of
their last layer, ``fc1`` and ``fc2`` in it their ``wi`` and ``wo``, ``router.linear`` their ``router.classifier``.
"""

from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.core.joins import Tie
from anyformer.core.keymap import Join, KeyMap, Row, row
from anyformer.parts.channel_mixers.capped_experts import CappedExperts
from anyformer.parts.channel_mixers.mlp import MLP
from anyformer.parts.embeds.token_table import TokenTable
from anyformer.parts.linear.linear import Linear
from anyformer.parts.norms.rms_norm import RMSNorm
from anyformer.parts.positions.relative_bias import RelativeBias
from anyformer.parts.residuals.residual import PlainResidual
from anyformer.parts.routers.switch import Switch
from anyformer.parts.token_mixers.cross_attention import CrossAttention
from anyformer.parts.token_mixers.relative_attention import CausalRelativeAttention, RelativeAttention
from anyformer.skeletons.blocks import PreNormBlock
from anyformer.skeletons.decoder import Decoder
from anyformer.skeletons.encoder_decoder import CrossBlock, Encoder, EncoderDecoder

PAPER = core.Paper(
    "switch_transformer",
    contributes=("model", "part"),
    deviations=(
        "An expert's capacity is a number of tokens of each text, as in transformers; the paper divides the tokens of a "
        "batch by the experts, times a factor (section 2.2), which lets texts of a batch compete.",
        "Streams count the tokens that asked for an expert, so that a stream is the whole; those of transformers forget.",
        "Weights start with the deviations of transformers' code, but uniform where that is normal and with the square root of "
        "the fan in where an expert's second matrix has that of the width; the authors' configurations start with a tenth "
        "of the variance. The router of the small sizes starts smaller.",
        "No dropout but that inside the experts, off unless asked for: how other places are dropped is T5's matter.",
        "Sizes are those of the released files (config.json of base with 32, 64 and 256 experts) and of the authors' "
        "configurations (flaxformer, switch_large.gin); that the other base sizes differ in their experts alone, and that "
        "large has their capacity too, is assumed.",
        "The paper's sections and its rate of expert dropout are noted from memory; the code of transformers was read.",
        "Left out: XXL, whose gated perceptrons transformers' class has not, and C, whose 61,440 experts are more parts "
        "than a machine for tests can hold.",
    ),
)


START = core.Init("uniform_fan_in", 3**0.5)  # keeps the variance: a standard deviation of 1 / sqrt(fan in)


class SwitchExpert(core.ChannelMixer, name="switch_expert"):
    """``fc2(relu(fc1(x)))`` on every token by itself; while training, features between the two are dropped (section 2.4).

    Shapes: ``(..., dim) -> (..., dim)``. Cost: ``2 * dim * hidden`` multiply-adds a token.
    """

    class Config(core.Config):
        """``dropout`` is the probability of dropping a feature: the paper's expert dropout."""

        dim: int = core.bound()
        hidden: int
        dropout: float = 0.0
        fc1: core.Config = core.linear(bias=False, init=START)
        fc2: core.Config = core.linear(bias=False, init=START)

    axes = {"fc1.weight": "hidden dim", "fc2.weight": "dim hidden"}

    def __init__(self, config: Config) -> None:
        if not 0 <= config.dropout < 1:
            raise core.UsageError(f"a dropout of {config.dropout} leaves nothing; give a rate from 0 to below 1")
        super().__init__(config)

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Widen, activate, drop, narrow."""
        return self.fc2(F.dropout(self.fc1(x, "relu"), self.config.dropout, self.training))

    def scaled(self, scale: Tensor) -> bool:
        """By the last product."""
        return self.fc2.scaled(scale)


class ScaledHead(core.Head, name="scaled_vocabulary_head"):
    """A score for every token, of features times ``scale``: a table whose numbers are of order 1 would give large ones.

    Shapes: ``(batch, tokens, dim) -> (batch, tokens, vocabulary)``.
    """

    class Config(core.Config):
        """``scale`` is a number of its own, so that cutting channels does not change it."""

        vocabulary: int = core.bound()
        dim: int = core.bound()
        scale: float = core.derived(lambda c: c.dim**-0.5)
        linear: core.Config = core.linear(bias=False)

    axes = {"linear.weight": "vocabulary dim"}

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Score."""
        return self.linear(x * self.config.scale)


class Size(NamedTuple):
    """The numbers of a size; encoder and decoder have ``depth`` layers each."""

    dim: int
    hidden: int
    depth: int
    heads: int
    experts: int
    head_dim: int = 64
    capacity: int = 64
    jitter: float = 0.01
    vocabulary: int = 32128
    tokenizer: str = "google/switch-base-8"
    eps: float = 1e-6


SIZES = {
    **{f"switch_base_{experts}": Size(768, 3072, 12, 12, experts) for experts in (8, 16, 32, 64, 128, 256)},
    "switch_large_128": Size(1024, 4096, 24, 16, 128),
    # Of bytes, not of the paper: for tests and tight budgets, whose short trainings take no noise. The capacity of the
    # smallest is one that short texts feel.
    "switch_micro": Size(64, 128, 2, 4, 4, 16, 12, 0.0, 256, "bytes"),
    "switch_mini": Size(128, 384, 4, 2, 4, 64, 64, 0.0, 256, "bytes"),
}
SMALL = ("switch_micro", "switch_mini")


def pattern(name: str, *, vocabulary: int | None = None, expert_dropout: float = 0.0) -> core.Config:
    """The pattern of a size; ``vocabulary`` is that of the published weights, or of bytes, unless it is given.

    ``expert_dropout`` is the rate inside the experts while training, 0.4 where the paper fine-tunes (section 2.4).
    """
    size = SIZES[name] if vocabulary is None else SIZES[name]._replace(vocabulary=vocabulary)
    return _model(size, small=name in SMALL, expert_dropout=expert_dropout)


def _model(size: Size, *, small: bool = False, expert_dropout: float = 0.0) -> core.Config:
    norm, join = RMSNorm.Config(eps=size.eps), PlainResidual.Config()
    linear = Linear.Config(bias=False, init=START)
    attention: dict[str, Any] = {
        "kv_heads": size.heads,
        "head_dim": size.head_dim,
        "scale": 1.0,
        "q": Linear.Config(bias=False, init=core.Init("uniform_fan_in", (3 / size.head_dim) ** 0.5)),
        "kv": linear,
        "proj": linear,
    }
    dense = MLP.Config(hidden=size.hidden, activation="relu", fc1=linear, fc2=linear)
    scores = linear if small else Linear.Config(bias=False, init=core.Init("normal", 1.0))
    routed = CappedExperts.Config(
        router=Switch.Config(jitter=size.jitter, linear=scores),
        capacity=size.capacity,
        balance=0.01,
        experts=(SwitchExpert.Config(hidden=size.hidden, dropout=expert_dropout),) * size.experts,
    )

    def position(side: str, layer: int) -> core.Config:
        if layer:
            return core.Shared.Config(path=f"{side}.blocks.0.mixer.position")
        return RelativeBias.Config(bidirectional=side == "encoder", init=core.Init("normal", size.dim**-0.5))

    def encoder_block(layer: int) -> core.Config:
        return PreNormBlock.Config(
            norm1=norm,
            mixer=RelativeAttention.Config(position=position("encoder", layer), **attention),
            residual1=join,
            norm2=norm,
            channel_mixer=routed if layer % 2 else dense,
            residual2=join,
        )

    def decoder_block(layer: int) -> core.Config:
        return CrossBlock.Config(
            norm1=norm,
            mixer=CausalRelativeAttention.Config(position=position("decoder", layer), **attention),
            norm2=norm,
            cross_mixer=CrossAttention.Config(**attention),
            norm3=norm,
            channel_mixer=routed if layer % 2 else dense,
        )

    table = core.Shared.Config(path="decoder.embed.table")
    return EncoderDecoder.Config(
        encoder=Encoder.Config(
            embed=TokenTable.Config(table=table), blocks=tuple(map(encoder_block, range(size.depth))), norm=norm
        ),
        decoder=Decoder.Config(
            dim=size.dim,
            vocabulary=size.vocabulary,
            embed=TokenTable.Config(table=Linear.Config(bias=False, init=core.Init("normal", 1.0))),
            blocks=tuple(map(decoder_block, range(size.depth))),
            norm=norm,
            head=ScaledHead.Config(linear=table),
        ),
    )


def data_config(name: str) -> dict[str, Any]:
    """What the published weights expect of a text; ``start`` is the token that every target begins with."""
    size = SIZES[name]
    return {"vocabulary": size.vocabulary, "tokenizer": size.tokenizer, "context": None, "start": 0}


PUBLISHED = {
    "switch_large_128": core.Published(
        params=26.37e9, macs=None, at=(64,), source="the released files' 52.74 GB of bfloat16"
    ),
}


TIED = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")


def _key_map(spec: Any) -> KeyMap:
    tied = ("shared.weight", *TIED)
    return KeyMap(
        (
            row(tied, "decoder.embed.table.weight", Tie(4)),
            *_stack("encoder", {"mixer": "layer.0.SelfAttention"}, 1),
            *_stack("decoder", {"mixer": "layer.0.SelfAttention", "cross_mixer": "layer.1.EncDecAttention"}, 2),
        )
    )


def _stack(side: str, attentions: dict[str, str], last: int) -> tuple[Row, ...]:
    theirs, ours = f"{side}.block.{{i}}", f"{side}.blocks.{{i}}"
    rows = [row(f"{theirs}.layer.{k}.layer_norm.weight", f"{ours}.norm{k + 1}.weight") for k in range(last + 1)]
    for part, name in attentions.items():
        heads = tuple(f"{theirs}.{name}.{role}.weight" for role in "kv")
        rows += [
            row(f"{theirs}.{name}.q.weight", f"{ours}.{part}.q.weight"),
            row(heads, f"{ours}.{part}.kv.weight", Join(count=2)),
            row(f"{theirs}.{name}.o.weight", f"{ours}.{part}.proj.weight"),
            row(f"{theirs}.{name}.relative_attention_bias.weight", f"{ours}.{part}.position.weight"),
        ]
    theirs, ours = f"{theirs}.layer.{last}.mlp", f"{ours}.channel_mixer"
    return (
        *rows,
        row(f"{theirs}.wi.weight", f"{ours}.fc1.weight"),
        row(f"{theirs}.wo.weight", f"{ours}.fc2.weight"),
        row(f"{theirs}.router.classifier.weight", f"{ours}.router.linear.weight"),
        row(f"{theirs}.experts.expert_{{e}}.wi.weight", f"{ours}.experts.{{e}}.fc1.weight"),
        row(f"{theirs}.experts.expert_{{e}}.wo.weight", f"{ours}.experts.{{e}}.fc2.weight"),
        row(f"{side}.final_layer_norm.weight", f"{side}.norm.weight"),
    )


KEYS = {"transformers": _key_map, "oracle": _key_map}


def _read(settings: core.Settings) -> core.Config:
    settings.expect(
        dense_act_fn="relu",
        is_gated_act=False,
        router_bias=False,
        tie_word_embeddings=True,
        relative_attention_num_buckets=32,
        relative_attention_max_distance=128,
    )
    depth = settings.number("num_layers")
    settings.expect(**dict.fromkeys(("num_sparse_encoder_layers", "num_sparse_decoder_layers"), depth // 2))
    settings.expect(num_decoder_layers=depth)
    size = Size(
        dim=settings.number("d_model"),
        hidden=settings.number("d_ff"),
        depth=depth,
        heads=settings.number("num_heads"),
        experts=settings.number("num_experts", 8),
        head_dim=settings.number("d_kv", 64),
        capacity=settings.number("expert_capacity", 64),
        jitter=settings.values.get("router_jitter_noise", 0.01),
        vocabulary=settings.number("vocab_size"),
        eps=settings.number("layer_norm_epsilon", 1e-6),
    )
    return _model(size)


def _write(spec: Any) -> dict[str, Any]:
    blocks = spec.encoder.blocks
    mixer, dense, routed = blocks[0].mixer, blocks[0].channel_mixer, blocks[1].channel_mixer
    sparse = [sum(b.channel_mixer.part is CappedExperts for b in side.blocks) for side in (spec.encoder, spec.decoder)]
    return {
        "vocab_size": spec.vocabulary,
        "d_model": spec.decoder.dim,
        "d_kv": mixer.head_dim,
        "d_ff": dense.hidden,
        "expert_capacity": routed.capacity,
        "num_layers": len(blocks),
        "num_sparse_encoder_layers": sparse[0],
        "num_decoder_layers": len(spec.decoder.blocks),
        "num_sparse_decoder_layers": sparse[1],
        "num_heads": mixer.kv_heads,
        "num_experts": routed.count,
        "router_jitter_noise": routed.router.jitter,
        "relative_attention_num_buckets": mixer.position.buckets,
        "relative_attention_max_distance": mixer.position.max_distance,
        "layer_norm_epsilon": spec.decoder.norm.eps,
        "pad_token_id": None,  # one would have no gradient in the table
        "decoder_start_token_id": 0,
    }


FOLDERS = (
    core.Folder(
        "switch_transformers",
        "SwitchTransformersForConditionalGeneration",
        _read,
        _write,
        tied=dict.fromkeys(TIED, "shared.weight"),
    ),
)
