"""HGRN2: HGRN with a matrix a head for a memory, at no cost in parameters.

HGRN2: Gated Linear RNNs with State Expansion (Qin et al. 2024, arXiv:2404.07904): what a forget gate leaves free is the key
under which a value is written, so that a head's memory grows from a vector to a matrix. Floors of the gates rise over the
layers as in HGRN. Here as flash-linear-attention has it, in which these weights are published. This is GLA's decoder with
another mixer.

Names: our ``in_proj`` is their ``q_proj``, ``f_proj`` and ``i_proj``, one below the other, ``norm`` their ``g_norm``,
``out_proj`` their ``o_proj``; the table of ``floors``, which stands in the first layer, is their ``lower_bounds``.
"""

from typing import Any, NamedTuple

from anyformer import core
from anyformer.core import registry
from anyformer.parts.norms.rms_norm import RMSNorm
from anyformer.parts.token_mixers.hgrn import ForgetFloors
from anyformer.parts.token_mixers.hgrn2 import HGRN2

PAPER = core.Paper(
    "hgrn2",
    contributes=("model",),
    extends=("hgrn", "gla", "hybrid_linear_analysis"),
    deviations=("Names, norms, starts and the size are those of flash-linear-attention.",),
)


class Size(NamedTuple):
    """The numbers of a size, and the one of GLA's that it differs least from."""

    dim: int
    hidden: int
    depth: int
    heads: int
    like: str


SIZES = {
    "hgrn2_1.3b": Size(2048, 5632, 24, 16, "gla_1.3b"),
    "hgrn2_micro": Size(64, 176, 2, 2, "gla_micro"),
}
SMALL = ("hgrn2_micro",)  # of bytes, not of the paper: for tests and tight budgets


def pattern(name: str, *, vocabulary: int | None = None) -> core.Config:
    """The pattern of a size; ``vocabulary`` is that of the published weights, or of bytes, unless it is given."""
    size = SIZES[name]
    decoder: Any = registry.system("gla").pattern(size.like, vocabulary=vocabulary)
    block = decoder.blocks[0]
    perceptron = block.channel_mixer.replace(hidden=size.hidden)

    def mixer(layer: int) -> core.Config:
        table = ForgetFloors.Config(layers=size.depth)
        return HGRN2.Config(
            heads=size.heads,
            layer=layer,
            floors=core.Shared.Config(path="blocks.0.mixer.floors") if layer else table,
            in_proj=block.mixer.in_proj,
            norm=RMSNorm.Config(eps=1e-5),  # their code leaves this norm at its default
            out_proj=block.mixer.out_proj,
        )

    blocks = tuple(block.replace(mixer=mixer(layer), channel_mixer=perceptron) for layer in range(size.depth))
    return decoder.replace(dim=size.dim, blocks=blocks)


def data_config(name: str) -> dict[str, Any]:
    """What the published weights expect of a text."""
    if name in SMALL:
        return {"vocabulary": 256, "tokenizer": "bytes", "context": None}
    return {"vocabulary": 32000, "tokenizer": "fla-hub/hgrn2-1.3B-100B", "context": None}


PUBLISHED = {
    "hgrn2_1.3b": core.Published(
        params=1.3e9,
        macs=None,
        at=(64,),
        source="fla-hub/hgrn2-1.3B-100B, by its name",
        explained="the code that it was published with builds 1.364 billion as well",
    ),
}


def _official(spec: Any) -> Any:
    """The names of flash-linear-attention."""
    return registry.system("hybrid_linear_analysis").keys["official"](spec)


KEYS = {"official": _official, "oracle": _official}
