"""Gated DeltaNet: the delta rule on a memory that also fades, the strongest of the plain linear decoders.

Gated Delta Networks: Improving Mamba2 with Delta Rule (Yang et al. 2024, arXiv:2412.06464): Mamba-2's decay clears a memory
at once, DeltaNet's rule replaces what one key holds; this mixer has both. Here as flash-linear-attention has it, which is
where the authors point to. This is DeltaNet's decoder with another mixer and an output gate.

Names: our ``in_proj`` is their ``q_proj``, ``k_proj``, ``v_proj``, ``g_proj`` and ``b_proj``, one below the other,
``step_proj`` their ``a_proj`` with ``dt_bias``, ``log_rates`` their ``A_log``, ``convolution`` their ``q_conv1d``,
``k_conv1d`` and ``v_conv1d``, ``norm`` their ``o_norm``, ``out_proj`` their ``o_proj``.
"""

from typing import Any, NamedTuple

from anyformer import core
from anyformer.core import registry
from anyformer.parts.norms.rms_norm import RMSNorm
from anyformer.parts.token_mixers.gated_deltanet import GatedDeltaNet

PAPER = core.Paper(
    "gated_deltanet",
    contributes=("model",),
    extends=("deltanet", "hybrid_linear_analysis"),
    deviations=(
        "The one size is the default of flash-linear-attention's configuration; the authors publish no weights, and the "
        "paper's own table of sizes was not at hand.",
        "The rates start between 1 and 16, where the authors' start between 0 and 16.",
    ),
)


class Size(NamedTuple):
    """The numbers of a size, the one of DeltaNet's that it differs least from, and how steps and norms of heads start."""

    dim: int
    hidden: int
    depth: int
    heads: int
    like: str
    steps: float = 1.0
    eps: float = 1e-6


SIZES = {
    "gated_deltanet_1.3b": Size(2048, 5632, 21, 6, "deltanet_1.3b"),
    # Two heads do not happen to hold slow ones, and short trainings do not find them, so that steps start smaller; what
    # narrow heads read is often near 0, which their norm must not blow up together with its rounding.
    "gated_deltanet_micro": Size(64, 176, 2, 2, "deltanet_micro", steps=0.1, eps=1e-4),
}
SMALL = ("gated_deltanet_micro",)  # of bytes, not of the paper: for tests and tight budgets


def pattern(name: str, *, vocabulary: int | None = None) -> core.Config:
    """The pattern of a size; ``vocabulary`` is that of the published weights, or of bytes, unless it is given."""
    size = SIZES[name]
    decoder: Any = registry.system("deltanet").pattern(size.like, vocabulary=vocabulary)
    block = decoder.blocks[0]
    linear = block.mixer.in_proj
    mixer = GatedDeltaNet.Config(
        heads=size.heads,
        in_proj=linear,
        step_proj=linear.replace(bias=True, bias_init=core.Init("step_bias", size.steps)),
        convolution=block.mixer.convolution,
        norm=RMSNorm.Config(eps=size.eps),
        out_proj=linear,
    )
    block = block.replace(mixer=mixer, channel_mixer=block.channel_mixer.replace(hidden=size.hidden))
    return decoder.replace(dim=size.dim, blocks=(block,) * size.depth)


def data_config(name: str) -> dict[str, Any]:
    """What weights of a size expect of a text."""
    if name in SMALL:
        return {"vocabulary": 256, "tokenizer": "bytes", "context": None}
    return {"vocabulary": 32000, "tokenizer": "mistralai/Mistral-7B-v0.1", "context": None}


PUBLISHED = {
    "gated_deltanet_1.3b": core.Published(
        params=1.3e9,
        macs=None,
        at=(64,),
        source="arXiv:2412.06464, by the name of its size",
        explained="the default of flash-linear-attention has 1.387 billion as well",
    ),
}


def _official(spec: Any) -> Any:
    """The names of flash-linear-attention."""
    return registry.system("hybrid_linear_analysis").keys["official"](spec)


KEYS = {"official": _official, "oracle": _official}
