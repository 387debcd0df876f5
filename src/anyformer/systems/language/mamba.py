"""Mamba: a language model of selective state spaces alone, without attention and without perceptrons.

The parameters of a state space are functions of the token, so that the model decides what to keep and what to let go
(section 3.2); the layer is a gated unit with a short convolution and the scan inside (section 3.4, figure 3), repeated with
norms and residuals. Against a Transformer its time is linear in the tokens, and its state does not grow with them.

Names: our ``log_rates`` is their ``A_log``, ``skip`` their ``D``, ``step_proj`` their ``dt_proj``, ``convolution`` their
``conv1d``; ``inner`` their ``d_inner``, ``state`` their ``d_state``, ``step_rank`` their ``dt_rank``.
"""

from typing import Any, NamedTuple

from anyformer import core
from anyformer.core.joins import Tie
from anyformer.core.keymap import KeyMap, Row, row
from anyformer.parts.convolutions.causal_convolution import CausalConvolution
from anyformer.parts.embeds.token_table import TokenTable
from anyformer.parts.heads.vocabulary import VocabularyHead
from anyformer.parts.linear.linear import Linear
from anyformer.parts.norms.rms_norm import RMSNorm
from anyformer.parts.token_mixers.mamba import Mamba
from anyformer.skeletons.blocks import MixerBlock
from anyformer.skeletons.decoder import Decoder

PAPER = core.Paper(
    "mamba",
    contributes=("model", "part"),
    deviations=(
        "The authors sum the residuals in float32 in models of half precision; here they have the model's type, and the "
        "scan alone is of float32 at least.",
        "The authors' convolutions start with a random bias, those of transformers and these with zeros.",
    ),
)


class Size(NamedTuple):
    """The numbers of a size."""

    dim: int
    depth: int
    vocabulary: int = 50280  # 50,277 tokens of GPT-NeoX, made a multiple of 8
    inner: int | None = None
    state: int = 16
    kernel: int = 4
    step_rank: int | None = None
    eps: float = 1e-5
    tie: bool = True


SIZES = {
    "mamba_130m": Size(768, 24),
    "mamba_370m": Size(1024, 48),
    "mamba_790m": Size(1536, 48),
    "mamba_1.4b": Size(2048, 48),
    "mamba_2.8b": Size(2560, 64),
    "mamba_micro": Size(64, 2, 256),
    "mamba_mini": Size(128, 4, 256),
}
SMALL = ("mamba_micro", "mamba_mini")  # not of the paper: for bytes and tight budgets


def pattern(name: str, *, vocabulary: int | None = None) -> core.Config:
    """The pattern of a size; the vocabulary is that of the published weights, or bytes for the small sizes."""
    return _decoder(SIZES[name] if vocabulary is None else SIZES[name]._replace(vocabulary=vocabulary))


def _decoder(size: Size) -> core.Config:
    norm = RMSNorm.Config(eps=size.eps)
    # what enters the residual sum starts smaller in deeper models, so that the sum does not grow with depth
    last = Linear.Config(bias=False, init=core.Init("uniform_fan_in", size.depth**-0.5))
    given: dict[str, Any] = {"inner": size.inner, "step_rank": size.step_rank}
    mixer = Mamba.Config(
        state=size.state,
        convolution=CausalConvolution.Config(kernel=size.kernel),
        out_proj=last,
        **{key: value for key, value in given.items() if value is not None},
    )
    return Decoder.Config(
        dim=size.dim,
        vocabulary=size.vocabulary,
        embed=TokenTable.Config(),
        blocks=(MixerBlock.Config(norm=norm, mixer=mixer),) * size.depth,
        norm=norm,
        head=VocabularyHead.Config(
            linear=core.Shared.Config(path="embed.table") if size.tie else Linear.Config(bias=False)
        ),
    )


def data_config(name: str) -> dict[str, Any]:
    """What the published weights expect of a text."""
    tokenizer = "bytes" if name in SMALL else "EleutherAI/gpt-neox-20b"
    return {"vocabulary": SIZES[name].vocabulary, "tokenizer": tokenizer, "context": None}


