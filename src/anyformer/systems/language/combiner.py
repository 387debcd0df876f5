"""Combiner: every token attends to every earlier one, to the near ones directly and to the far ones by way of spans.

Attention is an expectation under p(j | i). Sparse attention sets most of it to zero; here a token spreads one softmax over
its direct keys and over spans that hold all others, and what it gives a span is spread over the span's tokens by a second
softmax, whose query is the span's own: p(j | i) = p(span | i) p(j | span). A span asks with the largest query, and is asked
by the largest key, of each channel. The rows of the whole matrix still sum to 1 and no entry is zero, at the cost of the
sparse pattern that says which keys are direct: blocks (``fixed``), or spans that double in length (``logsparse``).

Names: our ``mixer.qkv`` is their ``q``, ``k`` and ``v``, one below the other, ``mixer.proj`` their ``dense``, ``norm1`` and
``norm2`` the ``pre_norm`` of either branch, ``head.bias`` their ``softmax_bias``.
"""

import itertools
from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.core.keymap import KeyMap, row
from anyformer.ops.causal_attention import kept_first, ordered, restored
from anyformer.ops.packed import checked
from anyformer.parts.channel_mixers.tanh_mlp import TanhMLP
from anyformer.parts.embeds.positioned_token_table import PositionedTokenTable
from anyformer.parts.embeds.token_table import TokenTable
from anyformer.parts.linear.linear import Linear
from anyformer.parts.norms.layer_norm import LayerNorm
from anyformer.skeletons.blocks import layer_block
from anyformer.skeletons.decoder import Decoder

PAPER = core.Paper(
    "combiner",
    contributes=("model", "part"),
    deviations=(
        "The paper's page was not at hand; the patterns are those of the authors' code, with spans summed up by maxima, which "
        "is what its language model of the fixed pattern is configured with.",
        "The axial patterns are left out: the code's row-major one makes the keys of its spans with a second projection.",
        "The size is that of the code's language models for Wiki-40B; the code has no language model of the logarithmic "
        "pattern. The code's vocabulary of 1,024 is a stand-in; that of 32,000 is from memory.",
    ),
)

SIZES: dict[str, dict[str, Any]] = {
    "combiner_fixed": {"dim": 768, "depth": 12, "heads": 12, "context": 2048, "span": 128},
    "combiner_logsparse": {"dim": 768, "depth": 12, "heads": 12, "context": 2048, "span": None},
    "combiner_micro": {"dim": 64, "depth": 2, "heads": 2, "context": 1024, "span": 8},
    "combiner_logsparse_micro": {"dim": 64, "depth": 2, "heads": 2, "context": 1024, "span": None},
    "combiner_mini": {"dim": 128, "depth": 4, "heads": 4, "context": 1024, "span": 16},
}
SMALL = ("combiner_micro", "combiner_logsparse_micro", "combiner_mini")  # not of the paper: for bytes and tight budgets


class CombinerState(core.State):
    """Where a stream stands.

    Attributes:
        tokens: queries, keys and values of the tokens that are not summed up for good, each ``(batch, heads, places, width)``.
        span_keys: ``(batch, heads, spans, head_dim)``, of the spans that are.
        span_values: likewise.
        counts: ``(batch,)``, tokens that counted.
        length: tokens that have passed, masked ones included.
        capacity: how many may.
    """

    tokens: list[Tensor]
    span_keys: Tensor
    span_values: Tensor
    counts: Tensor
    length: int
    capacity: int


