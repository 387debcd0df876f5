"""Zamba: a row of Mamba layers that share one Transformer block, called in every sixth of them.

Zamba: A Compact 7B SSM Hybrid Model (figure 2, equation 6). The shared block, an attention and a perceptron, reads what the
layer gets beside the token's first embedding, twice as wide as the model; each call has a linear map of its own, and what it
gives is added to what the layer's Mamba reads, not to the residual sum. Attention so costs the parameters of one block, and
the cache of as many as there are calls. It has no positions. Against Mamba's layer the channels are in two heads, each of
which computes step, b and c from itself alone.

Names: our ``transformer`` is their ``shared_transf``, ``proj`` within it their ``o_proj``, ``norm1`` and ``norm2`` their
``input_layernorm`` and ``pre_ff_layernorm``, ``channel_mixer`` their ``feed_forward``; our ``mixer`` is their ``mamba``,
``convolution`` their ``conv1d``, ``step_proj`` their ``dt_proj``, ``log_rates`` their ``A_log``, ``skip`` their ``D``.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anyformer import core
from anyformer.core.joins import Stack, Tie, same
from anyformer.core.keymap import Join, KeyMap, Operation, Row, row
from anyformer.ops.cached_attention import Cache, cached_attention, new_cache
from anyformer.ops.causal_attention import causal_attention
from anyformer.parts.channel_mixers.gated_mlp import GatedMLP
from anyformer.parts.convolutions.causal_convolution import CausalConvolution
from anyformer.parts.embeds.token_table import Tokens, TokenTable
from anyformer.parts.heads.vocabulary import VocabularyHead
from anyformer.parts.linear.linear import Linear
from anyformer.parts.norms.rms_norm import RMSNorm
from anyformer.parts.residuals.residual import PlainResidual
from anyformer.parts.token_mixers.headed_mamba import HeadedMamba, MambaHead
from anyformer.skeletons.blocks import MixerBlock
from anyformer.skeletons.decoder import Decoder

PAPER = core.Paper(
    "zamba",
    contributes=("model", "part"),
    extends=("mamba",),
    deviations=("Products start as in transformers, convolutions as Mamba's: the paper's start could not be read.",),
)


class RememberingTable(core.Embed, name="remembering_table"):
    """A token table whose vectors stay at hand for every block, as ``ctx.condition``. Shapes: those of the table."""

    class Config(core.Config):
        """``tokens`` looks up."""

        vocabulary: int = core.bound()
        dim: int = core.bound()
        tokens: core.Config = TokenTable.Config()

    def forward(self, raw: Tensor | Tokens) -> tuple[Tensor, core.Context]:
        """Look up, and remember."""
        x, ctx = self.tokens(raw)
        return x, dataclasses.replace(ctx, condition=x)


class SharedTransformer(core.Block, name="shared_transformer"):
    """A Transformer block over the features beside the first embeddings, without residuals: its callers add what it gives.

    ``channel_mixer(norm2(attention(norm1([x, ctx.condition]))))``; causal, without positions. What ``ctx.mask`` keeps out is
    no key. Shapes: ``(batch, tokens, dim)`` to the same. Cost: ``7 dim heads head_dim`` multiply-adds a token for the
    products of the attention, and O(tokens^2) for it. State, of each call: ``2 * heads * head_dim`` numbers for each token
    of the capacity. Source: arXiv:2405.16712, figure 2.
    """

    class Config(core.Config):
        """Heads are over twice ``dim``; ``scale`` is theirs, as if they were half as wide."""

        dim: int = core.bound()
        heads: int
        head_dim: int = core.derived(lambda c: 2 * c.dim // c.heads)
        scale: float = core.derived(lambda c: (c.head_dim / 2) ** -0.5)
        norm1: core.Config
        qkv: core.Config = core.linear(bias=False)
        proj: core.Config = core.linear(bias=False)
        norm2: core.Config
        channel_mixer: core.Config

    axes = {
        "qkv.weight": "(q:heads head_dim + k:heads head_dim + v:heads head_dim) (x:dim + first:dim)",
        "proj.weight": "dim (heads head_dim)",
    }

    @classmethod
    def binds(cls, config: Any) -> dict[str, dict[str, str]]:
        """The first norm runs over both halves together."""
        return {"norm1": {"dim": "x:dim + first:dim"}}

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Whole rows, or packed sequences."""
        q, k, v = self._heads(x, ctx)
        mixed = causal_attention(q, k, v, scale=self.config.scale, keep=ctx.mask, offsets=ctx.offsets)
        return self._joined(mixed, ctx)

    def init_state(self, batch: int, capacity: int, like: Tensor) -> Cache:
        """An empty cache, of one call."""
        return new_cache(like, batch, self.config.heads, capacity, self.config.head_dim)

    def stream(self, x: Tensor, ctx: core.Context, state: Cache) -> tuple[Tensor, Cache]:
        """The next tokens. Raises UsageError where the state has no room for them."""
        q, k, v = self._heads(x, ctx)
        mixed, state = cached_attention(q, k, v, state, scale=self.config.scale, keep=ctx.mask)
        return self._joined(mixed, ctx), state

    def _heads(self, x: Tensor, ctx: core.Context) -> tuple[Tensor, ...]:
        if ctx.condition is None:
            raise core.UsageError("shared_transformer needs the first embeddings; take remembering_table as the embed")
        both = self.qkv(self.norm1(torch.cat((x, ctx.condition), dim=-1)))
        return both.unflatten(-1, (3, self.config.heads, self.config.head_dim)).permute(2, 0, 3, 1, 4).unbind()

    def _joined(self, mixed: Tensor, ctx: core.Context) -> Tensor:
        return self.channel_mixer(self.norm2(self.proj(mixed.transpose(1, 2).flatten(2))), ctx)


