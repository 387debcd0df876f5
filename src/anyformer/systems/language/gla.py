"""Gated linear attention: a linear-time decoder that forgets, a key at a time, at a pace that the token sets.

Linear attention remembers sums of key-value products in a matrix a head. RetNet lets that matrix fade at a fixed pace;
here every key of every token has a decay of its own, which comes from the token through a narrow product (section 4.4), and
training stays a matter of matrix products over chunks (section 4.1 to 4.3). Keys have half the channels of the model; the
heads' outputs are normalised and gated. Perceptrons and norms are Llama's.

Names: our ``in_proj`` is their ``q_proj``, ``k_proj``, ``v_proj``, ``g_proj`` and ``gk_proj.0``, one below the other,
``decay_proj`` their ``gk_proj.1``, ``norm`` their ``g_norm_swish_gate``, ``out_proj`` their ``o_proj``; ``norm1`` and ``norm2``
their ``attn_norm`` and ``mlp_norm``.
"""

from typing import Any

from anyformer import core
from anyformer.core.joins import Concatenate
from anyformer.core.keymap import Join, KeyMap, Row, row
from anyformer.parts.channel_mixers.gated_mlp import GatedMLP
from anyformer.parts.embeds.token_table import TokenTable
from anyformer.parts.heads.vocabulary import VocabularyHead
from anyformer.parts.linear.linear import Linear
from anyformer.parts.norms.rms_norm import RMSNorm
from anyformer.parts.token_mixers.gated_linear_attention import GatedLinearAttention
from anyformer.skeletons.blocks import layer_block
from anyformer.skeletons.decoder import Decoder

PAPER = core.Paper(
    "gla",
    contributes=("model", "part"),
    deviations=(
        "Names, norms and starts are those of flash-linear-attention, in which the authors publish their weights: the "
        "heads' norm is of root mean squares with a scale, where the first code had a layer norm without one, and the "
        "output gate has no bias.",
        "The size of 340 million ties the head to the embedding, that of 1.3 billion does not, as in the published files.",
    ),
)

SIZES: dict[str, dict[str, Any]] = {
    "gla_340m": {"dim": 1024, "hidden": 2816, "depth": 24, "heads": 4, "tie": True},
    "gla_1.3b": {"dim": 2048, "hidden": 5632, "depth": 24, "heads": 4, "tie": False},
    "gla_micro": {"dim": 64, "hidden": 176, "depth": 2, "heads": 2, "tie": True},
    "gla_mini": {"dim": 128, "hidden": 352, "depth": 4, "heads": 2, "tie": True},
}
SMALL = ("gla_micro", "gla_mini")  # not of the paper: for bytes and tight budgets


def pattern(name: str, *, vocabulary: int | None = None) -> core.Config:
    """The pattern of a size; ``vocabulary`` is that of the published weights, or of bytes, unless it is given."""
    size = SIZES[name]
    # Small widths and short trainings need weights that keep the variance of what passes through them.
    start = core.Init("xavier_uniform") if name in SMALL else core.Init("normal", 0.02)
    linear = Linear.Config(bias=False, init=start)
    norm = RMSNorm.Config(eps=1e-6)
    mixer = GatedLinearAttention.Config(
        heads=size["heads"], in_proj=linear, decay_proj=Linear.Config(init=start), norm=norm, out_proj=linear
    )
    block = layer_block(mixer, GatedMLP.Config(hidden=size["hidden"], fc1=linear, fc2=linear), norm)
    return Decoder.Config(
        dim=size["dim"],
        vocabulary=vocabulary or data_config(name)["vocabulary"],
        embed=TokenTable.Config(table=linear),
        blocks=(block,) * size["depth"],
        norm=norm,
        head=VocabularyHead.Config(linear=core.Shared.Config(path="embed.table") if size["tie"] else linear),
    )


def data_config(name: str) -> dict[str, Any]:
    """What the published weights expect of a text."""
    if name in SMALL:
        return {"vocabulary": 256, "tokenizer": "bytes", "context": None}
    return {"vocabulary": 32000, "tokenizer": "mistralai/Mistral-7B-v0.1", "context": None}


_SOURCE = "arXiv:2312.06635, abstract"
PUBLISHED = {
    "gla_340m": core.Published(params=340e6, macs=None, at=(64,), source=_SOURCE),
    "gla_1.3b": core.Published(
        params=1.3e9, macs=None, at=(64,), source=_SOURCE, explained="the published file has 1.365 billion as well"
    ),
}


def _official(spec: Any) -> KeyMap:
    """The names of flash-linear-attention; of mixers that are not this paper's nothing is said."""
    theirs, ours = "model.layers.{i}", "blocks.{i}"
    gates = tuple(f"{theirs}.mlp.{role}_proj.weight" for role in ("gate", "up"))
    mixers = (line for i, block in enumerate(spec.blocks) for line in _mixer(i, block.mixer))
    return KeyMap(
        (
            row("model.embeddings.weight", "embed.table.weight"),
            row(f"{theirs}.attn_norm.weight", f"{ours}.norm1.weight"),
            *mixers,
            row(f"{theirs}.mlp_norm.weight", f"{ours}.norm2.weight"),
            row(gates, f"{ours}.channel_mixer.fc1.weight", Join(count=2)),
            row(f"{theirs}.mlp.down_proj.weight", f"{ours}.channel_mixer.fc2.weight"),
            row("model.norm.weight", "norm.weight"),
            row("lm_head.weight", "head.linear.weight"),
        )
    )


def _mixer(layer: int, mixer: Any) -> tuple[Row, ...]:
    if not isinstance(mixer, GatedLinearAttention.Config):
        return ()
    theirs, ours = f"model.layers.{layer}.attn", f"blocks.{layer}.mixer"
    keys, values = mixer.heads * mixer.key, mixer.heads * mixer.value
    together = tuple(f"{theirs}.{role}.weight" for role in ("q_proj", "k_proj", "v_proj", "g_proj", "gk_proj.0"))
    return (
        row(together, f"{ours}.in_proj.weight", Concatenate((keys, keys, values, values, mixer.rank))),
        row(f"{theirs}.gk_proj.1.{{p}}", f"{ours}.decay_proj.{{p}}"),
        row(f"{theirs}.g_norm_swish_gate.weight", f"{ours}.norm.weight"),
        row(f"{theirs}.o_proj.weight", f"{ours}.out_proj.weight"),
    )


KEYS = {"official": _official, "oracle": _official}
