"""H-Net: a language model of bytes that learns where to cut its text, end to end, instead of being given tokens.

Dynamic Chunking for End-to-End Hierarchical Sequence Modeling (sections from memory). A few Mamba-2 layers read bytes, the
encoder; a router starts a chunk where what it reads is unlike what came just before (section 2.2.1); the vectors at which
chunks start go on to a Transformer, the main network, which is wider and does most of the work; its outputs are smoothed
where a start was in doubt and given to all bytes of their chunks (section 2.2.2), beside a linear map of what the encoder
had; more Mamba-2 layers, the decoder, predict the next byte. A loss holds the chunks near a length (section 2.2.3). The
main network may be such a network itself: with two stages, the outer chunks are something like words, the inner phrases.

A stage is a ``hierarchical_block``; the layers before and behind it are its encoder and decoder. Names: our ``down`` is their
``routing_module`` and ``chunk_layer``, ``up`` their ``dechunk_layer``, ``skip`` their ``residual_proj``, ``pad`` their
``pad_dimension``; ``norm`` of the block is the ``rmsnorm`` of their encoder, ``norm2`` that of what lies inside. A layout is
theirs: ``m4`` are four Mamba-2 layers, ``T22`` are 22 of a Transformer.

A choice flips when rounding takes a probability across a half, and what follows differs then. In the proofs of the small
sizes the nearest one is 2.2e-4 away from a half, a hundred times what rounding to float32 moves it by.
"""

import dataclasses
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anyformer import core
from anyformer.core.joins import Counts
from anyformer.core.keymap import KeyMap, Row, row
from anyformer.parts.channel_mixers.gated_mlp import GatedMLP
from anyformer.parts.down.dynamic_chunks import DynamicChunks
from anyformer.parts.embeds.token_table import TokenTable
from anyformer.parts.heads.vocabulary import VocabularyHead
from anyformer.parts.linear.linear import Linear
from anyformer.parts.norms.rms_norm import RMSNorm
from anyformer.parts.positions.rotary import Rotary
from anyformer.parts.token_mixers.grouped_query_attention import GroupedQueryAttention
from anyformer.parts.token_mixers.mamba2 import Mamba2
from anyformer.parts.up.smoothed_chunks import SmoothedChunks
from anyformer.skeletons.blocks import MixerBlock, layer_block
from anyformer.skeletons.decoder import Decoder
from anyformer.skeletons.hierarchical import HierarchicalBlock

PAPER = core.Paper(
    "h_net",
    contributes=("model", "part"),
    extends=("mamba2_hybrid", "llama"),
    deviations=(
        "The query is that of the earlier token and the key that of the later, as in the code; the paper has it the other "
        "way round.",
        "Probabilities are kept 1e-4 away from 0 and 1 in the smoothing, as in the code; in the paper a text's first chunk "
        "is taken whole.",
        "A chunk starts at a probability of a half, as in the paper; the code wants more than that.",
        "The share of chunks and the probabilities of the ratio loss are those of the tokens that count; the code counts "
        "pads as well. The weight of the loss, 0.03, and the lengths of chunks, 6, or 3 and 3, are from memory.",
        "The code trains outer stages at higher rates than inner ones; here that is left to who trains.",
        "Biases of convolutions and of the map around a stage start with zeros, the authors' with random numbers.",
    ),
)


