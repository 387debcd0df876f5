"""Mamba-2-Hybrid: mostly Mamba-2 layers and perceptrons, with one attention layer in fourteen.

An Empirical Study of Mamba-based Language Models, of NVIDIA: pure Mamba-2 learns as well as a Transformer, but copies worse;
four layers of attention among 56, without any positions, mend that (sections 3 and 4). A layer is one norm, one mixer and
one residual: a text has a letter for each, ``M`` for Mamba-2 (arXiv:2405.21060), ``*`` for attention of grouped queries,
``-`` for a perceptron with GELU. Here are also the pure Mamba-2 models: NVIDIA's, and the authors' of Mamba-2 themselves.

Names: our ``log_rates`` is their ``A_log``, ``skip`` their ``D``, ``step_bias`` their ``dt_bias``, ``convolution`` their
``conv1d``, ``p`` their ``headdim``, ``groups`` their ``ngroups``; attention's ``qkv`` is Megatron's ``linear_qkv``, whose
rows stand query group by query group, ``proj`` its ``linear_proj``.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from anyformer import core
from anyformer.core.joins import Concatenate, Tie
from anyformer.core.keymap import KeyMap, Row, row
from anyformer.parts.channel_mixers.mlp import MLP
from anyformer.parts.convolutions.causal_convolution import CausalConvolution
from anyformer.parts.embeds.token_table import TokenTable
from anyformer.parts.heads.vocabulary import VocabularyHead
from anyformer.parts.linear.linear import Linear
from anyformer.parts.norms.rms_norm import RMSNorm
from anyformer.parts.residuals.residual import PlainResidual
from anyformer.parts.token_mixers.grouped_query_attention import GroupedQueryAttention
from anyformer.parts.token_mixers.mamba2 import Mamba2
from anyformer.skeletons.blocks import MixerBlock
from anyformer.skeletons.decoder import Decoder

PAPER = core.Paper(
    "mamba2_hybrid",
    contributes=("model", "part"),
    deviations=("Convolutions start with zeros as biases, the authors' with random numbers.",),
)

# attention spread evenly, starting and ending with other layers; then perceptrons in place of half of all layers
_8B = "M-M-M--M-M*-M-M-M-M--M*-M-M-M-M-M*--M-M-M-M-M*-M--M-M-M-"
_800M = "M-M-M--M-*M-M-M-M--*M-M-M-M-*M--M-M-M-*M-M--M-M-"
_PURE = {"groups": 1, "tie": True, "vocabulary": 50288}  # Mamba-2's authors': 50,277 tokens, made a multiple of 16
_BYTES = {"p": 32, "state": 16, "vocabulary": 256}

SIZES: dict[str, dict[str, Any]] = {
    "mamba2_hybrid_8b": {"dim": 4096, "layers": _8B, "heads": 32, "kv_heads": 8, "vocabulary": 256000},
    "mamba2_hybrid_800m": {"dim": 1024, "layers": _800M, "heads": 16, "kv_heads": 8, "vocabulary": 256000},
    "mamba2_8b": {"dim": 4096, "layers": "M" * 56, "vocabulary": 256000},
    "mamba2_130m": {"dim": 768, "layers": "M" * 24, **_PURE},
    "mamba2_370m": {"dim": 1024, "layers": "M" * 48, **_PURE},
    "mamba2_780m": {"dim": 1536, "layers": "M" * 48, **_PURE},
    "mamba2_1.3b": {"dim": 2048, "layers": "M" * 48, **_PURE},
    "mamba2_2.7b": {"dim": 2560, "layers": "M" * 64, **_PURE},
    "mamba2_micro": {"dim": 64, "layers": "MM", **_PURE, **_BYTES},
    "mamba2_hybrid_micro": {"dim": 64, "layers": "M-*-M-", "heads": 4, "kv_heads": 2, "groups": 2, **_BYTES},
    "mamba2_hybrid_mini": {"dim": 128, "layers": "M-M*-M-", "heads": 4, "kv_heads": 2, "groups": 2, **_BYTES},
}
SMALL = ("mamba2_micro", "mamba2_hybrid_micro", "mamba2_hybrid_mini")  # not of the paper: for bytes and tight budgets


class Stateless(core.State):
    """What a layer that mixes no tokens carries on: nothing."""


class ChannelBlock(core.Block, name="channel_block"):
    """``residual(x, channel_mixer(norm(x)))``: a layer that mixes the channels of each token alone."""

    class Config(core.Config):
        """One part a slot."""

        dim: int = core.bound()
        norm: core.Config
        channel_mixer: core.Config
        residual: core.Config = PlainResidual.Config()

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """One layer."""
        return self.residual(x, self.channel_mixer(self.norm(x), ctx))

    def init_state(self, batch: int, capacity: int, like: Tensor) -> Stateless:
        """Empty."""
        return Stateless()

    def stream(self, x: Tensor, ctx: core.Context, state: Stateless) -> tuple[Tensor, Stateless]:
        """One layer, for the next tokens."""
        return self(x, ctx), state


def pattern(name: str, *, vocabulary: int | None = None) -> core.Config:
    """The pattern of a size; the vocabulary is that of the published weights, or bytes for the small sizes."""
    # Small widths and short trainings need weights that keep the variance of what passes through them.
    size = SIZES[name] if vocabulary is None else {**SIZES[name], "vocabulary": vocabulary}
    return _decoder(size, core.Init("xavier_uniform") if name in SMALL else None)


def _decoder(size: dict[str, Any], small: core.Init | None = None) -> core.Config:
    dim, layers = size["dim"], size["layers"]
    norm, depth = RMSNorm.Config(eps=size.get("eps", 1e-5)), len(layers)
    # what enters the residual sum starts smaller in deeper models, so that the sum does not grow with depth
    scaled = core.Init("uniform_fan_in", depth**-0.5) if "tie" in size else core.Init("normal", 0.02 * depth**-0.5)
    mixer = Mamba2.Config(
        p=size.get("p", 64),
        state=size.get("state", 128),
        groups=size.get("groups", 8),
        convolution=CausalConvolution.Config(kernel=size.get("kernel", 4)),
        **({"heads": size["mamba_heads"]} if "mamba_heads" in size else {}),
        out_proj=Linear.Config(bias=False, init=scaled),
    )
    blocks: dict[str, core.Config] = {"M": MixerBlock.Config(norm=norm, mixer=mixer)}
    if "heads" in size:
        first = Linear.Config(bias=False, init=small or core.Init("normal", 0.02))
        last = Linear.Config(bias=False, init=small or core.Init("normal", 0.02 * (2 * depth) ** -0.5))
        attention = GroupedQueryAttention.Config(
            kv_heads=size["kv_heads"],
            group=size["heads"] // size["kv_heads"],
            head_dim=size.get("head_dim", dim // size["heads"]),
            qkv=first,
            proj=last,
        )
        perceptron = MLP.Config(hidden=size.get("hidden", 4 * dim), activation="gelu", fc1=first, fc2=last)
        blocks["*"] = MixerBlock.Config(norm=norm, mixer=attention)
        blocks["-"] = ChannelBlock.Config(norm=norm, channel_mixer=perceptron)
    scores = core.Shared.Config(path="embed.table") if "tie" in size else Linear.Config(bias=False)
    return Decoder.Config(
        dim=dim,
        vocabulary=size["vocabulary"],
        embed=TokenTable.Config(),
        blocks=tuple(blocks[letter] for letter in layers),
        norm=norm,
        head=VocabularyHead.Config(linear=scores),
    )


def data_config(name: str) -> dict[str, Any]:
    """What the published weights expect of a text; without positions, longer texts than in training may be given."""
    size = SIZES[name]
    if name in SMALL:
        return {"vocabulary": size["vocabulary"], "tokenizer": "bytes", "context": None}
    nvidia = "mt_nlg_plus_multilingual_ja_zh_the_stack_frac_015_256k.model"
    tokenizer = "EleutherAI/gpt-neox-20b" if "tie" in size else nvidia
    return {"vocabulary": size["vocabulary"], "tokenizer": tokenizer, "context": None}


_NVIDIA, _TABLE = "name of the released model", "official model table"
_ROUNDED = "the name rounds"
_SCALE = "the name is a scale; the two matrices of 256,000 tokens are more than half of it"
PUBLISHED = {
    "mamba2_hybrid_8b": core.Published(params=8e9, macs=None, at=(4096,), source=_NVIDIA, explained=_ROUNDED),
    "mamba2_hybrid_800m": core.Published(params=8e8, macs=None, at=(4096,), source="official script", explained=_SCALE),
    "mamba2_8b": core.Published(params=8e9, macs=None, at=(4096,), source=_NVIDIA),
    "mamba2_130m": core.Published(params=130e6, macs=None, at=(2048,), source=_TABLE),
    "mamba2_370m": core.Published(params=370e6, macs=None, at=(2048,), source=_TABLE),
    "mamba2_780m": core.Published(params=780e6, macs=None, at=(2048,), source=_TABLE),
    "mamba2_1.3b": core.Published(params=1.3e9, macs=None, at=(2048,), source=_TABLE, explained=_ROUNDED),
    "mamba2_2.7b": core.Published(params=2.7e9, macs=None, at=(2048,), source=_TABLE),
}


@dataclass(frozen=True)
class QueryGroups:
    """Their rows stand key head by key head, its ``group`` queries, its key, its value; ours by role."""

    group: int
    head_dim: int

    def forward(self, theirs: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        """Order by role."""
        heads = theirs[0].unflatten(0, (-1, self.group + 2, self.head_dim))
        return [torch.cat([role.flatten(0, 2) for role in heads.split((self.group, 1, 1), dim=1)])]

    def backward(self, ours: list[Tensor]) -> list[Tensor]:
        """Order by key head."""
        keys = len(ours[0]) // (self.group + 2)
        roles = ours[0].split((self.group * keys, keys, keys))
        heads = [role.unflatten(0, (keys // self.head_dim, -1, self.head_dim)) for role in roles]
        return [torch.cat(heads, dim=1).flatten(0, 2)]


def _official(spec: Any) -> KeyMap:
    """The names of Mamba-2's authors where the head is tied, as theirs are, else those of NVIDIA's Megatron-LM."""
    if isinstance(spec.head.linear, core.Shared.Config):
        tied = row(("backbone.embedding.weight", "lm_head.weight"), "embed.table.weight", Tie())
        return KeyMap((tied, *_mamba2("backbone.layers"), *_norms("backbone.layers", "backbone.norm_f")))
    theirs = "decoder.layers.{i}"
    norm_of = {"mamba2": "norm.weight", "grouped_query_attention": "self_attention.linear_qkv.layer_norm_weight"}
    norms = (
        row(f"decoder.layers.{i}.{norm_of.get(part, 'mlp.linear_fc1.layer_norm_weight')}", f"blocks.{i}.norm.weight")
        for i, part in enumerate(map(_kind, spec.blocks))
    )
    attention = _attention(spec)
    regrouped = QueryGroups(attention.group, attention.head_dim) if attention else None
    return KeyMap(
        (
            row("embedding.word_embeddings.weight", "embed.table.weight"),
            *_mamba2("decoder.layers"),
            *norms,
            row(f"{theirs}.self_attention.linear_qkv.weight", "blocks.{i}.mixer.qkv.weight", regrouped),
            row(f"{theirs}.self_attention.linear_proj.weight", "blocks.{i}.mixer.proj.weight"),
            row(f"{theirs}.mlp.linear_fc1.weight", "blocks.{i}.channel_mixer.fc1.weight"),
            row(f"{theirs}.mlp.linear_fc2.weight", "blocks.{i}.channel_mixer.fc2.weight"),
            row("decoder.final_norm.weight", "norm.weight"),
            row("output_layer.weight", "head.linear.weight"),
        )
    )


def _transformers(spec: Any) -> KeyMap:
    """Those of ``NemotronHForCausalLM``, or of ``Mamba2ForCausalLM`` where there is nothing but Mamba-2."""
    root = "backbone" if _pure(spec) else "model"
    return _of_transformers(spec, row(f"{root}.embeddings.weight", "embed.table.weight"))


def _oracle(spec: Any) -> KeyMap:
    """As the module has them: tied tensors under both names."""
    if not isinstance(spec.head.linear, core.Shared.Config):
        return _transformers(spec)
    return _of_transformers(spec, row(("backbone.embeddings.weight", "lm_head.weight"), "embed.table.weight", Tie()))


def _of_transformers(spec: Any, embedding: Row) -> KeyMap:
    layers = "backbone.layers" if _pure(spec) else "model.layers"
    theirs, ours, attention = f"{layers}.{{i}}.mixer", "blocks.{i}", _attention(spec)
    rows = [embedding, *_mamba2(layers), *_norms(layers, layers.replace("layers", "norm_f"))]
    if attention:
        key = attention.kv_heads * attention.head_dim
        roles = tuple(f"{theirs}.{role}_proj.weight" for role in "qkv")
        rows += [
            row(roles, f"{ours}.mixer.qkv.weight", Concatenate((attention.group * key, key, key))),
            row(f"{theirs}.o_proj.weight", f"{ours}.mixer.proj.weight"),
            row(f"{theirs}.up_proj.weight", f"{ours}.channel_mixer.fc1.weight"),
            row(f"{theirs}.down_proj.weight", f"{ours}.channel_mixer.fc2.weight"),
        ]
    return KeyMap((*rows, row("lm_head.weight", "head.linear.weight")))


def _mamba2(layers: str) -> tuple[Row, ...]:
    theirs, ours = f"{layers}.{{i}}.mixer", "blocks.{i}.mixer"
    return (
        row(f"{theirs}.A_log", f"{ours}.log_rates"),
        row(f"{theirs}.D", f"{ours}.skip"),
        row(f"{theirs}.dt_bias", f"{ours}.step_bias"),
        row(f"{theirs}.in_proj.weight", f"{ours}.in_proj.weight"),
        row(f"{theirs}.conv1d.{{p}}", f"{ours}.convolution.{{p}}"),
        row(f"{theirs}.norm.weight", f"{ours}.norm.weight"),
        row(f"{theirs}.out_proj.weight", f"{ours}.out_proj.weight"),
    )


def _norms(layers: str, last: str) -> tuple[Row, ...]:
    return row(f"{layers}.{{i}}.norm.weight", "blocks.{i}.norm.weight"), row(f"{last}.weight", "norm.weight")


def _kind(block: Any) -> str:
    return block.mixer.part.name if block.part is MixerBlock else block.part.name


def _pure(spec: Any) -> bool:
    return {_kind(block) for block in spec.blocks} == {"mamba2"}


def _attention(spec: Any) -> Any:
    return next((block.mixer for block in spec.blocks if _kind(block) == "grouped_query_attention"), None)


KEYS = {"official": _official, "transformers": _transformers, "oracle": _oracle}

LETTERS = {"linear_attention": "M", "full_attention": "*", "mlp": "-"}
LEAST_STEP = 1e-30  # Nemotron-H's steps have a floor, those of Mamba-2-Hybrid have none


def _read_mamba2(settings: core.Settings) -> core.Config:
    settings.expect(hidden_act="silu", use_bias=False, use_conv_bias=True)
    size = {
        **_sizes(settings),
        "layers": "M" * settings.number("num_hidden_layers"),
        "p": settings.number("head_dim", 64),
        "mamba_heads": settings.number("num_heads", 128),
        "state": settings.number("state_size", 128),
    }
    return _decoder(size)


def _read_nemotron(settings: core.Settings) -> core.Config:
    settings.expect(
        mamba_hidden_act="silu",
        mlp_hidden_act="gelu",
        time_step_min=LEAST_STEP,
        use_conv_bias=True,
        **dict.fromkeys(("use_bias", "mlp_bias", "attention_bias", "mamba_proj_bias"), False),
    )
    layers = settings.values.get("layers_block_type")
    if not isinstance(layers, list) or not set(layers) <= set(LETTERS):
        raise core.UsageError(f"{settings.where}: layers_block_type must be a list of {', '.join(LETTERS)}")
    size = {
        **_sizes(settings),
        "layers": "".join(LETTERS[layer] for layer in layers),
        "p": settings.number("mamba_head_dim"),
        "mamba_heads": settings.number("mamba_num_heads"),
        "state": settings.number("ssm_state_size"),
        "heads": settings.number("num_attention_heads"),
        "kv_heads": settings.number("num_key_value_heads"),
        "head_dim": settings.number("head_dim"),
        "hidden": settings.number("intermediate_size"),
    }
    return _decoder(size)


def _sizes(settings: core.Settings) -> dict[str, Any]:
    return {
        "dim": settings.number("hidden_size"),
        "vocabulary": settings.number("vocab_size"),
        "groups": settings.number("n_groups", 8),
        "kernel": settings.number("conv_kernel", 4),
        "eps": settings.number("layer_norm_epsilon", 1e-5),
        **({"tie": True} if settings.flag("tie_word_embeddings", False) else {}),
    }


def _write_mamba2(spec: Any) -> dict[str, Any] | None:
    if not _pure(spec):
        return None
    mamba = spec.blocks[0].mixer
    return {
        **_written(spec),
        "num_hidden_layers": len(spec.blocks),
        "num_heads": mamba.heads,
        "head_dim": mamba.p,
        "state_size": mamba.state,
        "expand": mamba.heads * mamba.p // spec.dim,
    }


def _write_nemotron(spec: Any) -> dict[str, Any] | None:
    attention = _attention(spec)
    perceptron = next((block.channel_mixer for block in spec.blocks if _kind(block) == "channel_block"), None)
    if attention is None or perceptron is None:
        return None
    names = {"mamba2": "linear_attention", "grouped_query_attention": "full_attention", "channel_block": "mlp"}
    mamba = next(block.mixer for block in spec.blocks if _kind(block) == "mamba2")
    return {
        **_written(spec),
        "layers_block_type": [names[_kind(block)] for block in spec.blocks],
        "mamba_num_heads": mamba.heads,
        "mamba_head_dim": mamba.p,
        "ssm_state_size": mamba.state,
        "num_attention_heads": attention.kv_heads * attention.group,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "intermediate_size": perceptron.hidden,
        "mlp_hidden_act": perceptron.activation,
        "time_step_min": LEAST_STEP,
    }


def _written(spec: Any) -> dict[str, Any]:
    mamba = next(block.mixer for block in spec.blocks if _kind(block) == "mamba2")
    return {
        "vocab_size": spec.vocabulary,
        "hidden_size": spec.dim,
        "n_groups": mamba.groups,
        "conv_kernel": mamba.convolution.kernel,
        "layer_norm_epsilon": spec.norm.eps,
        "tie_word_embeddings": isinstance(spec.head.linear, core.Shared.Config),
    }


FOLDERS = (
    core.Folder("mamba2", "Mamba2ForCausalLM", _read_mamba2, _write_mamba2),
    core.Folder("nemotron_h", "NemotronHForCausalLM", _read_nemotron, _write_nemotron),
)
