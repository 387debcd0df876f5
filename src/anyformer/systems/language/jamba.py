"""Jamba: Mamba layers with one attention layer among eight, and a mixture of experts in every second layer.

Jamba: A Hybrid Transformer-Mamba Language Model (section 2, figure 1). Every layer is a mixer and a perceptron, each after
an RMSNorm; attention has no positions, because the Mamba layers before it know the order (section 6.6). A token sees two of
16 experts, weighted by the softmax over all of them. Against Mamba's mixer this one has RMSNorms on step, b and c, which
keep large models from diverging (section 6.5).

Names: our ``mixer`` is their ``self_attn`` or ``mamba``, in the latter ``convolution`` their ``conv1d``, ``step_proj`` their
``dt_proj``, ``log_rates`` their ``A_log``, ``skip`` their ``D``, ``step_norm`` their ``dt_layernorm``; ``channel_mixer`` is
their ``feed_forward``, ``fc1`` their ``gate_proj`` and ``up_proj``, ``fc2`` their ``down_proj``; ``norm2`` their
``pre_ff_layernorm``.
"""

from typing import Any, NamedTuple

from anyformer import core
from anyformer.core.joins import Concatenate, Stack
from anyformer.core.keymap import Join, KeyMap, Row, row
from anyformer.parts.channel_mixers.experts import Experts
from anyformer.parts.channel_mixers.gated_mlp import GatedMLP
from anyformer.parts.convolutions.causal_convolution import CausalConvolution
from anyformer.parts.embeds.token_table import TokenTable
from anyformer.parts.heads.vocabulary import VocabularyHead
from anyformer.parts.linear.linear import Linear
from anyformer.parts.norms.rms_norm import RMSNorm
from anyformer.parts.routers.top_k import TopK
from anyformer.parts.token_mixers.grouped_query_attention import GroupedQueryAttention
from anyformer.parts.token_mixers.mamba import Mamba
from anyformer.skeletons.blocks import layer_block
from anyformer.skeletons.decoder import Decoder

PAPER = core.Paper(
    "jamba",
    contributes=("model", "part"),
    extends=("mamba", "llama"),
    deviations=(
        "The paper gives no initialisation: the mixers of Mamba start as its paper says, all else normal, 0.02.",
    ),
)


class Size(NamedTuple):
    """The numbers of a size; ``attention`` and ``routed``: every how many layers there is one, and from which on."""

    dim: int
    hidden: int
    depth: int
    heads: int
    kv_heads: int
    experts: int
    attention: tuple[int, int]
    routed: tuple[int, int] = (2, 1)
    vocabulary: int = 256
    eps: float = 1e-5
    context: int | None = None
    tokenizer: str = "bytes"
    chosen: int = 2
    expand: int = 2
    state: int = 16
    kernel: int = 4
    step_rank: int | None = None


SIZES = {
    "jamba_v0.1": Size(
        *(4096, 14336, 32, 32, 8, 16, (8, 4)),
        vocabulary=65536,
        eps=1e-6,
        context=262144,
        tokenizer="ai21labs/Jamba-v0.1",
    ),
    "jamba_micro": Size(64, 128, 2, 4, 2, 4, (2, 1)),
    "jamba_mini": Size(128, 256, 4, 4, 2, 8, (4, 2)),
}
SMALL = ("jamba_micro", "jamba_mini")  # of bytes, not of the paper: for tests and tight budgets
# Their eps is ten times the published one: three norms follow x_proj, whose scale would be felt by less than a millionth.


def pattern(name: str, *, vocabulary: int | None = None) -> core.Config:
    """The pattern of a size; ``vocabulary`` is that of the published weights, or of bytes, unless it is given."""
    size = SIZES[name] if vocabulary is None else SIZES[name]._replace(vocabulary=vocabulary)
    # Small widths and short trainings need weights that keep the variance of what passes through them.
    return _decoder(size, core.Init("xavier_uniform") if name in SMALL else core.Init("normal", 0.02))