_TABLE = "official model table"
PUBLISHED = {
    "mamba_130m": core.Published(params=130e6, macs=None, at=(2048,), source=_TABLE),
    "mamba_370m": core.Published(params=370e6, macs=None, at=(2048,), source=_TABLE),
    "mamba_790m": core.Published(params=790e6, macs=None, at=(2048,), source=_TABLE),
    "mamba_1.4b": core.Published(params=1.4e9, macs=None, at=(2048,), source=_TABLE),
    "mamba_2.8b": core.Published(params=2.8e9, macs=None, at=(2048,), source=_TABLE),
}


def _official(spec: core.Config) -> KeyMap:
    return _key_map(row(("backbone.embedding.weight", "lm_head.weight"), "embed.table.weight", Tie()))


def _transformers(spec: core.Config) -> KeyMap:
    return _key_map(row("backbone.embeddings.weight", "embed.table.weight"))


def _oracle(spec: Any) -> KeyMap:
    """As the module has them: tied tensors under both names."""
    if not isinstance(spec.head.linear, core.Shared.Config):
        return _transformers(spec)
    return _key_map(row(("backbone.embeddings.weight", "lm_head.weight"), "embed.table.weight", Tie()))


def _key_map(embedding: Row) -> KeyMap:
    theirs, ours = "backbone.layers.{i}.mixer", "blocks.{i}.mixer"
    return KeyMap(
        (
            embedding,
            row("backbone.layers.{i}.norm.weight", "blocks.{i}.norm.weight"),
            row(f"{theirs}.A_log", f"{ours}.log_rates"),
            row(f"{theirs}.D", f"{ours}.skip"),
            row(f"{theirs}.in_proj.weight", f"{ours}.in_proj.weight"),
            row(f"{theirs}.conv1d.{{p}}", f"{ours}.convolution.{{p}}"),
            row(f"{theirs}.x_proj.weight", f"{ours}.x_proj.weight"),
            row(f"{theirs}.dt_proj.{{p}}", f"{ours}.step_proj.{{p}}"),
            row(f"{theirs}.out_proj.weight", f"{ours}.out_proj.weight"),
            row("backbone.norm_f.weight", "norm.weight"),
            row("lm_head.weight", "head.linear.weight"),
        )
    )


KEYS = {"official": _official, "transformers": _transformers, "oracle": _oracle}


def _read(settings: core.Settings) -> core.Config:
    settings.expect(hidden_act="silu", use_bias=False, use_conv_bias=True)
    dim = settings.number("hidden_size")
    rank = settings.values.get("time_step_rank", "auto")
    size = Size(
        dim=dim,
        depth=settings.number("num_hidden_layers"),
        vocabulary=settings.number("vocab_size"),
        inner=int(settings.number("expand", 2) * dim),
        state=settings.number("state_size", 16),
        kernel=settings.number("conv_kernel", 4),
        step_rank=None if rank == "auto" else settings.number("time_step_rank"),
        eps=settings.number("layer_norm_epsilon", 1e-5),
        tie=settings.flag("tie_word_embeddings", True),
    )
    return _decoder(size)


def _write(spec: Any) -> dict[str, Any]:
    mixer = spec.blocks[0].mixer
    return {
        "vocab_size": spec.vocabulary,
        "hidden_size": spec.dim,
        "num_hidden_layers": len(spec.blocks),
        "intermediate_size": mixer.inner,
        "expand": mixer.inner / spec.dim if mixer.inner % spec.dim else mixer.inner // spec.dim,
        "state_size": mixer.state,
        "conv_kernel": mixer.convolution.kernel,
        "time_step_rank": mixer.step_rank,
        "layer_norm_epsilon": spec.norm.eps,
        "tie_word_embeddings": isinstance(spec.head.linear, core.Shared.Config),
    }


FOLDERS = (core.Folder("mamba", "MambaForCausalLM", _read, _write),)
