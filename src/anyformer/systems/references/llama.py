"""Llama: the plain decoder that recurrent and hybrid language models are held against.

LLaMA (Touvron et al. 2023, arXiv:2302.13971, section 2.2): a Transformer decoder with RMSNorm before each branch, rotary
positions, a gated perceptron with SiLU, and no biases. With fewer key and value heads than query heads it is Llama 2
(arXiv:2307.09288), TinyLlama (arXiv:2401.02385) and SmolLM2 (arXiv:2502.02737), whose sizes stand here as well.

Names: our ``mixer.qkv`` is their ``q_proj``, ``k_proj`` and ``v_proj``, ``mixer.proj`` their ``o_proj``;
``channel_mixer.fc1`` their ``gate_proj`` and ``up_proj``, ``fc2`` their ``down_proj``; ``norm1`` and ``norm2`` their
``input_layernorm`` and ``post_attention_layernorm``.
"""

from typing import Any, NamedTuple

from anyformer import core
from anyformer.core.joins import Concatenate, Counts, Tie
from anyformer.core.keymap import Join, KeyMap, row
from anyformer.parts.channel_mixers.gated_mlp import GatedMLP
from anyformer.parts.embeds.token_table import TokenTable
from anyformer.parts.heads.vocabulary import VocabularyHead
from anyformer.parts.linear.linear import Linear
from anyformer.parts.norms.rms_norm import RMSNorm
from anyformer.parts.positions.rotary import Rotary
from anyformer.parts.token_mixers.grouped_query_attention import GroupedQueryAttention
from anyformer.skeletons.blocks import layer_block
from anyformer.skeletons.decoder import Decoder

PAPER = core.Paper("llama", contributes=("model",))


class Size(NamedTuple):
    """The numbers of a size; ``start`` is the standard deviation of its weights at their start; heads fill ``dim`` mostly."""

    dim: int
    hidden: int
    depth: int
    heads: int
    kv_heads: int
    vocabulary: int = 256
    eps: float = 1e-5
    base: float = 10000.0
    tie: bool = True
    start: float = 0.02
    context: int | None = None
    tokenizer: str = "bytes"
    head_dim: int | None = None


SIZES = {
    "llama_7b": Size(
        *(4096, 11008, 32, 32, 32, 32000), eps=1e-6, tie=False, context=2048, tokenizer="huggyllama/llama-7b"
    ),
    "tinyllama_1.1b": Size(
        *(2048, 5632, 22, 32, 4, 32000),
        tie=False,
        context=2048,
        tokenizer="TinyLlama/TinyLlama-1.1B-intermediate-step-1431k-3T",
    ),
    "smollm2_135m": Size(
        *(576, 1536, 30, 9, 3, 49152), base=1e5, start=1 / 24, context=8192, tokenizer="HuggingFaceTB/SmolLM2-135M"
    ),
    "smollm2_360m": Size(
        *(960, 2560, 32, 15, 5, 49152), base=1e5, context=8192, tokenizer="HuggingFaceTB/SmolLM2-360M"
    ),
    "llama_micro": Size(64, 176, 2, 4, 2),
    "llama_mini": Size(128, 352, 4, 4, 2),
}
SMALL = ("llama_micro", "llama_mini")  # of bytes, not of any paper: for tests and tight budgets


def pattern(name: str, *, vocabulary: int | None = None) -> core.Config:
    """The pattern of a size; ``vocabulary`` is that of the published weights, or of bytes, unless it is given."""
    size = SIZES[name]
    # Small widths and short trainings need weights that keep the variance of what passes through them.
    start = core.Init("xavier_uniform") if name in SMALL else core.Init("normal", size.start)
    return _decoder(size if vocabulary is None else size._replace(vocabulary=vocabulary), start)


def _decoder(size: Size, start: core.Init) -> core.Config:
    linear = Linear.Config(bias=False, init=start)
    norm = RMSNorm.Config(eps=size.eps)
    attention = GroupedQueryAttention.Config(
        kv_heads=size.kv_heads,
        group=size.heads // size.kv_heads,
        head_dim=size.dim // size.heads if size.head_dim is None else size.head_dim,
        position=Rotary.Config(base=size.base),
        qkv=linear,
        proj=linear,
    )
    block = layer_block(attention, GatedMLP.Config(hidden=size.hidden, fc1=linear, fc2=linear), norm)
    return Decoder.Config(
        dim=size.dim,
        vocabulary=size.vocabulary,
        embed=TokenTable.Config(table=linear),
        blocks=(block,) * size.depth,
        norm=norm,
        head=VocabularyHead.Config(linear=core.Shared.Config(path="embed.table") if size.tie else linear),
    )


