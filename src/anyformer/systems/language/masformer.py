"""MASFormer: full attention in a few of the lowest layers, attention to near blocks in all others.

Efficient Long-Range Transformers: You Need to Attend More, but Not Necessarily at Every Layer. Long dependencies are taken
up by full attention in a small number of layers, short ones by block sparse attention, so that a text of 8,192 tokens costs
a fraction of the attention of its Transformer. It is one in all else: GPT-Neo of 1.3 billion parameters, with learned
positions, layer norms, products of queries and keys that are not scaled, and the tanh form of GELU.

Names: our ``mixer.qkv`` is their ``q_proj``, ``k_proj`` and ``v_proj``, ``mixer.proj`` their ``out_proj``;
``channel_mixer.fc1`` and ``fc2`` are their ``c_fc`` and ``c_proj``, ``norm1`` and ``norm2`` their ``ln_1`` and ``ln_2``.
"""

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anyformer import core
from anyformer.core.joins import Tie
from anyformer.core.keymap import Join, KeyMap, Row, row
from anyformer.ops.attention import attention
from anyformer.ops.causal_attention import kept_first, ordered, restored
from anyformer.ops.packed import checked
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
    "masformer",
    contributes=("model", "part"),
    extends=("gpt2",),
    deviations=(
        "Neither the text nor the code could be read, only the abstract, figure 1's caption and notes on it: from these are "
        "the model, its size, and that full attention is in the lowest layers. That there are four of them, blocks of 1,024 "
        "tokens and 8,192 positions is from memory; that a token sees its own block and the one before is our reading of "
        "block sparse attention in a decoder.",
        "Its weights are a further training of GPT-Neo's; here they start as GPT-Neo's in transformers.",
    ),
)


class NearBlocks(core.State):
    """The last blocks of a stream: a token that counts stands at the slot of its number, counted around.

    Attributes:
        keys: (batch, heads, slots + 1, head_dim); what does not count is written to the last slot, which nobody reads.
        values: Likewise.
        counts: (batch,), the tokens of each row that counted.
        length: Tokens that have passed, masked ones included.
    """

    keys: Tensor
    values: Tensor
    counts: Tensor
    length: int


