"""The six models of the proofs: small, random, float64."""

from functools import cache

import torch
from torch import Tensor

from anyformer import core
from anyformer.core import registry
from anyformer.core.model import Model
from anyformer.parts.embeds.token_table import TokenTable
from anyformer.parts.heads.vocabulary import VocabularyHead
from anyformer.parts.positions.rotary import Rotary
from anyformer.parts.residuals.residual import PlainResidual
from anyformer.parts.token_mixers.grouped_query_attention import GroupedQueryAttention
from anyformer.skeletons.blocks import PreNormBlock
from anyformer.skeletons.decoder import Decoder

from .axes_cutting import filled
from .axes_parts import GroupedGatedNorm, Mamba2, RMSNorm, SwiGLU


def decoder(mixer: core.Config) -> core.Config:
    """Two layers around a token mixer, the head tied to the embedding."""
    norm, join = RMSNorm.Config(), PlainResidual.Config()
    block = PreNormBlock.Config(
        norm1=norm, mixer=mixer, residual1=join, norm2=norm, channel_mixer=SwiGLU.Config(hidden=20), residual2=join
    )
    return Decoder.Config(
        dim=18,
        vocabulary=23,
        embed=TokenTable.Config(),
        blocks=(block, block),
        norm=norm,
        head=VocabularyHead.Config(linear=core.Shared.Config(path="embed.table")),
    )


GROUPED_QUERIES = GroupedQueryAttention.Config(kv_heads=3, group=2, head_dim=8, position=Rotary.Config())
MAMBA2 = Mamba2.Config(groups=3, heads_per_group=2, p=4, state=5, norm=GroupedGatedNorm.Config())
DECODERS = {"grouped_query_decoder": decoder(GROUPED_QUERIES), "mamba2": decoder(MAMBA2)}
IMAGES = {  # Swin: shifted windows that do not divide the grid of 6, then an odd grid to merge
    "vit_micro": {"img_size": 8},
    "swin_mini": {"img_size": 6, "patch_size": 1},
    "edgenext_micro": {"img_size": 8, "patch_size": 1},
    "convnext_micro": {"img_size": 8, "patch_size": 1},
}
NAMES = (*IMAGES, *DECODERS)


def pattern(name: str) -> core.Config:
    """The pattern of one of the six."""
    return (
        DECODERS[name] if name in DECODERS else registry.system_of(name).pattern(name, num_classes=10, **IMAGES[name])
    )


@cache
def example(name: str) -> tuple[Model, Tensor]:
    """A model that nobody may change, and raw input for it."""
    generator = torch.Generator().manual_seed(1)
    if name in DECODERS:
        raw = torch.randint(23, (2, 7), generator=generator)
    else:
        raw = torch.randn(2, 3, *[IMAGES[name]["img_size"]] * 2, generator=generator, dtype=torch.float64)
    return filled(pattern(name)), raw