class SharingState(core.State):
    """Where a stream stands in a layer that calls the shared block: that of the call, and the mixer's."""

    call: Any
    mixer: Any


class SharingBlock(core.Block, name="sharing_block"):
    """``residual(x, mixer(norm(x + linear(transformer(x)))))``; equation 6."""

    class Config(core.Config):
        """``transformer`` is built in the first such layer, and shared by the others; ``linear`` is each one's own."""

        dim: int = core.bound()
        transformer: core.Config
        linear: core.Config = core.linear(bias=False)
        norm: core.Config
        mixer: core.Config
        residual: core.Config = PlainResidual.Config()

    axes = {"linear.weight": "dim dim"}

    @property
    def called(self) -> Any:
        """The transformer, wherever it is built: a shared node stands for its forward alone."""
        return self.transformer.target if isinstance(self.transformer, core.Shared) else self.transformer

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """One layer."""
        return self.residual(x, self.mixer(self.norm(x + self.linear(self.transformer(x, ctx))), ctx))

    def init_state(self, batch: int, capacity: int, like: Tensor) -> SharingState:
        """That of the call, and the mixer's."""
        return SharingState(*(part.init_state(batch, capacity, like) for part in (self.called, self.mixer)))

    def stream(self, x: Tensor, ctx: core.Context, state: SharingState) -> tuple[Tensor, SharingState]:
        """One layer, for the next tokens."""
        given, call = self.called.stream(x, ctx, state.call)
        mixed, mixer = self.mixer.stream(self.norm(x + self.linear(given)), ctx, state.mixer)
        return self.residual(x, mixed), SharingState(call=call, mixer=mixer)


class Size(NamedTuple):
    """The numbers of a size; ``calls`` are the layers that call the shared block."""

    dim: int
    hidden: int
    depth: int
    heads: int
    calls: tuple[int, ...]
    vocabulary: int = 256
    context: int | None = None
    tokenizer: str = "bytes"
    eps: float = 1e-5
    mamba_heads: int = 2
    expand: int = 2
    state: int = 16
    kernel: int = 4
    step_rank: int | None = None


SIZES = {
    "zamba_7b_v1": Size(
        *(3712, 14848, 76, 16, (2, *range(7, 76, 6)), 32000), context=4096, tokenizer="mistralai/Mistral-7B-v0.1"
    ),
    "zamba_micro": Size(64, 128, 3, 4, (1, 2)),
    "zamba_mini": Size(128, 256, 6, 4, (1, 3, 5)),
}
SMALL = ("zamba_micro", "zamba_mini")  # of bytes, not of the paper: for tests and tight budgets


def pattern(name: str, *, vocabulary: int | None = None) -> core.Config:
    """The pattern of a size; ``vocabulary`` is that of the published weights, or of bytes, unless it is given."""
    size = SIZES[name] if vocabulary is None else SIZES[name]._replace(vocabulary=vocabulary)
    # Small widths and short trainings need weights that keep the variance of what passes through them.
    return _decoder(size, core.Init("xavier_uniform") if name in SMALL else core.Init("normal", 0.02))


