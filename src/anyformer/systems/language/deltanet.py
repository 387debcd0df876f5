"""DeltaNet: linear attention whose memory corrects itself, trained in parallel over the tokens, and two hybrids of it.

Linear attention only ever adds to its memory; the delta rule first takes away what the memory holds under a key, so that
values are replaced instead of piled up (section 2.2). The recurrence is a product of Householder-like matrices, which the
paper writes in a compact form that chunks compute with matrix products (section 3). Queries and keys come out of a short
convolution and SiLU and have unit length. One hybrid has sliding-window attention in every other layer, the other attention
to all tokens in two layers (section 3). Against GLA it forgets by key, not by time.

Names: our ``in_proj`` is their ``q_proj``, ``k_proj``, ``v_proj`` and ``b_proj``, one below the other, ``convolution`` their
``q_conv1d``, ``k_conv1d`` and ``v_conv1d``, ``norm`` their ``o_norm``, ``out_proj`` their ``o_proj``; in attention layers
``qkv`` is their ``q_proj``, ``k_proj`` and ``v_proj``, ``proj`` their ``o_proj``.
"""

from typing import Any

from anyformer import core
from anyformer.core import registry
from anyformer.core.joins import Concatenate, Counts
from anyformer.core.keymap import Join, KeyMap, Row, row
from anyformer.parts.channel_mixers.gated_mlp import GatedMLP
from anyformer.parts.convolutions.causal_convolution import CausalConvolution
from anyformer.parts.embeds.token_table import TokenTable
from anyformer.parts.heads.vocabulary import VocabularyHead
from anyformer.parts.linear.linear import Linear
from anyformer.parts.norms.rms_norm import RMSNorm
from anyformer.parts.positions.rotary import Rotary
from anyformer.parts.token_mixers.delta_net import DeltaNet
from anyformer.parts.token_mixers.grouped_query_attention import GroupedQueryAttention
from anyformer.skeletons.blocks import layer_block
from anyformer.skeletons.decoder import Decoder

PAPER = core.Paper(
    "deltanet",
    contributes=("model", "part"),
    extends=("gla",),
    deviations=(
        "Names, norms and starts are those of flash-linear-attention, in which the authors publish their weights.",
        "The head of 340 million is tied to the embedding, as GLA's is: untied it would be 374 million.",
        "Hybrids: the window of 2,048 and the places of the two global layers are noted from memory and still to be looked up.",
        "Hybrids: the attention heads are those of flash-linear-attention's Transformers of the same width, of 64 channels.",
    ),
)

_340M = {"dim": 1024, "hidden": 2816, "depth": 24, "heads": 8, "attention_heads": 16, "tie": True}
_1_3B = {"dim": 2048, "hidden": 5632, "depth": 24, "heads": 16, "attention_heads": 32, "tie": False}
_WINDOW = {"attention": tuple(range(1, 24, 2)), "window": 2048}
_GLOBAL = {"attention": (1, 12), "window": None}  # the second layer and the first of the upper half
_MICRO = {"dim": 64, "hidden": 176, "depth": 2, "heads": 2, "tie": True}

SIZES: dict[str, dict[str, Any]] = {
    "deltanet_340m": _340M,
    "deltanet_1.3b": _1_3B,
    "deltanet_window_340m": {**_340M, **_WINDOW},
    "deltanet_window_1.3b": {**_1_3B, **_WINDOW},
    "deltanet_global_340m": {**_340M, **_GLOBAL},
    "deltanet_global_1.3b": {**_1_3B, **_GLOBAL},
    "deltanet_micro": _MICRO,
    "deltanet_window_micro": {**_MICRO, "attention_heads": 2, "attention": (1,), "window": 16},
    "deltanet_mini": {"dim": 128, "hidden": 352, "depth": 4, "heads": 2, "tie": True},
}
SMALL = ("deltanet_micro", "deltanet_window_micro", "deltanet_mini")  # not of the paper: for bytes and tight budgets


