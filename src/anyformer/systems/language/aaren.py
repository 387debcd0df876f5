"""Aaren: softmax attention as a recurrence, which it is when the query does not depend on the token.

Softmax attention of one query needs a maximum and two sums, which a new token renews in constant time and memory, and
which merge, so that the outputs of all prefixes are one parallel scan (section 3). A Transformer's queries are its tokens
and come too late for that; here each layer has one learned query, ``h^(j+1) = Aaren(q^(j), h^(j))``, and attends with it to
all tokens so far. Layers are those of the Transformers that the paper replaces, with a norm after each branch. Against
linear attention the weights are those of softmax; against a Transformer no token can ask a question of its own.
"""

from typing import Any

import torch
from torch import Tensor

from anyformer import core
from anyformer.core.keymap import KeyMap, row
from anyformer.ops.prefix_attention import empty_state, prefix_attention
from anyformer.parts.channel_mixers.mlp import MLP
from anyformer.parts.embeds.token_table import TokenTable
from anyformer.parts.heads.vocabulary import VocabularyHead
from anyformer.parts.linear.linear import Linear
from anyformer.parts.norms.layer_norm import LayerNorm
from anyformer.parts.residuals.residual import PlainResidual
from anyformer.parts.token_mixers.linear_memory import LinearMemory, MemoryState, counted, heads, merged
from anyformer.skeletons.decoder import Decoder

PAPER = core.Paper(
    "aaren",
    contributes=("model", "part"),
    deviations=(
        "The authors' code and the paper's text could not be had: two public summaries give its equations and its counts "
        "of parameters, 3,152,384 with Transformers and 3,152,896 with Aarens, which are those of one layer of width 512.",
        "Layers are those of the public codes that the paper names as its bases, min-decision-transformer and "
        "Time-Series-Library: norms after the branches, GELU. Their products have biases, that of the queries too.",
        "The paper's models take states, events and series; here the same layers stand between bytes and scores, without "
        "the bases' embeddings of time.",
        "The largest score starts at minus infinity, where the paper starts with 0 and could lose very low scores.",
    ),
)


