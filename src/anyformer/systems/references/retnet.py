"""RetNet: the decoder whose memory forgets at a fixed pace, a head at a time, that later linear mixers are held against.

Retentive Network (Sun et al. 2023, arXiv:2307.08621): retention in the place of attention, which trains in parallel and
decodes in constant memory. Here as flash-linear-attention has it, in which its weights are published: Llama's norms and
gated perceptron, narrower because the values of a head have twice its channels. This is GLA's decoder with another mixer.

Names: our ``in_proj`` is their ``q_proj``, ``k_proj``, ``v_proj`` and ``g_proj``, one below the other, ``norm`` their
``g_norm_swish_gate``, ``out_proj`` their ``o_proj``; ``norm1`` and ``norm2`` their ``attn_norm`` and ``mlp_norm``.
"""

from typing import Any, NamedTuple

from anyformer import core
from anyformer.core import registry
from anyformer.parts.token_mixers.retention import Retention

PAPER = core.Paper(
    "retnet",
    contributes=("model",),
    extends=("gla", "hybrid_linear_analysis"),
    deviations=(
        "Names, norms, starts and the one published size are those of flash-linear-attention; the paper's own sizes are not "
        "here, because neither their weights nor all their numbers were at hand.",
    ),
)


class Size(NamedTuple):
    """The numbers of a size, and the one of GLA's that it differs least from."""

    dim: int
    hidden: int
    depth: int
    heads: int
    like: str


SIZES = {
    "retnet_1.3b": Size(2048, 2816, 24, 8, "gla_1.3b"),
    "retnet_micro": Size(64, 96, 2, 2, "gla_micro"),
}
SMALL = ("retnet_micro",)  # of bytes, not of the paper: for tests and tight budgets


def pattern(name: str, *, vocabulary: int | None = None) -> core.Config:
    """The pattern of a size; ``vocabulary`` is that of the published weights, or of bytes, unless it is given."""
    size = SIZES[name]
    decoder: Any = registry.system("gla").pattern(size.like, vocabulary=vocabulary)
    block = decoder.blocks[0]
    mixer = Retention.Config(
        heads=size.heads, in_proj=block.mixer.in_proj, norm=block.mixer.norm, out_proj=block.mixer.out_proj
    )
    perceptron = block.channel_mixer.replace(hidden=size.hidden)
    block = block.replace(mixer=mixer, channel_mixer=perceptron)
    return decoder.replace(dim=size.dim, blocks=(block,) * size.depth)


def data_config(name: str) -> dict[str, Any]:
    """What the published weights expect of a text."""
    if name in SMALL:
        return {"vocabulary": 256, "tokenizer": "bytes", "context": None}
    return {"vocabulary": 32000, "tokenizer": "fla-hub/retnet-1.3B-100B", "context": None}


PUBLISHED = {
    "retnet_1.3b": core.Published(
        params=1.35e9, macs=None, at=(64,), source="the published file: 2.7 GB of two bytes a parameter"
    ),
}


def _official(spec: Any) -> Any:
    """The names of flash-linear-attention."""
    return registry.system("hybrid_linear_analysis").keys["official"](spec)


KEYS = {"official": _official, "oracle": _official}