class Combiner(core.TokenMixer):
    """The base of the patterns, which define :meth:`mix`, :meth:`step` and what the state keeps."""

    class Config(core.Config):
        """``scale`` multiplies all scores, those within spans included."""

        dim: int = core.bound()
        heads: int
        head_dim: int = core.derived(lambda c: c.dim // c.heads)
        scale: float = core.derived(lambda c: c.head_dim**-0.5)
        qkv: core.Config = core.linear()
        proj: core.Config = core.linear()

    axes = {
        "qkv.weight": "(q:heads head_dim + k:heads head_dim + v:heads head_dim) dim",
        "proj.weight": "dim (heads head_dim)",
    }

    @abstractmethod
    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend over whole rows, (batch, heads, tokens, head_dim); queries are scaled."""

    @abstractmethod
    def step(self, new: list[Tensor], counted: Tensor, state: CombinerState) -> tuple[Tensor, CombinerState]:
        """Attend for the next queries, keys and values, what counts first; ``counted`` is (batch, tokens)."""

    @abstractmethod
    def kept(self, capacity: int) -> tuple[int, int]:
        """For how many tokens and for how many spans the state has places."""

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Attend over whole rows, or packed sequences."""
        heads = self._heads(x, ctx.mask)
        if ctx.offsets is None:
            y = self.mix(*heads)
        else:
            starts = checked(ctx.offsets, x.shape[1])
            sizes = [end - start for start, end in itertools.pairwise(starts)]
            y = torch.cat([self.mix(*one) for one in zip(*(t.split(sizes, 2) for t in heads), strict=True)], 2)
        return self._out(y, ctx.mask)

    def init_state(self, batch: int, capacity: int, like: Tensor) -> CombinerState:
        """Empty."""
        config: Combiner.Config = self.config
        tokens, spans = self.kept(capacity)
        places = like.new_zeros(batch, config.heads, tokens, config.head_dim)
        summaries = like.new_zeros(batch, config.heads, spans, config.head_dim)
        return CombinerState(
            tokens=[places, places.clone(), places.clone()],
            span_keys=summaries,
            span_values=summaries.clone(),
            counts=torch.zeros(batch, dtype=torch.int64, device=like.device),
            length=0,
            capacity=capacity,
        )

    def stream(self, x: Tensor, ctx: core.Context, state: CombinerState) -> tuple[Tensor, CombinerState]:
        """The next tokens of a stream. Raises UsageError where the state has no room for them."""
        length = state.length + x.shape[1]
        if length > state.capacity:
            raise core.UsageError(
                f"the state has room for {state.capacity} tokens, not for {length}; ask init_state for more"
            )
        heads = self._heads(x, ctx.mask)
        counted = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device) if ctx.mask is None else ctx.mask
        y, state = self.step(heads, counted.sort(dim=1, descending=True)[0], state)
        state.length = length
        return self._out(y, ctx.mask), state

    def scaled(self, scale: Tensor) -> bool:
        """By the last product."""
        return self.proj.scaled(scale)

    def _heads(self, x: Tensor, keep: Tensor | None) -> list[Tensor]:
        """Scaled queries, keys and values; what counts stands first, so that blocks have no holes."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.config.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        heads = [q * self.config.scale, k, v]
        if keep is None:
            return heads
        places = kept_first(keep)
        return [ordered(tensor, places, keep) for tensor in heads]

    def _out(self, y: Tensor, keep: Tensor | None) -> Tensor:
        if keep is not None:
            y = restored(y, kept_first(keep), keep)
        return self.proj(y.transpose(1, 2).flatten(2))


def summed_up(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Key and value of spans, (..., width), from their queries, keys and values, (..., tokens, width)."""
    shares = (q.amax(-2, keepdim=True) @ k.mT).softmax(-1)
    return k.amax(-2), (shares @ v).squeeze(-2)


