"""Blocks: how norm, mixer and residual follow one another in a layer."""

from torch import Tensor

from anyformer import core
from anyformer.core.pattern import parse_pattern
from anyformer.parts.residuals.residual import PlainResidual


class PairState(core.State):
    """The states of a layer whose channel mixer has one too, as experts that count their tokens."""

    mixer: core.State
    channel_mixer: core.State


class PreNormBlock(core.Block, name="pre_norm_block"):
    """``x = residual1(x, mixer(norm1(x)))``, then ``x = residual2(x, channel_mixer(norm2(x)))``: the Transformer layer."""

    class Config(core.Config):
        """One part a slot."""

        dim: int = core.bound()
        norm1: core.Config
        mixer: core.Config
        residual1: core.Config
        norm2: core.Config
        channel_mixer: core.Config
        residual2: core.Config

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """One layer."""
        x = self.residual1(x, self.mixer(self.norm1(x), ctx))
        return self.residual2(x, self.channel_mixer(self.norm2(x), ctx))

    def init_state(self, batch: int, capacity: int, like: Tensor) -> core.State:
        """The mixer's, with the channel mixer's where it has one."""
        mixer = self.mixer.init_state(batch, capacity, like)
        if not hasattr(self.channel_mixer, "init_state"):
            return mixer
        return PairState(mixer=mixer, channel_mixer=self.channel_mixer.init_state(batch, capacity, like))

    def stream(self, x: Tensor, ctx: core.Context, state: core.State) -> tuple[Tensor, core.State]:
        """One layer, for the next tokens."""
        mixed, mixer = self.mixer.stream(self.norm1(x), ctx, state.mixer if isinstance(state, PairState) else state)
        x = self.residual1(x, mixed)
        if not isinstance(state, PairState):
            return self.residual2(x, self.channel_mixer(self.norm2(x), ctx)), mixer
        mixed, channel_mixer = self.channel_mixer.stream(self.norm2(x), ctx, state.channel_mixer)
        return self.residual2(x, mixed), PairState(mixer=mixer, channel_mixer=channel_mixer)

    def deployed(self) -> core.Part:
        """Both branches scaled by their own weights."""
        self.residual1 = self.residual1.folded(self.mixer)
        self.residual2 = self.residual2.folded(self.channel_mixer)
        return self


class MixerBlock(core.Block, name="mixer_block"):
    """``residual(x, mixer(norm(x)))``: a layer of one mixer, which mixes channels too, as Mamba's (arXiv:2312.00752)."""

    class Config(core.Config):
        """One part a slot."""

        dim: int = core.bound()
        norm: core.Config
        mixer: core.Config
        residual: core.Config = PlainResidual.Config()

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """One layer."""
        return self.residual(x, self.mixer(self.norm(x), ctx))

    def init_state(self, batch: int, capacity: int, like: Tensor) -> core.State:
        """The mixer's."""
        return self.mixer.init_state(batch, capacity, like)

    def stream(self, x: Tensor, ctx: core.Context, state: core.State) -> tuple[Tensor, core.State]:
        """One layer, for the next tokens."""
        mixed, state = self.mixer.stream(self.norm(x), ctx, state)
        return self.residual(x, mixed), state


class MixerNormBlock(core.Block, name="mixer_norm_block"):
    """``residual(x, channel_mixer(norm(mixer(x))))``: one branch for both mixers, as in ConvNeXt (arXiv:2201.03545)."""

    class Config(core.Config):
        """One part a slot."""

        dim: int = core.bound()
        mixer: core.Config
        norm: core.Config
        channel_mixer: core.Config
        residual: core.Config

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """One layer."""
        return self.residual(x, self.channel_mixer(self.norm(self.mixer(x, ctx)), ctx))

    def deployed(self) -> core.Part:
        """The branch scaled by its own weights."""
        self.residual = self.residual.folded(self.channel_mixer)
        return self


def layer_block(layer: core.Config, channel_mixer: core.Config | None, norm: core.Config) -> core.Config:
    """A whole block as it is, or a pre-norm block around a token mixer, without a channel mixer where there is none."""
    if layer.part.slot == "block":
        return layer
    if layer.part.slot != "token_mixer":
        raise core.UsageError(f"a layer is a token mixer or a block, {layer.part.name!r} is a {layer.part.slot}")
    if channel_mixer is None:
        return MixerBlock.Config(norm=norm, mixer=layer)
    join = PlainResidual.Config()
    return PreNormBlock.Config(
        norm1=norm, mixer=layer, residual1=join, norm2=norm, channel_mixer=channel_mixer, residual2=join
    )


def layer_blocks(layers: str, channel_mixer: core.Config | None, norm: core.Config) -> tuple[core.Config, ...]:
    """The blocks of a pattern of layers; those that a count repeats are one object, so that a long row costs no memory."""
    row = parse_pattern(layers)
    different = {id(layer): layer for layer in row}
    blocks = {key: layer_block(layer, channel_mixer, norm) for key, layer in different.items()}
    return tuple(blocks[id(layer)] for layer in row)