class Aaren(LinearMemory, name="aaren"):
    """``softmax(scale * q k[: t + 1]) v[: t + 1]`` at every token ``t``, with one learned query for all of them.

    arXiv:2405.13956, section 3. The query is a vector of the model, which a product makes the queries of the heads. What
    ``ctx.mask`` keeps out is not attended to; before the first token that counts the heads give zeros.

    Shapes: ``(batch, tokens, dim)`` to the same. Cost: ``dim heads (key + 2 value)`` multiply-adds a token for the
    products, and O(heads * (key + value)) for the attention. State: ``heads * (2 + value)`` numbers.
    """

    class Config(core.Config):
        """``key`` and ``value`` are the widths of a head; ``init`` is the query's."""

        dim: int = core.bound()
        heads: int
        key: int = core.derived(lambda c: c.dim // c.heads)
        value: int = core.derived(lambda c: c.dim // c.heads)
        scale: float = core.derived(lambda c: c.key**-0.5)
        init: core.Init = core.Init("normal")
        q_proj: core.Config = core.linear()
        k_proj: core.Config = core.linear()
        v_proj: core.Config = core.linear()
        out_proj: core.Config = core.linear()

    axes = {
        "query": "dim",
        "q_proj.weight": "(heads key) dim",
        "k_proj.weight": "(heads key) dim",
        "v_proj.weight": "(heads value) dim",
        "out_proj.weight": "dim (heads value)",
    }

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.query = self.parameter("query", config.init)

    def init_state(self, batch: int, capacity: int, like: Tensor) -> MemoryState:
        """Of no tokens."""
        config: Aaren.Config = self.config
        nothing = like.new_empty(batch, config.heads, 0, config.value)
        return MemoryState(memory=empty_state(nothing, batch), convolution=None)

    def mix(self, x: Tensor, ctx: core.Context, state: MemoryState | None) -> tuple[Tensor, MemoryState]:
        """See :class:`~anyformer.parts.token_mixers.linear_memory.LinearMemory`."""
        config: Aaren.Config = self.config
        query = self.q_proj(self.query).view(config.heads, config.key, 1) * config.scale
        (v,) = counted(ctx, heads(self.v_proj(x), config.heads))
        scores = (heads(self.k_proj(x), config.heads) @ query)[..., 0]
        if ctx.mask is not None:
            scores = scores.masked_fill(~ctx.mask[:, None], -torch.inf)
        memory = None if state is None else state.memory
        y, memory = prefix_attention(scores, v, state=memory, offsets=ctx.offsets)
        return self.out_proj(merged(y)), MemoryState(memory=memory, convolution=None)


class AarenLayer(core.Block, name="aaren_layer"):
    """``x = norm1(residual1(x, mixer(x)))``, then the same with the channel mixer: the layer of the first Transformer."""

    class Config(core.Config):
        """One part a slot."""

        dim: int = core.bound()
        mixer: core.Config
        residual1: core.Config = PlainResidual.Config()
        norm1: core.Config = LayerNorm.Config(eps=1e-5)
        channel_mixer: core.Config
        residual2: core.Config = PlainResidual.Config()
        norm2: core.Config = LayerNorm.Config(eps=1e-5)

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """One layer."""
        return self._mixed(x, self.mixer(x, ctx), ctx)

    def init_state(self, batch: int, capacity: int, like: Tensor) -> core.State:
        """The mixer's."""
        return self.mixer.init_state(batch, capacity, like)

    def stream(self, x: Tensor, ctx: core.Context, state: core.State) -> tuple[Tensor, core.State]:
        """One layer, for the next tokens."""
        mixed, state = self.mixer.stream(x, ctx, state)
        return self._mixed(x, mixed, ctx), state

    def _mixed(self, x: Tensor, mixed: Tensor, ctx: core.Context) -> Tensor:
        x = self.norm1(self.residual1(x, mixed))
        return self.norm2(self.residual2(x, self.channel_mixer(x, ctx)))

    def deployed(self) -> core.Part:
        """Both branches scaled by their own weights."""
        self.residual1 = self.residual1.folded(self.mixer)
        self.residual2 = self.residual2.folded(self.channel_mixer)
        return self


SIZES: dict[str, dict[str, Any]] = {
    "aaren_series": {"dim": 512, "hidden": 2048, "depth": 2, "heads": 8},  # Time-Series-Library's defaults
    "aaren_control": {"dim": 128, "hidden": 512, "depth": 3, "heads": 1},  # min-decision-transformer's
    "aaren_micro": {"dim": 64, "hidden": 256, "depth": 2, "heads": 2},
    "aaren_mini": {"dim": 128, "hidden": 512, "depth": 4, "heads": 4},
}
SMALL = ("aaren_micro", "aaren_mini")  # not of the paper: for bytes and tight budgets


def pattern(name: str, *, vocabulary: int | None = None) -> core.Config:
    """The pattern of a size; ``vocabulary`` is that of bytes unless it is given."""
    size = SIZES[name]
    default = core.Init("uniform_fan_in")
    # Small widths and short trainings need weights that keep the variance of what passes through them.
    start = core.Init("xavier_uniform") if name in SMALL else default
    linear = Linear.Config(init=start, bias_init=core.ZEROS if name in SMALL else default)
    mixer = Aaren.Config(heads=size["heads"], q_proj=linear, k_proj=linear, v_proj=linear, out_proj=linear)
    block = AarenLayer.Config(mixer=mixer, channel_mixer=MLP.Config(hidden=size["hidden"], fc1=linear, fc2=linear))
    table = Linear.Config(bias=False, init=core.Init("normal", size["dim"] ** -0.5))
    return Decoder.Config(
        dim=size["dim"],
        vocabulary=vocabulary or data_config(name)["vocabulary"],
        embed=TokenTable.Config(table=table),
        blocks=(block,) * size["depth"],
        head=VocabularyHead.Config(linear=core.Shared.Config(path="embed.table")),
    )


def data_config(name: str) -> dict[str, Any]:
    """Bytes: the paper has no models of text."""
    return {"vocabulary": 256, "tokenizer": "bytes", "context": None}


PUBLISHED = {
    "aaren_series": core.Published(
        params=2 * 3_152_896, macs=None, at=(64,), source="arXiv:2405.13956, by its summaries: of a layer, twice"
    )
}

INERT = {"blocks.*.mixer.k_proj.bias": "it adds one number to all scores of the query, which softmax does not see"}


def _oracle(spec: Any) -> KeyMap:
    """The names of the transcription."""
    theirs, ours = "layers.{i}", "blocks.{i}"
    roles = (("query", "q"), ("key", "k"), ("value", "v"), ("out", "out"))
    return KeyMap(
        (
            row("embedding.weight", "embed.table.weight"),
            row(f"{theirs}.attention.query", f"{ours}.mixer.query"),
            *(
                row(f"{theirs}.attention.{long}_projection.{{p}}", f"{ours}.mixer.{short}_proj.{{p}}")
                for long, short in roles
            ),
            *(row(f"{theirs}.conv{i}.{{p}}", f"{ours}.channel_mixer.fc{i}.{{p}}") for i in (1, 2)),
            *(row(f"{theirs}.norm{i}.{{p}}", f"{ours}.norm{i}.{{p}}") for i in (1, 2)),
        )
    )


KEYS = {"oracle": _oracle}