def data_config(name: str) -> dict[str, Any]:
    """What the published weights expect of a text."""
    size = SIZES[name]
    return {"vocabulary": size.vocabulary, "tokenizer": size.tokenizer, "context": size.context}


PUBLISHED = {
    "llama_7b": core.Published(params=6.7e9, macs=None, at=(64,), source="arXiv:2302.13971, table 2"),
    "tinyllama_1.1b": core.Published(params=1.1e9, macs=None, at=(64,), source="arXiv:2401.02385, abstract"),
    "smollm2_135m": core.Published(params=135e6, macs=None, at=(64,), source="model card"),
    "smollm2_360m": core.Published(params=360e6, macs=None, at=(64,), source="model card"),
}


def _transformers(spec: Any) -> KeyMap:
    return _key_map(spec, row("model.embed_tokens.weight", "embed.table.weight"))


def _oracle(spec: Any) -> KeyMap:
    """As the module has them: tied tensors under both names."""
    if not isinstance(spec.head.linear, core.Shared.Config):
        return _transformers(spec)
    return _key_map(spec, row(("model.embed_tokens.weight", "lm_head.weight"), "embed.table.weight", Tie()))


def _key_map(spec: Any, *table: Any) -> KeyMap:
    mixer = spec.blocks[0].mixer
    key = mixer.kv_heads * mixer.head_dim
    theirs, ours = "model.layers.{i}", "blocks.{i}"
    heads = tuple(f"{theirs}.self_attn.{role}_proj.weight" for role in "qkv")
    gates = tuple(f"{theirs}.mlp.{role}_proj.weight" for role in ("gate", "up"))
    return KeyMap(
        (
            *table,
            row(f"{theirs}.input_layernorm.weight", f"{ours}.norm1.weight"),
            row(heads, f"{ours}.mixer.qkv.weight", Concatenate((mixer.group * key, key, key))),
            row(f"{theirs}.self_attn.o_proj.weight", f"{ours}.mixer.proj.weight"),
            *(row((), f"blocks.{i}.mixer.position.pair", Counts()) for i in range(len(spec.blocks))),
            row(f"{theirs}.post_attention_layernorm.weight", f"{ours}.norm2.weight"),
            row(gates, f"{ours}.channel_mixer.fc1.weight", Join(count=2)),
            row(f"{theirs}.mlp.down_proj.weight", f"{ours}.channel_mixer.fc2.weight"),
            row("model.norm.weight", "norm.weight"),
            row("lm_head.weight", "head.linear.weight"),
        )
    )


KEYS = {"transformers": _transformers, "oracle": _oracle}


def _read(settings: core.Settings) -> core.Config:
    settings.expect(hidden_act="silu", attention_bias=False, mlp_bias=False, rope_scaling=None)
    rope = settings.within("rope_parameters")
    rope.expect(rope_type="default")
    heads = settings.number("num_attention_heads")
    size = Size(
        dim=settings.number("hidden_size"),
        hidden=settings.number("intermediate_size"),
        depth=settings.number("num_hidden_layers"),
        heads=heads,
        kv_heads=settings.number("num_key_value_heads", heads),
        vocabulary=settings.number("vocab_size"),
        eps=settings.number("rms_norm_eps", 1e-6),
        base=float(rope.number("rope_theta", settings.number("rope_theta", 10000.0))),
        tie=settings.flag("tie_word_embeddings", False),
        head_dim=settings.number("head_dim", 0) or None,
    )
    return _decoder(size, core.Init("normal", 0.02))


def _write(spec: Any) -> dict[str, Any]:
    block = spec.blocks[0]
    return {
        "vocab_size": spec.vocabulary,
        "hidden_size": spec.dim,
        "intermediate_size": block.channel_mixer.hidden,
        "num_hidden_layers": len(spec.blocks),
        "num_attention_heads": block.mixer.kv_heads * block.mixer.group,
        "num_key_value_heads": block.mixer.kv_heads,
        "head_dim": block.mixer.head_dim,
        "rms_norm_eps": spec.norm.eps,
        "rope_parameters": {"rope_type": "default", "rope_theta": block.mixer.position.base},
        "tie_word_embeddings": isinstance(spec.head.linear, core.Shared.Config),
    }


FOLDERS = (core.Folder("llama", "LlamaForCausalLM", _read, _write),)
