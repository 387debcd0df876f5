"""HGRN: a decoder of gated vectors, the linear recurrence without a matrix that later ones are held against.

Hierarchically Gated Recurrent Neural Network (Qin et al. 2023, arXiv:2311.04823): each channel is an average that forgets,
with forget gates whose floors rise from layer to layer, so that the lower layers keep the near past and the upper ones the
far. Here as flash-linear-attention has it, in which these weights are published: real numbers, and Llama's norms and gated
perceptron. This is GLA's decoder with another mixer.

Names: our ``in_proj`` is their ``i_proj``, ``f_proj`` and ``g_proj``, one below the other, ``norm`` their ``g_norm``,
``out_proj`` their ``o_proj``; the table of ``floors``, which stands in the first layer, is their ``lower_bounds``.
"""

from typing import Any, NamedTuple

from anyformer import core
from anyformer.core import registry
from anyformer.parts.token_mixers.hgrn import HGRN, ForgetFloors

PAPER = core.Paper(
    "hgrn",
    contributes=("model",),
    extends=("gla", "hybrid_linear_analysis"),
    deviations=(
        "Names, norms, starts and sizes are those of flash-linear-attention; the authors' own models have complex memories, "
        "another perceptron, and names that it does not share.",
    ),
)


class Size(NamedTuple):
    """The numbers of a size, and the one of GLA's that it differs least from."""

    dim: int
    hidden: int
    depth: int
    like: str


SIZES = {
    "hgrn_1.3b": Size(2048, 5632, 24, "gla_1.3b"),
    "hgrn_2.7b": Size(2560, 6912, 32, "gla_1.3b"),
    "hgrn_micro": Size(64, 176, 2, "gla_micro"),
}
SMALL = ("hgrn_micro",)  # of bytes, not of the paper: for tests and tight budgets


def pattern(name: str, *, vocabulary: int | None = None) -> core.Config:
    """The pattern of a size; ``vocabulary`` is that of the published weights, or of bytes, unless it is given."""
    size = SIZES[name]
    decoder: Any = registry.system("gla").pattern(size.like, vocabulary=vocabulary)
    block = decoder.blocks[0]
    perceptron = block.channel_mixer.replace(hidden=size.hidden)

    def mixer(layer: int) -> core.Config:
        table = ForgetFloors.Config(layers=size.depth)
        return HGRN.Config(
            layer=layer,
            floors=core.Shared.Config(path="blocks.0.mixer.floors") if layer else table,
            in_proj=block.mixer.in_proj,
            norm=block.mixer.norm,
            out_proj=block.mixer.out_proj,
        )

    blocks = tuple(block.replace(mixer=mixer(layer), channel_mixer=perceptron) for layer in range(size.depth))
    return decoder.replace(dim=size.dim, blocks=blocks)


def data_config(name: str) -> dict[str, Any]:
    """What the published weights expect of a text."""
    if name in SMALL:
        return {"vocabulary": 256, "tokenizer": "bytes", "context": None}
    return {
        "vocabulary": 32000,
        "tokenizer": f"fla-hub/{name.replace('_', '-').replace('b', 'B')}-100B",
        "context": None,
    }


PUBLISHED = {
    "hgrn_1.3b": core.Published(
        params=1.3e9,
        macs=None,
        at=(64,),
        source="fla-hub/hgrn-1.3B-100B, by its name",
        explained="the code that it was published with builds 1.364 billion as well",
    ),
    "hgrn_2.7b": core.Published(params=2.7e9, macs=None, at=(64,), source="fla-hub/hgrn-2.7B-100B, by its name"),
}


def _official(spec: Any) -> Any:
    """The names of flash-linear-attention."""
    return registry.system("hybrid_linear_analysis").keys["official"](spec)


KEYS = {"official": _official, "oracle": _official}
