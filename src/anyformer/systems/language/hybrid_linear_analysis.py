"""Which linear mixer makes the best hybrid: six of them beside full attention, here at small sizes and three to one alone.

Generations of linear attention, from gated vectors (HGRN) over matrices that decay (RetNet, GLA, HGRN2) to those that
correct themselves (DeltaNet, Gated DeltaNet), stand in one decoder, alone or with a layer of full attention among every few.
The paper's finding, not re-measured here: language modelling is flat over the ratios, recall rises with the share of
attention, and the best mixer alone is not the best in a hybrid.

Names: our ``in_proj`` is their projections one below the other, in the order of ``_TOGETHER``; ``step_proj`` is their
``a_proj`` with ``dt_bias``, ``log_rates`` their ``A_log``; the table of ``floors``, which stands in the first layer of HGRN
and HGRN2, is their ``lower_bounds``; all else is DeltaNet's and GLA's.
"""

from collections.abc import Callable
from typing import Any

from anyformer import core
from anyformer.core import axes, registry
from anyformer.core.joins import Concatenate, Counts
from anyformer.core.keymap import KeyMap, Row, row
from anyformer.parts.channel_mixers.gated_mlp import GatedMLP
from anyformer.parts.convolutions.causal_convolution import CausalConvolution
from anyformer.parts.embeds.token_table import TokenTable
from anyformer.parts.heads.vocabulary import VocabularyHead
from anyformer.parts.linear.linear import Linear
from anyformer.parts.norms.rms_norm import RMSNorm
from anyformer.parts.positions.rotary import Rotary
from anyformer.parts.token_mixers.delta_net import DeltaNet
from anyformer.parts.token_mixers.gated_deltanet import GatedDeltaNet
from anyformer.parts.token_mixers.gated_linear_attention import GatedLinearAttention
from anyformer.parts.token_mixers.grouped_query_attention import GroupedQueryAttention
from anyformer.parts.token_mixers.hgrn import HGRN, ForgetFloors
from anyformer.parts.token_mixers.hgrn2 import HGRN2
from anyformer.parts.token_mixers.retention import Retention
from anyformer.skeletons.blocks import layer_block
from anyformer.skeletons.decoder import Decoder

PAPER = core.Paper(
    "hybrid_linear_analysis",
    contributes=("model",),
    extends=("gla", "deltanet"),
    deviations=(
        "Only small sizes of our own stand here: the configurations of the published weights were not at hand.",
        "Layers of full attention are depth / (ratio + 1) in number, rounded, and stand in the middle of equal spans: ratios "
        "that do not divide the depth are met as nearly as they can be.",
        "The rates of Gated DeltaNet start between 1 and 16, where its authors' start between 0 and 16.",
    ),
)

_MICRO = {"dim": 64, "hidden": 176, "depth": 4, "attention_heads": 2, "tie": True}
_MINI = {"dim": 128, "hidden": 352, "depth": 4, "attention_heads": 4, "tie": True}
# What a mixer has of its own at each size.
MIXERS: dict[str, dict[str, dict[str, Any]]] = {
    "retnet": {"micro": {**_MICRO, "heads": 2}},
    "hgrn": {"micro": _MICRO},
    "hgrn2": {"micro": {**_MICRO, "heads": 2}, "mini": {**_MINI, "heads": 4}},
    "gla": {"micro": {**_MICRO, "heads": 2}},
    "deltanet": {"micro": {**_MICRO, "heads": 2}},
    # Two heads do not happen to hold slow ones, and short trainings do not find them, so that steps start smaller; what
    # narrow heads read is often near 0, which their norm must not blow up together with its rounding.
    "gated_deltanet": {"micro": {**_MICRO, "heads": 2, "steps": 0.1, "eps": 1e-4}},
}

SIZES: dict[str, dict[str, Any]] = {
    f"hybrid_linear_{mixer}_3to1_{size}": {"mixer": mixer, "ratio": 3, **rest}
    for mixer, sizes in MIXERS.items()
    for size, rest in sizes.items()
}
SMALL = tuple(SIZES)  # for bytes and tight budgets: the configurations of the published sizes are not known yet


def pattern(name: str, *, vocabulary: int | None = None) -> core.Config:
    """The pattern of a size; ``vocabulary`` is that of bytes unless it is given."""
    size = SIZES[name]
    # Small widths and short trainings need weights that keep the variance of what passes through them.
    start, filters = core.Init("xavier_uniform"), core.Init("uniform_fan_in")
    linear, norm = Linear.Config(bias=False, init=start), RMSNorm.Config(eps=1e-6)
    attention = GroupedQueryAttention.Config(
        kv_heads=size["attention_heads"], position=Rotary.Config(), qkv=linear, proj=linear
    )
    perceptron = GatedMLP.Config(hidden=size["hidden"], fc1=linear, fc2=linear)
    places = attention_layers(size["depth"], size["ratio"])
    make = _makes(size, start, norm, CausalConvolution.Config(bias=False, init=filters), places)
    attending = layer_block(attention, perceptron, norm)
    return Decoder.Config(
        dim=size["dim"],
        vocabulary=vocabulary or data_config(name)["vocabulary"],
        embed=TokenTable.Config(table=linear),
        blocks=tuple(
            attending if layer in places else layer_block(make(layer), perceptron, norm)
            for layer in range(size["depth"])
        ),
        norm=norm,
        head=VocabularyHead.Config(linear=core.Shared.Config(path="embed.table") if size["tie"] else linear),
    )


