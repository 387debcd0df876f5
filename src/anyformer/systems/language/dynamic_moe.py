"""Dynamic MoE: a token takes as many experts as it needs to be sure enough, instead of always two.

Harder Tasks Need More Experts (arXiv:2403.07652). The probabilities that the router gives the experts are its confidence: a
token's experts are added, the most probable first, until their sum exceeds a threshold. Without more, the router would
learn to be unsure of everything and to use all experts, so that the entropy of its probabilities is added to the loss,
beside Switch Transformer's balance of the load. All else is Llama's. Against a mixture of two experts a token, as Jamba's,
the number of experts follows from the token, and outputs are weighted by the probabilities as they are.

Names: our ``mixer`` is their ``self_attn``, ``qkv`` in it their ``q_proj``, ``k_proj`` and ``v_proj``; ``channel_mixer`` is
their ``mlp``, ``fc1`` in its experts their ``gate_proj`` and ``up_proj``, ``fc2`` their ``down_proj``; ``norm1`` and
``norm2`` their ``input_norm`` and ``post_attention_norm``.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.core.joins import Counts
from anyformer.core.keymap import Join, KeyMap, Row, row
from anyformer.parts.channel_mixers.experts import Experts
from anyformer.parts.channel_mixers.gated_mlp import GatedMLP
from anyformer.parts.embeds.token_table import TokenTable
from anyformer.parts.heads.vocabulary import VocabularyHead
from anyformer.parts.linear.linear import Linear
from anyformer.parts.norms.rms_norm import RMSNorm
from anyformer.parts.positions.rotary import Rotary
from anyformer.parts.routers.top_k import Routing
from anyformer.parts.token_mixers.grouped_query_attention import GroupedQueryAttention
from anyformer.skeletons.blocks import layer_block
from anyformer.skeletons.decoder import Decoder

PAPER = core.Paper(
    "dynamic_moe",
    contributes=("model", "part"),
    extends=("llama", "jamba"),
    deviations=(
        "The public code has no training: the losses are the paper's, as summaries of it describe them; their weights, 0.01 "
        "for the balance and 0.0001 for the entropy, are noted from memory.",
        "Layers, width, experts and context of the published size are noted from memory. Experts of 2,816 channels in every "
        "layer are what gives its 3.5 billion parameters, and 374 million for one expert a token; that there are 16 heads "
        "is assumed. The threshold of 0.4 is the code's.",
        "The authors' modules store the frequencies of the rotary positions; ours compute them, and write them on dumping.",
    ),
)

ENTROPY = "routing_entropy"
LOSS = "routing_entropy_loss"


class TopP(core.Router, name="top_p"):
    """The fewest experts whose probabilities, a softmax of one linear map, sum to more than ``p``; weighted by these.

    Collects the mean entropy of the probabilities, in nats, as "routing_entropy", and, where ``entropy`` is not 0, that much
    of it as "routing_entropy_loss", which training adds to its loss: a router that is sure uses few experts.

    Shapes: ``(tokens, dim)`` to a :class:`~anyformer.parts.routers.top_k.Routing` as wide as a token of equal probabilities
    needs, which is the most that any does, with absent entries. Cost: ``dim * experts`` multiply-adds a token.
    """

    class Config(core.Config):
        """``p`` is the threshold, ``entropy`` the weight of the entropy in the loss."""

        dim: int = core.bound()
        experts: int = core.bound()
        p: float = 0.4
        entropy: float = 0.0
        linear: core.Config = core.linear(bias=False)

    axes = {"linear.weight": "experts dim"}
    reduces = ("experts",)
    fixed = {"experts": "an expert is a part of its own, which is left out whole"}
    collects = (ENTROPY, LOSS)

    def __init__(self, config: Config) -> None:
        if not 0 <= config.p <= 1:
            raise core.UsageError(f"a sum of probabilities cannot pass p={config.p}; give a number from 0 to 1")
        super().__init__(config)

    def forward(self, x: Tensor, ctx: core.Context) -> Routing:
        """Route tokens that stand in a row."""
        scores = self.linear(x)
        logs = scores.log_softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        shares = logs.exp()
        if ctx.sink is not None:
            entropy = -(shares * logs).sum() / max(len(x), 1)
            ctx.collect(ENTROPY, entropy)
            if self.config.entropy:
                ctx.collect(LOSS, self.config.entropy * entropy)
        count, p = self.config.experts, self.config.p
        # equal probabilities need the most; the margin is for thresholds that are a number of experts but for rounding
        weights, experts = shares.topk(min(count, math.floor(p * count + 1e-6) + 1))
        before = F.pad(weights.cumsum(-1)[:, :-1], (1, 0))
        absent = before > p
        return Routing(experts.masked_fill(absent, -1), weights.masked_fill(absent, 0.0).to(x.dtype), shares)


SIZES: dict[str, dict[str, Any]] = {
    "dynamic_moe_3.5b": {"dim": 1024, "hidden": 2816, "depth": 24, "heads": 16, "experts": 16, "p": 0.4},
    "dynamic_moe_micro": {"dim": 64, "hidden": 96, "depth": 2, "heads": 4, "experts": 4, "p": 0.6},
    "dynamic_moe_mini": {"dim": 128, "hidden": 192, "depth": 4, "heads": 4, "experts": 4, "p": 0.6},
}
SMALL = ("dynamic_moe_micro", "dynamic_moe_mini")  # not of the paper: for bytes and tight budgets
# With so few experts the published threshold would mostly mean one.


def pattern(name: str, *, vocabulary: int | None = None) -> core.Config:
    """The pattern of a size; ``vocabulary`` is that of the published weights, or of bytes, unless it is given."""
    size = SIZES[name]
    # Small widths and short trainings need weights that keep the variance of what passes through them.
    start = core.Init("xavier_uniform") if name in SMALL else core.Init("normal", 0.02)
    linear, norm = Linear.Config(bias=False, init=start), RMSNorm.Config(eps=1e-6)
    attention = GroupedQueryAttention.Config(kv_heads=size["heads"], position=Rotary.Config(), qkv=linear, proj=linear)
    expert = GatedMLP.Config(hidden=size["hidden"], fc1=linear, fc2=linear)
    # A router starts unsure, so that no expert stays unused for being unlucky.
    router = TopP.Config(p=size["p"], entropy=1e-4, linear=linear.replace(init=core.Init("normal", 0.02)))
    experts = Experts.Config(router=router, balance=1e-2, experts=(expert,) * size["experts"])
    return Decoder.Config(
        dim=size["dim"],
        vocabulary=vocabulary or data_config(name)["vocabulary"],
        embed=TokenTable.Config(table=linear),
        blocks=(layer_block(attention, experts, norm),) * size["depth"],
        norm=norm,
        head=VocabularyHead.Config(linear=linear),
    )


def data_config(name: str) -> dict[str, Any]:
    """What the published weights expect of a text."""
    if name in SMALL:
        return {"vocabulary": 256, "tokenizer": "bytes", "context": None}
    return {"vocabulary": 32000, "tokenizer": "AnLan577/Dynamic_MoE", "context": 2048}


PUBLISHED = {
    "dynamic_moe_3.5b": core.Published(params=3.5e9, macs=None, at=(64,), source="arXiv:2403.07652, from memory"),
}


@dataclass(frozen=True)
class Frequencies:
    """Theirs are the frequencies of rotary pairs, ours the numbers of these."""

    base: float
    pairs: int

    def forward(self, theirs: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        """Count; nothing where the frequencies are others, which the key map tells with the names."""
        counted = [torch.arange(length, device=theirs[0].device) for (length,) in shapes]
        same = theirs[0].is_meta or torch.allclose(theirs[0].float(), self.backward(counted)[0], rtol=1e-2)
        return counted if same else []

    def backward(self, ours: list[Tensor]) -> list[Tensor]:
        """Compute, in float32 as they do."""
        return [self.base ** -(pair.float() / self.pairs) for pair in ours]


def _official(spec: Any) -> KeyMap:
    position = spec.blocks[0].mixer.position
    theirs, ours = "model.layers.{i}.self_attn.rotary_emb.inv_freq", "blocks.{i}.mixer.position.pair"
    return _key_map(row(theirs, ours, Frequencies(position.base, position.pairs)))


def _oracle(spec: Any) -> KeyMap:
    """Without what both sides compute."""
    return _key_map(*(row((), f"blocks.{i}.mixer.position.pair", Counts()) for i in range(len(spec.blocks))))


def _key_map(*positions: Row) -> KeyMap:
    theirs, ours = "model.layers.{i}", "blocks.{i}"
    heads = tuple(f"{theirs}.self_attn.{role}_proj.weight" for role in "qkv")
    gates = tuple(f"{theirs}.mlp.experts.{{e}}.{role}_proj.weight" for role in ("gate", "up"))
    return KeyMap(
        (
            row("model.embed_tokens.weight", "embed.table.weight"),
            row(f"{theirs}.input_norm.weight", f"{ours}.norm1.weight"),
            row(heads, f"{ours}.mixer.qkv.weight", Join()),
            row(f"{theirs}.self_attn.o_proj.weight", f"{ours}.mixer.proj.weight"),
            *positions,
            row(f"{theirs}.post_attention_norm.weight", f"{ours}.norm2.weight"),
            row(f"{theirs}.mlp.router.weight", f"{ours}.channel_mixer.router.linear.weight"),
            row(gates, f"{ours}.channel_mixer.experts.{{e}}.fc1.weight", Join(count=2)),
            row(f"{theirs}.mlp.experts.{{e}}.down_proj.weight", f"{ours}.channel_mixer.experts.{{e}}.fc2.weight"),
            row("model.norm.weight", "norm.weight"),
            row("lm_head.weight", "head.linear.weight"),
        )
    )


KEYS = {"official": _official, "oracle": _oracle}