def _decoder(size: Size, start: core.Init) -> core.Config:
    linear, norm = Linear.Config(bias=False, init=start), RMSNorm.Config(eps=size.eps)
    rank: dict[str, Any] = {} if size.step_rank is None else {"step_rank": size.step_rank}
    mamba = Mamba.Config(
        expand=float(size.expand),
        state=size.state,
        convolution=CausalConvolution.Config(kernel=size.kernel),
        step_norm=norm,
        b_norm=norm,
        c_norm=norm,
        **rank,
    )
    attention = GroupedQueryAttention.Config(
        kv_heads=size.kv_heads, group=size.heads // size.kv_heads, qkv=linear, proj=linear
    )
    dense = GatedMLP.Config(hidden=size.hidden, fc1=linear, fc2=linear)
    routed = Experts.Config(
        router=TopK.Config(k=size.chosen, over="all", linear=linear), experts=(dense,) * size.experts
    )
    blocks = {
        (attends, routes): layer_block(attention if attends else mamba, routed if routes else dense, norm)
        for attends in (False, True)
        for routes in (False, True)
    }

    def block(layer: int) -> core.Config:
        (attention_period, attention_first), (routed_period, routed_first) = size.attention, size.routed
        return blocks[layer % attention_period == attention_first, layer % routed_period == routed_first]

    return Decoder.Config(
        dim=size.dim,
        vocabulary=size.vocabulary,
        embed=TokenTable.Config(table=linear),
        blocks=tuple(map(block, range(size.depth))),
        norm=norm,
        head=VocabularyHead.Config(linear=linear),
    )


def data_config(name: str) -> dict[str, Any]:
    """What the published weights expect of a text."""
    size = SIZES[name]
    return {"vocabulary": size.vocabulary, "tokenizer": size.tokenizer, "context": size.context}


PUBLISHED = {
    "jamba_v0.1": core.Published(params=52e9, macs=None, at=(64,), source="section 3.1"),
}


def _transformers(spec: Any) -> KeyMap:
    """As the published files have them: a tensor an expert."""
    theirs, ours = "model.layers.{i}.feed_forward.experts.{e}", "blocks.{i}.channel_mixer.experts.{e}"
    gates = tuple(f"{theirs}.{role}_proj.weight" for role in ("gate", "up"))
    return _key_map(
        spec,
        row(gates, f"{ours}.fc1.weight", Join(count=2)),
        row(f"{theirs}.down_proj.weight", f"{ours}.fc2.weight"),
    )


def _oracle(spec: Any) -> KeyMap:
    """As the module has them: the experts of a layer in one tensor."""
    count = max(getattr(block.channel_mixer, "count", 0) for block in spec.blocks)
    theirs, ours = "model.layers.{i}.feed_forward.experts", "blocks.{i}.channel_mixer.experts"
    return _key_map(
        spec,
        row(f"{theirs}.gate_up_proj", tuple(f"{ours}.{e}.fc1.weight" for e in range(count)), Stack()),
        row(f"{theirs}.down_proj", tuple(f"{ours}.{e}.fc2.weight" for e in range(count)), Stack()),
    )


def _key_map(spec: Any, *experts: Row) -> KeyMap:
    mixer = next(block.mixer for block in spec.blocks if block.mixer.part is GroupedQueryAttention)
    key = mixer.kv_heads * mixer.head_dim
    theirs, ours = "model.layers.{i}", "blocks.{i}"
    heads = tuple(f"{theirs}.self_attn.{role}_proj.weight" for role in "qkv")
    gates = tuple(f"{theirs}.feed_forward.{role}_proj.weight" for role in ("gate", "up"))
    norms = {"dt": "step", "b": "b", "c": "c"}
    return KeyMap(
        (
            row("model.embed_tokens.weight", "embed.table.weight"),
            row(f"{theirs}.input_layernorm.weight", f"{ours}.norm1.weight"),
            row(heads, f"{ours}.mixer.qkv.weight", Concatenate((mixer.group * key, key, key))),
            row(f"{theirs}.self_attn.o_proj.weight", f"{ours}.mixer.proj.weight"),
            row(f"{theirs}.mamba.in_proj.weight", f"{ours}.mixer.in_proj.weight"),
            row(f"{theirs}.mamba.conv1d.{{p}}", f"{ours}.mixer.convolution.{{p}}"),
            row(f"{theirs}.mamba.x_proj.weight", f"{ours}.mixer.x_proj.weight"),
            *(row(f"{theirs}.mamba.{a}_layernorm.weight", f"{ours}.mixer.{b}_norm.weight") for a, b in norms.items()),
            row(f"{theirs}.mamba.dt_proj.{{p}}", f"{ours}.mixer.step_proj.{{p}}"),
            row(f"{theirs}.mamba.A_log", f"{ours}.mixer.log_rates"),
            row(f"{theirs}.mamba.D", f"{ours}.mixer.skip"),
            row(f"{theirs}.mamba.out_proj.weight", f"{ours}.mixer.out_proj.weight"),
            row(f"{theirs}.pre_ff_layernorm.weight", f"{ours}.norm2.weight"),
            row(gates, f"{ours}.channel_mixer.fc1.weight", Join(count=2)),
            row(f"{theirs}.feed_forward.down_proj.weight", f"{ours}.channel_mixer.fc2.weight"),
            row(f"{theirs}.feed_forward.router.weight", f"{ours}.channel_mixer.router.linear.weight"),
            *experts,
            row("model.final_layernorm.weight", "norm.weight"),
            row("lm_head.weight", "head.linear.weight"),
        )
    )