class CombinerFixed(Combiner, name="combiner_fixed"):
    """Blocks of ``span`` tokens: those of a token's own block are direct, every earlier block is a span.

    What ``ctx.mask`` keeps out is not counted by the blocks. Shapes: ``(batch, tokens, dim)`` to the same. Cost:
    ``4 dim heads head_dim`` multiply-adds a token for the products, and O(tokens * (span + tokens / span)) for the
    attention. State: three times the block, and two vectors a head for each span.
    """

    class Config(Combiner.Config):
        """``span`` is the length of a block; where all tokens are in one, this is softmax attention."""

        span: int

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.span < 1:
            raise core.UsageError(f"a span cannot have {config.span} tokens; give at least 1")

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See :class:`Combiner`."""
        tokens = q.shape[2]
        width = max(1, min(self.config.span, tokens))
        q, k, v = (F.pad(t, (0, 0, 0, -tokens % width)).unflatten(2, (-1, width)) for t in (q, k, v))
        keys, values = summed_up(*(t[:, :, :-1] for t in (q, k, v)))
        place, block = (torch.arange(n, device=q.device) for n in (width, q.shape[2]))
        near = (q @ k.mT).masked_fill(place > place[:, None], -torch.inf)
        far = (q @ keys[:, :, None].mT).masked_fill(block[:-1] >= block[:, None, None], -torch.inf)
        shares = torch.cat((near, far), -1).softmax(-1)
        y = shares[..., :width] @ v + shares[..., width:] @ values[:, :, None]
        return y.flatten(2, 3)[:, :, :tokens]

    def kept(self, capacity: int) -> tuple[int, int]:
        """The block; all earlier ones."""
        return min(self.config.span, capacity), capacity // self.config.span

    def step(self, new: list[Tensor], counted: Tensor, state: CombinerState) -> tuple[Tensor, CombinerState]:
        """See :class:`Combiner`; a block's length of tokens at a time."""
        outs, width = [], max(1, state.tokens[0].shape[2])
        for *some, there in zip(*(t.split(width, 2) for t in new), counted.split(width, 1), strict=True):
            y, state = self._piece(some, there, state)
            outs.append(y)
        return torch.cat(outs, 2), state

    def _piece(self, new: list[Tensor], counted: Tensor, state: CombinerState) -> tuple[Tensor, CombinerState]:
        """At most as many tokens as a block has: they end the one that was begun, and begin the next."""
        width, tokens = state.tokens[0].shape[2], counted.shape[1]
        begun, done = state.counts[:, None] % max(1, width), state.counts[:, None] // max(1, width)
        place = torch.arange(2 * width, device=begun.device)
        source = torch.where(place < begun, place, (width + place - begun).clamp(max=width + tokens - 1))
        q, k, v = (_taken(torch.cat(pair, 2), source) for pair in zip(state.tokens, new, strict=True))
        key, value = summed_up(*(t[:, :, None, :width] for t in (q, k, v)))
        keys, values = torch.cat((state.span_keys, key), 2), torch.cat((state.span_values, value), 2)

        query = (begun + torch.arange(tokens, device=begun.device))[..., None]
        near = (place <= query) & ((place < width) == (query < width))
        number = torch.arange(keys.shape[2], device=begun.device)
        last = number == keys.shape[2] - 1
        far = torch.where(last, query >= width, (number < done)[:, None])
        scores = torch.cat((new[0] @ k.mT, new[0] @ keys.mT), -1)
        shares = scores.masked_fill(~torch.cat((near, far), -1)[:, None], -torch.inf).softmax(-1)
        y = shares[..., : 2 * width] @ v + shares[..., 2 * width :] @ values

        counts = state.counts + counted.sum(1)
        ended = begun + counted.sum(1, keepdim=True) >= width
        written = (ended & (number[:-1] == done))[:, None, :, None]
        return y, CombinerState(
            tokens=[_taken(t, place[:width] + width * ended) for t in (q, k, v)],
            span_keys=torch.where(written, key, state.span_keys),
            span_values=torch.where(written, value, state.span_values),
            counts=counts,
            length=state.length,
            capacity=state.capacity,
        )