def pattern(name: str, *, vocabulary: int | None = None) -> core.Config:
    """The pattern of a size; ``vocabulary`` is that of the published weights, or of bytes, unless it is given."""
    size = SIZES[name]
    # Small widths and short trainings need weights that keep the variance of what passes through them.
    start = core.Init("xavier_uniform") if name in SMALL else core.Init("normal", 0.02)
    linear = Linear.Config(bias=False, init=start)
    filters = core.Init("uniform_fan_in") if name in SMALL else core.Init("normal", 0.02)
    norm = RMSNorm.Config(eps=1e-6)
    delta = DeltaNet.Config(
        heads=size["heads"],
        in_proj=linear,
        convolution=CausalConvolution.Config(bias=False, init=filters),
        norm=norm,
        out_proj=linear,
    )
    attention = GroupedQueryAttention.Config(
        kv_heads=size.get("attention_heads", size["heads"]),
        window=size.get("window"),
        position=Rotary.Config(),
        qkv=linear,
        proj=linear,
    )
    perceptron = GatedMLP.Config(hidden=size["hidden"], fc1=linear, fc2=linear)
    remembering, attending = (layer_block(mixer, perceptron, norm) for mixer in (delta, attention))
    places = size.get("attention", ())
    return Decoder.Config(
        dim=size["dim"],
        vocabulary=vocabulary or data_config(name)["vocabulary"],
        embed=TokenTable.Config(table=linear),
        blocks=tuple(attending if layer in places else remembering for layer in range(size["depth"])),
        norm=norm,
        head=VocabularyHead.Config(linear=core.Shared.Config(path="embed.table") if size["tie"] else linear),
    )


def data_config(name: str) -> dict[str, Any]:
    """What the published weights expect of a text."""
    if name in SMALL:
        return {"vocabulary": 256, "tokenizer": "bytes", "context": None}
    context = 2048 if SIZES[name].get("attention") and SIZES[name]["window"] is None else None
    return {"vocabulary": 32000, "tokenizer": "mistralai/Mistral-7B-v0.1", "context": context}


_SOURCE = "arXiv:2406.06484, by the names of its sizes; the page is still to be looked up"
PUBLISHED = {
    name: core.Published(params=340e6, macs=None, at=(64,), source=_SOURCE)
    if name.endswith("340m")
    else core.Published(
        params=1.3e9, macs=None, at=(64,), source=_SOURCE, explained="the published file has 1.366 billion as well"
    )
    for name in SIZES
    if name not in SMALL
}


def _official(spec: Any) -> KeyMap:
    """The names of flash-linear-attention; GLA's decoder with other mixers."""
    gla = registry.system("gla").keys["official"](spec)
    mixers = (line for i, block in enumerate(spec.blocks) for line in _mixer(i, block.mixer))
    return KeyMap((*gla.rows, *mixers))


def _mixer(layer: int, mixer: Any) -> tuple[Row, ...]:
    theirs, ours = f"model.layers.{layer}.attn", f"blocks.{layer}.mixer"
    q, k, v, beta = (f"{theirs}.{role}_proj.weight" for role in "qkvb")
    if isinstance(mixer, GroupedQueryAttention.Config):
        return (
            row((q, k, v), f"{ours}.qkv.weight", Join()),
            row((), f"{ours}.position.pair", Counts()),
            row(f"{theirs}.o_proj.weight", f"{ours}.proj.weight"),
        )
    if not isinstance(mixer, DeltaNet.Config):
        return ()
    keys, values = mixer.heads * mixer.key, mixer.heads * mixer.value
    filters = tuple(f"{theirs}.{role}_conv1d.weight" for role in "qkv")
    return (
        row((q, k, v, beta), f"{ours}.in_proj.weight", Concatenate((keys, keys, values, mixer.heads))),
        row(filters, f"{ours}.convolution.weight", Concatenate((keys, keys, values))),
        row(f"{theirs}.o_norm.weight", f"{ours}.norm.weight"),
        row(f"{theirs}.o_proj.weight", f"{ours}.out_proj.weight"),
    )


KEYS = {"official": _official, "oracle": _official}