def _decoder(size: Size, start: core.Init) -> core.Config:
    linear, norm = Linear.Config(bias=False, init=start), RMSNorm.Config(eps=size.eps)
    head = MambaHead.Config(state=size.state, step_rank=size.step_rank or math.ceil(size.dim / 16), x_proj=linear)
    mamba = HeadedMamba.Config(
        expand=float(size.expand),
        heads=(head,) * size.mamba_heads,
        in_proj=linear,
        convolution=CausalConvolution.Config(kernel=size.kernel),
        out_proj=linear,
    )
    transformer = SharedTransformer.Config(
        heads=size.heads,
        norm1=norm,
        qkv=linear,
        proj=linear,
        norm2=norm,
        channel_mixer=GatedMLP.Config(hidden=size.hidden, activation="gelu", fc1=linear, fc2=linear),
    )
    plain = MixerBlock.Config(norm=norm, mixer=mamba)
    first = SharingBlock.Config(transformer=transformer, linear=linear, norm=norm, mixer=mamba)
    again = first.replace(transformer=core.Shared.Config(path=f"blocks.{size.calls[0]}.transformer"))

    def block(layer: int) -> core.Config:
        return first if layer == size.calls[0] else again if layer in size.calls else plain

    return Decoder.Config(
        dim=size.dim,
        vocabulary=size.vocabulary,
        embed=RememberingTable.Config(tokens=TokenTable.Config(table=linear)),
        blocks=tuple(map(block, range(size.depth))),
        norm=norm,
        head=VocabularyHead.Config(linear=core.Shared.Config(path="embed.tokens.table")),
    )


def data_config(name: str) -> dict[str, Any]:
    """What the published weights expect of a text."""
    size = SIZES[name]
    return {"vocabulary": size.vocabulary, "tokenizer": size.tokenizer, "context": size.context}


PUBLISHED = {
    "zamba_7b_v1": core.Published(params=7e9, macs=None, at=(64,), source="title", explained="the title rounds"),
}


@dataclass(frozen=True)
class Alternate:
    """Their rows are of x and of the gate by turns; ours are those of x, then those of the gate."""

    def forward(self, theirs: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        """Part them."""
        return [theirs[0].unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1)]

    def backward(self, ours: list[Tensor]) -> list[Tensor]:
        """By turns."""
        return [ours[0].unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)]