class CombinerLogsparse(Combiner, name="combiner_logsparse"):
    """A token sees itself directly, and before it spans whose lengths are the powers of two that its place is the sum of.

    What ``ctx.mask`` keeps out is not counted. Shapes: ``(batch, tokens, dim)`` to the same. Cost: ``4 dim heads head_dim``
    multiply-adds a token for the products, and O(log tokens * dim) for the attention; O(capacity * dim) in a stream, whose
    spans are summed up anew. State: ``3 heads head_dim`` numbers for each token of the capacity.
    """

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """See :class:`Combiner`."""
        tokens = q.shape[2]
        scores, values = [(q * k).sum(-1)], [v]
        for level in range(max(0, tokens - 1).bit_length()):
            width = 2**level
            missing = -tokens % (2 * width)
            pairs = [F.pad(t, (0, 0, 0, missing)).unflatten(2, (-1, 2, width)) for t in (q, k, v)]
            key, value = summed_up(*(t[:, :, :, 0] for t in pairs))
            score = (pairs[0][:, :, :, 1] @ key[..., None]).squeeze(-1)
            score = torch.stack((torch.full_like(score, -torch.inf), score), 3)
            value = torch.stack((torch.zeros_like(value), value), 3)[..., None, :].expand(-1, -1, -1, -1, width, -1)
            scores.append(score.flatten(2)[:, :, :tokens])
            values.append(value.flatten(2, 4)[:, :, :tokens])
        return _shared_out(scores, values)

    def kept(self, capacity: int) -> tuple[int, int]:
        """All tokens, since each may yet be in a longer span."""
        return capacity, 0

    def step(self, new: list[Tensor], counted: Tensor, state: CombinerState) -> tuple[Tensor, CombinerState]:
        """See :class:`Combiner`."""
        capacity, tokens = state.capacity, counted.shape[1]
        place = state.counts[:, None] + torch.arange(tokens, device=counted.device)
        past = [t.scatter(2, place[:, None, :, None].expand_as(n), n) for t, n in zip(state.tokens, new, strict=True)]
        q, k, v = new
        scores, values = [(q * k).sum(-1)], [v]
        for level in range(max(0, capacity - 1).bit_length()):
            width = 2**level
            first = state.counts[:, None] // (2 * width)  # the first pair of spans that a new token lies in
            pairs = (max(0, tokens - 1)) // (2 * width) + 2
            source = first * 2 * width + torch.arange(pairs * 2 * width, device=first.device)
            cut = [_taken(t, source.clamp(max=capacity - 1)).unflatten(2, (pairs, 2, width)) for t in past]
            key, value = (_taken(t, place // (2 * width) - first) for t in summed_up(*(t[:, :, :, 0] for t in cut)))
            scores.append((q * key).sum(-1).masked_fill((place // width % 2 == 0)[:, None], -torch.inf))
            values.append(value)
        counts = state.counts + counted.sum(1)
        after = CombinerState(past, state.span_keys, state.span_values, counts, state.length, capacity)
        return _shared_out(scores, values), after


def _taken(x: Tensor, index: Tensor) -> Tensor:
    """Of each row of (batch, heads, places, width) the places of ``index``, (batch, taken)."""
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def _shared_out(scores: list[Tensor], values: list[Tensor]) -> Tensor:
    """Mean of values, each (batch, heads, tokens, width), under the softmax of their scores, (batch, heads, tokens)."""
    shares = torch.stack(scores, -1).softmax(-1).unbind(-1)
    y = torch.zeros_like(values[0])
    for share, value in zip(shares, values, strict=True):
        y = torch.addcmul(y, share[..., None], value)
    return y


class BiasedVocabularyHead(core.Head, name="biased_vocabulary_head"):
    """One linear map, tied to the embedding by ``linear=shared(path=...)``, and a bias of its own for every token.

    Shapes: ``(batch, tokens, dim) -> (batch, tokens, vocabulary)``.
    """

    class Config(core.Config):
        """``vocabulary`` is the number of scores a token."""

        vocabulary: int = core.bound()
        dim: int = core.bound()
        linear: core.Config = core.linear(bias=False)

    axes = {"linear.weight": "vocabulary dim", "bias": "vocabulary"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.bias = self.parameter("bias", core.ZEROS)

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Score."""
        return self.linear(x) + self.bias


def pattern(name: str, *, vocabulary: int | None = None) -> core.Config:
    """The pattern of a size; ``vocabulary`` is that of Wiki-40B's subwords, or of bytes, unless it is given."""
    size = SIZES[name]
    # Small widths and short trainings need weights that keep the variance of what passes through them.
    start = core.Init("xavier_uniform") if name in SMALL else core.Init("normal", 0.02)
    linear, norm, heads = Linear.Config(init=start), LayerNorm.Config(eps=1e-5), size["heads"]
    if size["span"] is None:
        mixer = CombinerLogsparse.Config(heads=heads, qkv=linear, proj=linear)
    else:
        mixer = CombinerFixed.Config(heads=heads, span=size["span"], qkv=linear, proj=linear)
    return Decoder.Config(
        dim=size["dim"],
        vocabulary=vocabulary or data_config(name)["vocabulary"],
        embed=PositionedTokenTable.Config(
            context=size["context"], tokens=TokenTable.Config(table=Linear.Config(bias=False, init=start))
        ),
        blocks=(layer_block(mixer, TanhMLP.Config(fc1=linear, fc2=linear), norm),) * size["depth"],
        norm=norm,
        head=BiasedVocabularyHead.Config(linear=core.Shared.Config(path="embed.tokens.table")),
    )


def data_config(name: str) -> dict[str, Any]:
    """What the weights expect of a text; those of the paper were not published, nor was their tokenizer."""
    context = SIZES[name]["context"]
    if name in SMALL:
        return {"vocabulary": 256, "tokenizer": "bytes", "context": context}
    return {"vocabulary": 32000, "tokenizer": None, "context": context}


PUBLISHED: dict[str, core.Published] = {}


def _theirs(spec: Any) -> KeyMap:
    """The names of the authors' code in TensorFlow, as far as a torch module can have them."""
    theirs, ours = "layers.{i}", "blocks.{i}"
    return KeyMap(
        (
            row("word_embeddings.weight", "embed.tokens.table.weight"),
            row("pos_embeddings.weight", "embed.positions"),
            row(f"{theirs}.attn.pre_norm.{{p}}", f"{ours}.norm1.{{p}}"),
            row(f"{theirs}.attn.qkv.{{p}}", f"{ours}.mixer.qkv.{{p}}"),
            row(f"{theirs}.attn.dense.{{p}}", f"{ours}.mixer.proj.{{p}}"),
            row(f"{theirs}.ffn.pre_norm.{{p}}", f"{ours}.norm2.{{p}}"),
            row(f"{theirs}.ffn.dense.{{p}}", f"{ours}.channel_mixer.fc1.{{p}}"),
            row(f"{theirs}.ffn.dense_1.{{p}}", f"{ours}.channel_mixer.fc2.{{p}}"),
            row("final_norm.{p}", "norm.{p}"),
            row("softmax_bias", "head.bias"),
        )
    )


KEYS = {"oracle": _theirs}