class PartialRotary(core.Part, name="partial_rotary"):
    """Turn the first ``turned`` channels of a head, and leave the others as they are, so that they know no positions.

    Shapes: ``(batch, heads, tokens, head_dim)`` to the same.
    """

    slot = "query_key_position"

    class Config(core.Config):
        """Half of the channels where nothing is said."""

        head_dim: int = core.bound()
        turned: int = core.derived(lambda c: c.head_dim // 2)
        rotary: core.Config = Rotary.Config()

        @property
        def rest(self) -> int:
            """The others."""
            return self.head_dim - self.turned

    definitions = {"head_dim": "turned + rest"}

    @classmethod
    def binds(cls, config: Config) -> dict[str, dict[str, str]]:
        """Rotary sees what is turned."""
        return {"rotary": {"head_dim": "turned"}}

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """See :class:`~anyformer.parts.positions.rotary.Rotary`."""
        turned, rest = x.split((self.config.turned, self.config.rest), dim=-1)
        return torch.cat((self.rotary(turned, positions), rest), dim=-1)


class Size(NamedTuple):
    """The numbers of a size, those of several stages outermost first."""

    dims: tuple[int, ...]
    hidden: tuple[int, ...]
    encoders: tuple[str, ...]
    main: str
    decoders: tuple[str, ...]
    ratios: tuple[float, ...]
    heads: int = 16
    window: int = 1024
    p: int = 64
    state: int = 128


_TWO = ("m4", "T1m4"), ("m4", "m4T1")
_XL = (1024, 1536, 2048), (0, 4096, 5504), _TWO[0]
_SMALL = {"heads": 4, "p": 32, "state": 16}
SIZES = {
    "hnet_1stage_L": Size((1024, 1536), (0, 4096), ("m4",), "T22", ("m4",), (6,)),
    "hnet_1stage_XL": Size((1024, 2048), (0, 5504), ("m4",), "T24", ("m4",), (6,)),
    "hnet_2stage_L": Size((1024, 1024, 1536), (0, 2816, 4096), _TWO[0], "T26", _TWO[1], (3, 3)),
    "hnet_2stage_XL": Size(*_XL, "T27", _TWO[1], (3, 3)),
    "hnet_2stage_XL_chinese": Size(*_XL, "T30", _TWO[1], (3, 3)),
    "hnet_2stage_XL_code": Size(*_XL, "T28", _TWO[1], (3, 3)),
    "h_net_micro": Size((64, 96), (0, 128), ("m1",), "T2", ("m1",), (6,), **_SMALL),
    "h_net_mini": Size((128, 192), (0, 384), ("m2",), "T4", ("m2",), (6,), **_SMALL),
    "h_net_2stage_micro": Size(
        (64, 64, 96), (0, 128, 128), ("m1", "T1m1"), "T2", ("m1", "m1T1"), (3, 3), window=8, **_SMALL
    ),
}
SMALL = ("h_net_micro", "h_net_2stage_micro", "h_net_mini")  # not of the paper: for tests and tight budgets
INERT = {
    f"*.down.{role}.weight": "a cosine does not feel how long its vectors are, only where they point"
    for role in ("query", "key")
}


def pattern(name: str, *, vocabulary: int | None = None) -> core.Config:
    """The pattern of a size; the vocabulary is that of bytes, unless it is given."""
    size = SIZES[name]
    # Small widths and short trainings need weights that keep the variance of what passes through them.
    start = core.Init("xavier_uniform") if name in SMALL else core.Init("normal", 0.02)
    return Decoder.Config(
        dim=size.dims[0],
        vocabulary=vocabulary or 256,
        embed=TokenTable.Config(table=Linear.Config(bias=False, init=core.Init("normal", 1.0))),
        blocks=_network(size, 0, 0, start),
        norm=_NORM,
        head=VocabularyHead.Config(linear=Linear.Config(bias=False, init=start)),
    )


_NORM = RMSNorm.Config(eps=1e-5)


def _network(size: Size, stage: int, residuals: int, start: core.Init) -> tuple[core.Config, ...]:
    """The blocks of a stage, around which ``residuals`` branches are added to what passes through it."""
    if stage == len(size.ratios):
        return tuple(_layers(size, stage, size.main, residuals + _branches(size.main), start))
    encoder, decoder = size.encoders[stage], size.decoders[stage]
    residuals += _branches(encoder) + _branches(decoder)
    inside = HierarchicalBlock.Config(
        width=size.dims[stage + 1],
        norm=_NORM,
        down=DynamicChunks.Config(ratio=float(size.ratios[stage])),
        blocks=_network(size, stage + 1, residuals, start),
        norm2=_NORM,
        up=SmoothedChunks.Config(),
    )
    layers = (_layers(size, stage, layout, residuals, start) for layout in (encoder, decoder))
    return (*next(layers), inside, *next(layers))


def _layers(size: Size, stage: int, layout: str, residuals: int, start: core.Init) -> Iterator[core.Config]:
    # what enters a residual sum starts smaller in deeper networks, so that the sum does not grow with depth
    last = start if start.kind == "xavier_uniform" else core.Init(start.kind, start.value * residuals**-0.5)
    wide, narrow = (Linear.Config(bias=False, init=init) for init in (start, last))
    mamba = Mamba2.Config(p=size.p, state=size.state, in_proj=wide, out_proj=narrow)
    attention = GroupedQueryAttention.Config(
        kv_heads=size.heads,
        window=None if stage == len(size.ratios) else size.window,
        position=PartialRotary.Config(),
        qkv=wide,
        proj=narrow,
    )
    perceptron = GatedMLP.Config(hidden=size.hidden[stage], fc1=wide, fc2=narrow)
    blocks = {"m": MixerBlock.Config(norm=_NORM, mixer=mamba), "T": layer_block(attention, perceptron, _NORM)}
    for kind, count in _parsed(layout):
        yield from [blocks[kind]] * count


def _parsed(layout: str) -> list[tuple[str, int]]:
    return [(kind, int(count)) for kind, count in re.findall(r"([mT])(\d+)", layout)]


def _branches(layout: str) -> int:
    return sum(count * (2 if kind == "T" else 1) for kind, count in _parsed(layout))


def data_config(name: str) -> dict[str, Any]:
    """Bytes; texts may be longer than in training."""
    return {"vocabulary": 256, "tokenizer": "bytes", "context": None}


PUBLISHED: dict[str, core.Published] = {}


@dataclasses.dataclass(frozen=True)
class SwapHalves:
    """Their two halves are ours the other way round."""

    def forward(self, theirs: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        """Swap."""
        return [torch.cat(tensor.chunk(2)[::-1]) for tensor in theirs]

    def backward(self, ours: list[Tensor]) -> list[Tensor]:
        """Swap back."""
        return self.forward(ours, [])


def _official(spec: Any) -> KeyMap:
    table, head = row("embeddings.weight", "embed.table.weight"), row("lm_head.weight", "head.linear.weight")
    return KeyMap((table, head, *_stage("backbone", "", spec.blocks, "norm")))


def _stage(theirs: str, ours: str, blocks: Any, norm: str) -> Iterator[Row]:
    place = next((i for i, block in enumerate(blocks) if block.part is HierarchicalBlock), None)
    if place is None:
        yield from _isotropic(f"{theirs}.main_network", ours, dict(enumerate(blocks)), norm)
        return
    known, inside = dict(enumerate(blocks)), f"{ours}blocks.{place}"
    decoder = {i: known.pop(i) for i in range(place, len(blocks)) if i > place}
    stage = known.pop(place)
    yield from _isotropic(f"{theirs}.encoder", ours, known, f"{inside}.norm")
    yield from _isotropic(f"{theirs}.decoder", ours, decoder, norm)
    yield row(f"{theirs}.routing_module.q_proj_layer.weight", f"{inside}.down.query.weight")
    yield row(f"{theirs}.routing_module.k_proj_layer.weight", f"{inside}.down.key.weight")
    yield row(f"{theirs}.residual_proj.{{p}}", f"{inside}.skip.{{p}}")
    yield row(f"{theirs}.main_network.pad_dimension", f"{inside}.pad")
    yield from _stage(f"{theirs}.main_network", f"{inside}.", stage.blocks, f"{inside}.norm2")


_MAMBA = {
    "A_log": "log_rates",
    "D": "skip",
    "dt_bias": "step_bias",
    "in_proj.weight": "in_proj.weight",
    "conv1d.{p}": "convolution.{p}",
    "norm.weight": "norm.weight",
    "out_proj.weight": "out_proj.weight",
}


def _isotropic(theirs: str, ours: str, blocks: dict[int, Any], norm: str) -> Iterator[Row]:
    for layer, (place, block) in enumerate(blocks.items()):
        names = f"{theirs}.layers.{layer}", f"{ours}blocks.{place}"
        if block.part is MixerBlock:
            pairs = {f"mixer.{a}": f"mixer.{b}" for a, b in _MAMBA.items()} | {"norm1.weight": "norm.weight"}
        else:
            pairs = {"mixer.Wqkv.weight": "mixer.qkv.weight", "mixer.out_proj.weight": "mixer.proj.weight"}
            pairs |= {"norm1.weight": "norm1.weight", "norm2.weight": "norm2.weight"}
            pairs |= {"mlp.fc2.weight": "channel_mixer.fc2.weight"}
            yield row(f"{names[0]}.mlp.fc1.weight", f"{names[1]}.channel_mixer.fc1.weight", SwapHalves())
            yield row((), f"{names[1]}.mixer.position.rotary.pair", Counts())
        yield from (row(f"{names[0]}.{a}", f"{names[1]}.{b}") for a, b in pairs.items())
    yield row(f"{theirs}.rmsnorm.weight", f"{norm}.weight")


KEYS = {"official": _official, "oracle": _official}
