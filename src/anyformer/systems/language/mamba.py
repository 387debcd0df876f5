"""Mamba: a language model of selective state spaces alone, without attention and without perceptrons.

The parameters of a state space are functions of the token, so that the model decides what to keep and what to let go
(section 3.2); the layer is a gated unit with a short convolution and the scan inside (section 3.4, figure 3), repeated with
norms and residuals. Against a Transformer its time is linear in the tokens, and its state does not grow with them.

Names: our ``log_rates`` is their ``A_log``, ``skip`` their ``D``, ``step_proj`` their ``dt_proj``, ``convolution`` their
``conv1d``; ``inner`` their ``d_inner``, ``state`` their ``d_state``, ``step_rank`` their ``dt_rank``.
"""

from typing import Any

from anyformer import core
from anyformer.core.joins import Tie
from anyformer.core.keymap import KeyMap, Row, row
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

SIZES: dict[str, dict[str, int]] = {
    "mamba_130m": {"dim": 768, "depth": 24},
    "mamba_370m": {"dim": 1024, "depth": 48},
    "mamba_790m": {"dim": 1536, "depth": 48},
    "mamba_1.4b": {"dim": 2048, "depth": 48},
    "mamba_2.8b": {"dim": 2560, "depth": 64},
    "mamba_micro": {"dim": 64, "depth": 2},
    "mamba_mini": {"dim": 128, "depth": 4},
}
SMALL = ("mamba_micro", "mamba_mini")  # not of the paper: for bytes and tight budgets
VOCABULARY = 50280  # 50,277 tokens of GPT-NeoX, made a multiple of 8


def pattern(name: str, *, vocabulary: int | None = None) -> core.Config:
    """The pattern of a size; the vocabulary is that of the published weights, or bytes for the small sizes."""
    dim, depth = SIZES[name]["dim"], SIZES[name]["depth"]
    norm = RMSNorm.Config(eps=1e-5)
    # what enters the residual sum starts smaller in deeper models, so that the sum does not grow with depth
    last = Linear.Config(bias=False, init=core.Init("uniform_fan_in", depth**-0.5))
    block = MixerBlock.Config(norm=norm, mixer=Mamba.Config(out_proj=last))
    return Decoder.Config(
        dim=dim,
        vocabulary=vocabulary or data_config(name)["vocabulary"],
        embed=TokenTable.Config(),
        blocks=(block,) * depth,
        norm=norm,
        head=VocabularyHead.Config(linear=core.Shared.Config(path="embed.table")),
    )


def data_config(name: str) -> dict[str, Any]:
    """What the published weights expect of a text."""
    if name in SMALL:
        return {"vocabulary": 256, "tokenizer": "bytes", "context": None}
    return {"vocabulary": VOCABULARY, "tokenizer": "EleutherAI/gpt-neox-20b", "context": None}


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


def _oracle(spec: core.Config) -> KeyMap:
    """As the module has them: tied tensors under both names."""
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
        )
    )


KEYS = {"official": _official, "transformers": _transformers, "oracle": _oracle}