@dataclass(frozen=True)
class Repeated:
    """What ``joined`` makes of their tensors, which they have ``count`` times; as they are where there is one of them."""

    count: int
    joined: Operation | None = None

    def forward(self, theirs: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        """Those of the first time; nothing where others differ, which the key map tells with the names."""
        once = theirs[: len(theirs) // self.count]
        if not all(map(same, theirs, once * self.count)):
            return []
        return once if self.joined is None else self.joined.forward(once, shapes)

    def backward(self, ours: list[Tensor]) -> list[Tensor]:
        """The same tensors every time."""
        return (ours if self.joined is None else self.joined.backward(ours)) * self.count


def _transformers(spec: Any) -> KeyMap:
    """As the published files have them: a tensor once."""
    return _key_map(spec, _calls(spec)[:1], row("model.embed_tokens.weight", "embed.tokens.table.weight"))


def _oracle(spec: Any) -> KeyMap:
    """As the module has them: what is shared under the name of every call, and of the head."""
    both = ("model.embed_tokens.weight", "lm_head.weight")
    return _key_map(spec, _calls(spec), row(both, "embed.tokens.table.weight", Tie()))


def _calls(spec: Any) -> list[int]:
    return [index for index, block in enumerate(spec.blocks) if block.part is SharingBlock]


def _key_map(spec: Any, calls: list[int], *table: Row) -> KeyMap:
    ours, shared = f"blocks.{calls[0]}.transformer", "model.layers.{}.shared_transf"

    def once(names: tuple[str, ...], mine: str, joined: Operation | None = None) -> Row:
        theirs = tuple(f"{shared.format(call)}.{name}.weight" for call in calls for name in names)
        return row(theirs, f"{ours}.{mine}.weight", Repeated(len(calls), joined))

    layers = (line for layer, block in enumerate(spec.blocks) for line in _layer(layer, block))
    return KeyMap(
        (
            *table,
            once(("input_layernorm",), "norm1"),
            once(tuple(f"self_attn.{role}_proj" for role in "qkv"), "qkv", Join(count=3)),
            once(("self_attn.o_proj",), "proj"),
            once(("pre_ff_layernorm",), "norm2"),
            once(("feed_forward.gate_proj", "feed_forward.up_proj"), "channel_mixer.fc1", Join(count=2)),
            once(("feed_forward.down_proj",), "channel_mixer.fc2"),
            row("model.layers.{i}.linear.weight", "blocks.{i}.linear.weight"),
            *layers,
            row("model.final_layernorm.weight", "norm.weight"),
        )
    )


def _layer(layer: int, block: Any) -> tuple[Row, ...]:
    theirs = f"model.layers.{layer}.mamba_decoder" if block.part is SharingBlock else f"model.layers.{layer}"
    ours = f"blocks.{layer}"

    def heads(name: str, mine: str) -> Row:
        """A row of what they have for all heads together."""
        each = tuple(f"{ours}.mixer.heads.{head}.{mine}" for head in range(block.mixer.count))
        return row(f"{theirs}.mamba.{name}", each, Stack())

    return (
        row(f"{theirs}.input_layernorm.weight", f"{ours}.norm.weight"),
        row(f"{theirs}.mamba.in_proj.weight", f"{ours}.mixer.in_proj.weight", Alternate()),
        row(f"{theirs}.mamba.conv1d.{{p}}", f"{ours}.mixer.convolution.{{p}}"),
        heads("x_proj_weight", "x_proj.weight"),
        heads("dt_proj_weight", "step_proj.weight"),
        heads("dt_proj_bias", "step_proj.bias"),
        heads("A_log", "log_rates"),
        heads("D", "skip"),
        row(f"{theirs}.mamba.out_proj.weight", f"{ours}.mixer.out_proj.weight"),
    )


KEYS = {"transformers": _transformers, "oracle": _oracle}


def _read(settings: core.Settings) -> core.Config:
    heads, dim = settings.number("num_attention_heads"), settings.number("hidden_size")
    settings.expect(num_key_value_heads=heads, attention_hidden_size=2 * dim, attention_head_dim=2 * dim // heads)
    settings.expect(hidden_act="gelu", hidden_mamba_act="silu", tie_word_embeddings=True)
    settings.expect(mamba_conv_bias=True, mamba_proj_bias=False)
    depth, rank = settings.number("num_hidden_layers"), settings.values.get("mamba_dt_rank", "auto")
    size = Size(
        dim=dim,
        hidden=settings.number("intermediate_size"),
        depth=depth,
        heads=heads,
        calls=_places(settings, depth),
        vocabulary=settings.number("vocab_size"),
        eps=settings.number("rms_norm_eps", 1e-5),
        mamba_heads=settings.number("n_mamba_heads", 2),
        expand=settings.number("mamba_expand", 2),
        state=settings.number("mamba_d_state", 16),
        kernel=settings.number("mamba_d_conv", 4),
        step_rank=None if rank == "auto" else settings.number("mamba_dt_rank"),
    )
    return _decoder(size, core.Init("normal", 0.02))


def _places(settings: core.Settings, depth: int) -> tuple[int, ...]:
    """The layers that call, named or counted: the third, and then every so many from the fourth on."""
    kinds = settings.values.get("layers_block_type")
    if kinds is None:
        period, offset = settings.number("attn_layer_period", 6), settings.values.get("attn_layer_offset", 4)
        kinds = [
            "hybrid" if layer == 2 or (layer > 2 and (layer - 3) % period == offset) else "" for layer in range(depth)
        ]
    if not isinstance(kinds, list) or len(kinds) != depth or "hybrid" not in kinds:
        raise core.UsageError(
            f"{settings.where}: layers_block_type must be a list with a kind for each of {depth} layers, 'hybrid' among them"
        )
    return tuple(layer for layer, kind in enumerate(kinds) if kind == "hybrid")


def _write(spec: Any) -> dict[str, Any]:
    calls, mamba = _calls(spec), spec.blocks[0].mixer
    transformer = spec.blocks[calls[0]].transformer
    return {
        "vocab_size": spec.vocabulary,
        "hidden_size": spec.dim,
        "intermediate_size": transformer.channel_mixer.hidden,
        "num_hidden_layers": len(spec.blocks),
        "num_attention_heads": transformer.heads,
        "num_key_value_heads": transformer.heads,
        "rms_norm_eps": spec.norm.eps,
        "n_mamba_heads": mamba.count,
        "mamba_d_state": mamba.heads[0].state,
        "mamba_d_conv": mamba.convolution.kernel,
        "mamba_expand": mamba.inner // spec.dim,
        "mamba_dt_rank": mamba.heads[0].step_rank,
        "layers_block_type": ["hybrid" if layer in calls else "mamba" for layer in range(len(spec.blocks))],
        "tie_word_embeddings": True,
        "pad_token_id": None,  # one would have no gradient in the table
    }


FOLDERS = (core.Folder("zamba", "ZambaForCausalLM", _read, _write),)