def attention_layers(depth: int, ratio: int) -> tuple[int, ...]:
    """Which layers are of full attention, with ``ratio`` linear ones for each."""
    count = max(1, round(depth / (ratio + 1)))
    return tuple((2 * place + 1) * depth // (2 * count) for place in range(count))


def _makes(
    size: dict[str, Any], start: core.Init, norm: core.Config, convolution: core.Config, places: tuple[int, ...]
) -> Callable[[int], core.Config]:
    """What gives the mixer of a layer: the same object, or in HGRN and HGRN2 one that knows its layer."""
    linear = Linear.Config(bias=False, init=start)
    slots: dict[str, Any] = {"in_proj": linear, "norm": norm, "out_proj": linear}
    heads: int = size.get("heads", 0)
    first = next(layer for layer in range(size["depth"]) if layer not in places)

    def floors(layer: int) -> dict[str, Any]:
        table = ForgetFloors.Config(layers=size["depth"])
        shared = core.Shared.Config(path=f"blocks.{first}.mixer.floors")
        return {**slots, "layer": layer, "floors": table if layer == first else shared}

    def same(mixer: core.Config) -> Callable[[int], core.Config]:
        return lambda layer: mixer

    match size["mixer"]:
        case "retnet":
            return same(Retention.Config(heads=heads, **slots))
        case "hgrn":
            return lambda layer: HGRN.Config(**floors(layer))
        case "hgrn2":
            # their code leaves this norm at its default
            return lambda layer: HGRN2.Config(heads=heads, **{**floors(layer), "norm": RMSNorm.Config(eps=1e-5)})
        case "gla":
            decay = Linear.Config(init=start)
            return same(GatedLinearAttention.Config(heads=heads, decay_proj=decay, **slots))
        case "deltanet":
            return same(DeltaNet.Config(heads=heads, convolution=convolution, **slots))
        case _:
            step = Linear.Config(init=start, bias_init=core.Init("step_bias", size.get("steps", 1.0)))
            slots["norm"] = RMSNorm.Config(eps=size.get("eps", 1e-6))
            return same(GatedDeltaNet.Config(heads=heads, convolution=convolution, step_proj=step, **slots))


def data_config(name: str) -> dict[str, Any]:
    """Bytes."""
    return {"vocabulary": 256, "tokenizer": "bytes", "context": None}


PUBLISHED: dict[str, core.Published] = {}

_TOGETHER = {
    "retention": ("q_proj", "k_proj", "v_proj", "g_proj"),
    "hgrn": ("i_proj", "f_proj", "g_proj"),
    "hgrn2": ("q_proj", "f_proj", "i_proj"),
    "gated_deltanet": ("q_proj", "k_proj", "v_proj", "g_proj", "b_proj"),
}


def _official(spec: Any) -> KeyMap:
    """The names of flash-linear-attention; DeltaNet's and GLA's with further mixers."""
    deltanet = registry.system("deltanet").keys["official"](spec)
    mixers = (line for i, block in enumerate(spec.blocks) for line in _mixer(i, block.mixer))
    return KeyMap((*deltanet.rows, *mixers))


def _mixer(layer: int, mixer: Any) -> tuple[Row, ...]:
    name, theirs, ours = mixer.part.name, f"model.layers.{layer}.attn", f"blocks.{layer}.mixer"
    if name not in _TOGETHER:
        return ()
    sizes = tuple(axes.size(term, mixer.size) for term in _terms(mixer.part.axes["in_proj.weight"]))
    norm = {"retention": "g_norm_swish_gate", "gated_deltanet": "o_norm"}.get(name, "g_norm")
    together = tuple(f"{theirs}.{role}.weight" for role in _TOGETHER[name])
    rows = (
        row(together, f"{ours}.in_proj.weight", Concatenate(sizes)),
        row(f"{theirs}.{norm}.weight", f"{ours}.norm.weight"),
        row(f"{theirs}.o_proj.weight", f"{ours}.out_proj.weight"),
    )
    if name == "retention":
        return (*rows, row((), f"{ours}.number", Counts()), row((), f"{ours}.position.pair", Counts()))
    if name == "gated_deltanet":
        filters = tuple(f"{theirs}.{role}_conv1d.weight" for role in "qkv")
        return (
            *rows,
            row(f"{theirs}.a_proj.weight", f"{ours}.step_proj.weight"),
            row(f"{theirs}.dt_bias", f"{ours}.step_proj.bias"),
            row(f"{theirs}.A_log", f"{ours}.log_rates"),
            row(filters, f"{ours}.convolution.weight", Concatenate(sizes[:3])),
        )
    built_here = isinstance(mixer.floors, ForgetFloors.Config)
    return (*rows, row("model.lower_bounds", f"{ours}.floors.weight")) if built_here else rows


def _terms(shape: str) -> tuple[axes.Expression, ...]:
    """What stands one below the other in the rows of a matrix."""
    rows = axes.parse(shape)[0]
    assert isinstance(rows, axes.Sum)
    return rows.terms


KEYS = {"official": _official, "oracle": _official}