class BlockSparseAttention(core.TokenMixer, name="block_sparse_attention"):
    """Every token attends to the earlier ones of its own block, itself included, and to ``before`` blocks before it.

    Blocks are counted over the tokens of a sequence that ``ctx.mask`` does not keep out. Figure 1a. Shapes: ``(batch, tokens,
    dim)`` to the same. Cost: ``4 dim heads head_dim`` multiply-adds a token for the products, and O(tokens * block * (before
    + 1)) for the attention. State: ``2 * heads * head_dim`` numbers for each token of the capacity, or of ``before + 2``
    blocks where these are fewer.
    """

    class Config(core.Config):
        """``scale`` multiplies the logits."""

        dim: int = core.bound()
        heads: int
        head_dim: int = core.derived(lambda c: c.dim // c.heads)
        scale: float = core.derived(lambda c: c.head_dim**-0.5)
        block: int
        before: int = 1
        qkv: core.Config = core.linear(bias=False)
        proj: core.Config = core.linear(bias=False)

    axes = {
        "qkv.weight": "(q:heads head_dim + k:heads head_dim + v:heads head_dim) dim",
        "proj.weight": "dim (heads head_dim)",
    }

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.block < 1 or config.before < 0:
            raise core.UsageError(
                f"a token cannot see {config.before} blocks before its own one of {config.block} tokens; give block=1 or "
                f"more, and before=0 or more"
            )

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Attend over the tokens."""
        q, k, v = self._heads(x)
        if ctx.mask is not None:
            places = kept_first(ctx.mask)
            q, k, v = (ordered(heads, places, ctx.mask) for heads in (q, k, v))
            return self._joined(restored(self._near(q, k, v), places, ctx.mask))
        if ctx.offsets is None:
            return self._joined(self._near(q, k, v))
        sizes = [end - start for start, end in itertools.pairwise(checked(ctx.offsets, x.shape[1]))]
        rows = zip(*(heads.split(sizes, 2) for heads in (q, k, v)), strict=True)
        return self._joined(torch.cat([self._near(*row) for row in rows], 2))

    def init_state(self, batch: int, capacity: int, like: Tensor) -> NearBlocks:
        """Empty, for ``capacity`` tokens; of any number if the blocks fit in."""
        config: BlockSparseAttention.Config = self.config
        slots = min(capacity, (config.before + 2) * config.block)
        keys = like.new_zeros(batch, config.heads, slots + 1, config.head_dim)
        counts = torch.zeros(batch, dtype=torch.int64, device=like.device)
        return NearBlocks(keys=keys, values=torch.zeros_like(keys), counts=counts, length=0)

    def stream(self, x: Tensor, ctx: core.Context, state: NearBlocks) -> tuple[Tensor, NearBlocks]:
        """The next tokens of a stream. Raises UsageError where the state has no room for them."""
        config: BlockSparseAttention.Config = self.config
        slots, end = state.keys.shape[2] - 1, state.length + x.shape[1]
        if end > slots and slots < (config.before + 2) * config.block:
            raise core.UsageError(f"a stream of {end} tokens needs a state of that capacity, not {slots}")
        keep = x.new_ones(x.shape[:2], dtype=torch.bool) if ctx.mask is None else ctx.mask
        pieces = zip(
            *(heads.split(config.block, 2) for heads in self._heads(x)), keep.split(config.block, 1), strict=True
        )
        outs: list[Tensor] = []
        for q, k, v, kept in pieces:  # none so long that it overwrites what its first token sees
            number = state.counts[:, None] + kept.cumsum(1) - 1
            slot = torch.where(kept, number % slots, slots)[:, None, :, None].expand_as(k)
            state.keys.scatter_(2, slot, k.masked_fill(~kept[:, None, :, None], 0.0))
            state.values.scatter_(2, slot, v.masked_fill(~kept[:, None, :, None], 0.0))
            state.counts = state.counts + kept.sum(1)
            last = state.counts[:, None] - 1
            held = (last - (last - torch.arange(slots, device=x.device)) % slots)[:, None, None]
            number = number[:, None, :, None]
            first = (number // config.block - config.before) * config.block
            seen = (held >= first.clamp(min=0)) & (held <= number)
            out = attention(q, state.keys[:, :, :slots], state.values[:, :, :slots], scale=config.scale, bias=seen)
            outs.append(out.masked_fill(~kept[:, None, :, None], 0.0))
        state.length = end
        return self._joined(torch.cat(outs, 2)), state

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        heads = self.qkv(x).unflatten(-1, (3, self.config.heads, self.config.head_dim))
        return heads.permute(2, 0, 3, 1, 4).unbind()

    def _near(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Block by block, with the keys of those before."""
        config: BlockSparseAttention.Config = self.config
        outs: list[Tensor] = []
        for start in range(0, q.shape[2], config.block):
            seen = slice(max(0, start - config.before * config.block), start + config.block)
            queries = q[:, :, start : start + config.block]
            outs.append(attention(queries, k[:, :, seen], v[:, :, seen], scale=config.scale, causal=True))
        return torch.cat(outs, 2) if outs else v

    def _joined(self, mixed: Tensor) -> Tensor:
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Size(NamedTuple):
    """The numbers of a size; ``full`` layers, the lowest, attend to all tokens."""

    dim: int
    depth: int
    heads: int
    full: int
    block: int
    context: int
    vocabulary: int = 256
    tokenizer: str = "bytes"


SIZES = {
    "masformer_1.3b": Size(2048, 24, 16, 4, 1024, 8192, 50257, "EleutherAI/gpt-neo-1.3B"),
    "masformer_micro": Size(64, 2, 4, 1, 8, 256),
    "masformer_mini": Size(128, 4, 4, 1, 16, 256),
}
SMALL = ("masformer_micro", "masformer_mini")  # of bytes, not of the paper: for tests and tight budgets


def pattern(name: str, *, vocabulary: int | None = None) -> core.Config:
    """The pattern of a size; ``vocabulary`` is that of the published weights, or of bytes, unless it is given."""
    size = SIZES[name]
    # Small widths and short trainings need weights that keep the variance of what passes through them.
    start = core.Init("xavier_uniform") if name in SMALL else core.Init("normal", 0.02)
    plain, biased, norm = Linear.Config(bias=False, init=start), Linear.Config(init=start), LayerNorm.Config(eps=1e-5)
    full = GroupedQueryAttention.Config(kv_heads=size.heads, scale=1.0, qkv=plain, proj=biased)
    near = BlockSparseAttention.Config(heads=size.heads, scale=1.0, block=size.block, qkv=plain, proj=biased)
    lowest, higher = (layer_block(mixer, TanhMLP.Config(fc1=biased, fc2=biased), norm) for mixer in (full, near))
    return Decoder.Config(
        dim=size.dim,
        vocabulary=size.vocabulary if vocabulary is None else vocabulary,
        embed=PositionedTokenTable.Config(
            context=size.context, tokens=TokenTable.Config(table=plain), init=core.Init("normal", 0.02)
        ),
        blocks=(lowest,) * size.full + (higher,) * (size.depth - size.full),
        norm=norm,
        head=VocabularyHead.Config(linear=core.Shared.Config(path="embed.tokens.table")),
    )


def data_config(name: str) -> dict[str, Any]:
    """What the published weights expect of a text."""
    size = SIZES[name]
    return {"vocabulary": size.vocabulary, "tokenizer": size.tokenizer, "context": size.context}


PUBLISHED = {"masformer_1.3b": core.Published(params=1.3e9, macs=None, at=(64,), source="abstract")}


def _transformers(spec: Any) -> KeyMap:
    """Those of ``GPTNeoForCausalLM``."""
    return _key_map(row("transformer.wte.weight", "embed.tokens.table.weight"))


def _oracle(spec: Any) -> KeyMap:
    """As the module has them: tied tensors under both names."""
    return _key_map(row(("transformer.wte.weight", "lm_head.weight"), "embed.tokens.table.weight", Tie()))


def _key_map(table: Row) -> KeyMap:
    theirs, ours = "transformer.h.{i}", "blocks.{i}"
    heads = tuple(f"{theirs}.attn.attention.{role}_proj.weight" for role in "qkv")
    return KeyMap(
        (
            table,
            row("transformer.wpe.weight", "embed.positions"),
            row(f"{theirs}.ln_1.{{p}}", f"{ours}.norm1.{{p}}"),
            row(heads, f"{ours}.mixer.qkv.weight", Join(count=3)),
            row(f"{theirs}.attn.attention.out_proj.{{p}}", f"{ours}.mixer.proj.{{p}}"),
            row(f"{theirs}.ln_2.{{p}}", f"{ours}.norm2.{{p}}"),
            row(f"{theirs}.mlp.c_fc.{{p}}", f"{ours}.channel_mixer.fc1.{{p}}"),
            row(f"{theirs}.mlp.c_proj.{{p}}", f"{ours}.channel_mixer.fc2.{{p}}"),
            row("transformer.ln_f.{p}", "norm.{p}"),
        )
    )


KEYS = {"transformers": _transformers, "oracle": _oracle}