KEYS = {"transformers": _transformers, "oracle": _oracle}


def _read(settings: core.Settings) -> core.Config:
    settings.expect(
        hidden_act="silu", mamba_proj_bias=False, mamba_conv_bias=True, tie_word_embeddings=False, sliding_window=None
    )
    heads = settings.number("num_attention_heads")
    rank = settings.values.get("mamba_dt_rank", "auto")
    size = Size(
        dim=settings.number("hidden_size"),
        hidden=settings.number("intermediate_size"),
        depth=settings.number("num_hidden_layers"),
        heads=heads,
        kv_heads=settings.number("num_key_value_heads", heads),
        experts=settings.number("num_experts", 16),
        attention=_places(settings, "attn_layer", 8, 4),
        routed=_places(settings, "expert_layer", 2, 1),
        vocabulary=settings.number("vocab_size"),
        eps=settings.number("rms_norm_eps", 1e-6),
        chosen=settings.number("num_experts_per_tok", 2),
        expand=settings.number("mamba_expand", 2),
        state=settings.number("mamba_d_state", 16),
        kernel=settings.number("mamba_d_conv", 4),
        step_rank=None if rank == "auto" else settings.number("mamba_dt_rank"),
    )
    return _decoder(size, core.Init("normal", 0.02))


def _places(settings: core.Settings, layers: str, period: int, offset: int) -> tuple[int, int]:
    """Every how many layers there is one, and from which on, which may be the first: 0."""
    first = settings.values.get(f"{layers}_offset", offset)
    return settings.number(f"{layers}_period", period), first if first == 0 else settings.number(
        f"{layers}_offset", offset
    )


def _write(spec: Any) -> dict[str, Any]:
    mixers = [block.mixer for block in spec.blocks]
    channels = [block.channel_mixer for block in spec.blocks]
    attention = next(mixer for mixer in mixers if mixer.part is GroupedQueryAttention)
    mamba = next(mixer for mixer in mixers if mixer.part is Mamba)
    experts = next(mixer for mixer in channels if mixer.part is Experts)
    attention_period, attention_offset = _regular([mixer.part is GroupedQueryAttention for mixer in mixers])
    expert_period, expert_offset = _regular([mixer.part is Experts for mixer in channels])
    return {
        "vocab_size": spec.vocabulary,
        "hidden_size": spec.dim,
        "intermediate_size": experts.experts[0].hidden,
        "num_hidden_layers": len(spec.blocks),
        "num_attention_heads": attention.kv_heads * attention.group,
        "num_key_value_heads": attention.kv_heads,
        "rms_norm_eps": spec.norm.eps,
        "attn_layer_period": attention_period,
        "attn_layer_offset": attention_offset,
        "expert_layer_period": expert_period,
        "expert_layer_offset": expert_offset,
        "num_experts": experts.count,
        "num_experts_per_tok": experts.router.k,
        "mamba_d_state": mamba.state,
        "mamba_d_conv": mamba.convolution.kernel,
        "mamba_expand": mamba.inner // spec.dim,
        "mamba_dt_rank": mamba.step_rank,
        "tie_word_embeddings": False,
        "pad_token_id": None,  # one would have no gradient in the table
    }


def _regular(marks: list[bool]) -> tuple[int, int]:
    """Every how many layers a mark stands, and the first that has it; a single one comes back after all of them."""
    places = [index for index, mark in enumerate(marks) if mark]
    return (places[1] - places[0] if len(places) > 1 else len(marks)), places[0]


FOLDERS = (core.Folder("jamba", "JambaForCausalLM", _read, _write),)
