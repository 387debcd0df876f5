"""Random patterns of small image models: hybrids of several mixers, isotropic and in pyramids; and how they fail."""

from collections.abc import Callable

from hypothesis import strategies as st

from anyformer import core
from anyformer.core import registry
from anyformer.parts.channel_mixers.mlp import MLP
from anyformer.parts.down.patch_down import PatchDown
from anyformer.parts.embeds.patch_embed import PatchEmbed
from anyformer.parts.heads.classifier import MeanPoolHead
from anyformer.parts.norms.layer_norm import LayerNorm
from anyformer.parts.residuals.residual import PlainResidual, ScaledResidual
from anyformer.parts.token_mixers.attention import Attention
from anyformer.parts.token_mixers.depthwise import DepthwiseConvolution
from anyformer.skeletons.blocks import MixerNormBlock, PreNormBlock
from anyformer.skeletons.isotropic import Isotropic
from anyformer.skeletons.pyramid import Pyramid, Stage

SMALL_MODELS = tuple(
    name for system in registry.systems().values() if system.field == "vision" for name in system.small
)
ALL_MODELS = registry.model_names()

norms = st.builds(LayerNorm.Config, eps=st.sampled_from((1e-5, 1e-6)))
residuals = st.one_of(
    st.builds(PlainResidual.Config, drop_path=st.sampled_from((0.0, 0.1))),
    st.builds(ScaledResidual.Config, drop_path=st.sampled_from((0.0, 0.1))),
)
mixers = st.one_of(
    st.builds(Attention.Config, heads=st.sampled_from((1, 2, 4)), head_dim=st.sampled_from((None, 3))),
    st.builds(DepthwiseConvolution.Config, kernel=st.sampled_from((1, 3, 5))),
)
channel_mixers = st.builds(
    MLP.Config,
    ratio=st.sampled_from((0.5, 4.0)),
    activation=st.sampled_from(("gelu", "relu")),
    fc1=st.sampled_from((None, registry.part("linear").Config(bias=False))),
)
blocks = st.one_of(
    st.builds(
        PreNormBlock.Config,
        norm1=norms,
        mixer=mixers,
        residual1=residuals,
        norm2=norms,
        channel_mixer=channel_mixers,
        residual2=residuals,
    ),
    st.builds(MixerNormBlock.Config, mixer=mixers, norm=norms, channel_mixer=channel_mixers, residual=residuals),
)
rows = st.lists(blocks, min_size=1, max_size=3).map(tuple)
embeds = st.builds(
    PatchEmbed.Config, patch=st.sampled_from((1, 2)), channels=st.sampled_from((1, 3)), norm=st.none() | norms
)
heads = st.none() | st.builds(MeanPoolHead.Config, num_classes=st.integers(1, 5), norm=st.none() | norms)
widths = st.sampled_from((4, 8, 12))

isotropic = st.builds(Isotropic.Config, dim=widths, embed=embeds, blocks=rows, norm=st.none() | norms, head=heads)
stages = st.builds(Stage.Config, dim=widths, down=st.none() | st.builds(PatchDown.Config, norm=norms), blocks=rows)


def refusal(action: Callable[..., object], *arguments: object) -> str:
    """The sentence with which an action refuses its arguments, "" where it does not; any other error comes through."""
    try:
        action(*arguments)
    except core.UsageError as error:
        return str(error)
    return ""


def _connected(pattern):
    """Without a down part a stage keeps the width of the one before it."""
    stages = [pattern.stages[0].replace(down=None)]
    for stage in pattern.stages[1:]:
        stages.append(stage if stage.down is not None else stage.replace(dim=stages[-1].dim))
    return pattern.replace(stages=tuple(stages))


pyramids = st.builds(
    Pyramid.Config,
    embed=embeds,
    stages=st.lists(stages, min_size=1, max_size=3).map(tuple),
    norm=st.none() | norms,
    head=heads,
).map(_connected)
models = isotropic | pyramids
