"""The encoder-decoder skeleton: a source is read as a whole, and a decoder that attends to it scores the target."""

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from anyformer import core
from anyformer.core.model import Model
from anyformer.core.pattern import parse_part, parse_pattern
from anyformer.parts.embeds.token_table import Tokens, TokenTable
from anyformer.parts.heads.vocabulary import VocabularyHead
from anyformer.parts.residuals.residual import PlainResidual
from anyformer.skeletons.blocks import layer_blocks
from anyformer.skeletons.decoder import Decoder, DecoderState
from anyformer.skeletons.generation import generate, padded, token_rows

Features = tuple[Tensor, core.Context]
"""Features and their context."""


class Texts(NamedTuple):
    """What an encoder-decoder reads and what it is to say, row by row.

    Attributes:
        source: (batch, tokens), whole numbers below the vocabulary; at least one token.
        target: (batch, other tokens), from the start token on.
        source_keep: (batch, tokens), True where a token of the source counts; all do when None.
        target_keep: likewise of the target.
    """

    source: Tensor
    target: Tensor
    source_keep: Tensor | None = None
    target_keep: Tensor | None = None


class Encoder(core.Embed, name="encoder"):
    """Embed, a row of blocks, a norm: from identifiers ``(batch, tokens)`` to features ``(batch, tokens, dim)``."""

    class Config(core.Config):
        """One part a slot; the width and the vocabulary are the decoder's."""

        dim: int = core.bound()
        vocabulary: int = core.bound()
        embed: core.Config
        blocks: tuple[core.Config, ...]
        norm: core.Config | None = None

    def forward(self, raw: Tensor | Tokens, sink: core.Collected | None = None) -> Features:
        """Read."""
        x, ctx = self.embed(raw)
        ctx = dataclasses.replace(ctx, sink=sink)
        for block in self.blocks:
            x = block(x, ctx)
        return x if self.norm is None else self.norm(x), ctx


class CrossState(core.State):
    """That of the mixer, the keys and values of the memory, and that of the channel mixer if it has one."""

    mixer: Any
    memory: Any
    channel_mixer: Any


class CrossBlock(core.Block, name="cross_block"):
    """A layer that also reads a memory: mixer, cross mixer and channel mixer, each after a norm and with a residual.

    Vaswani et al. 2017 (arXiv:1706.03762), with the norms before the mixers.
    """

    class Config(core.Config):
        """One part a slot; the cross mixer is a part such as ``cross_attention``."""

        dim: int = core.bound()
        norm1: core.Config
        mixer: core.Config
        residual1: core.Config = PlainResidual.Config()
        norm2: core.Config
        cross_mixer: core.Config
        residual2: core.Config = PlainResidual.Config()
        norm3: core.Config
        channel_mixer: core.Config
        residual3: core.Config = PlainResidual.Config()

    def __init__(self, config: Config) -> None:
        slot = config.cross_mixer.part.slot
        if slot != "cross_mixer":
            raise core.UsageError(f"cross_mixer must be one, such as cross_attention; a {slot} reads no memory")
        super().__init__(config)

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """One layer."""
        x = self.residual1(x, self.mixer(self.norm1(x), ctx))
        x = self.residual2(x, self.cross_mixer(self.norm2(x), ctx))
        return self.residual3(x, self.channel_mixer(self.norm3(x), ctx))

    def init_state(self, batch: int, capacity: int, like: Tensor, memory: Features | None = None) -> CrossState:
        """The states at the start; the memory is projected here, once."""
        counting = hasattr(self.channel_mixer, "init_state")
        return CrossState(
            mixer=self.mixer.init_state(batch, capacity, like),
            memory=self.cross_mixer.remember(memory),
            channel_mixer=self.channel_mixer.init_state(batch, capacity, like) if counting else None,
        )

    def stream(self, x: Tensor, ctx: core.Context, state: CrossState) -> tuple[Tensor, CrossState]:
        """One layer, for the next tokens."""
        mixed, mixer = self.mixer.stream(self.norm1(x), ctx, state.mixer)
        x = self.residual1(x, mixed)
        x = self.residual2(x, self.cross_mixer(self.norm2(x), ctx, state.memory))
        if state.channel_mixer is None:
            mixed, channel_mixer = self.channel_mixer(self.norm3(x), ctx), None
        else:
            mixed, channel_mixer = self.channel_mixer.stream(self.norm3(x), ctx, state.channel_mixer)
        return self.residual3(x, mixed), CrossState(mixer=mixer, memory=state.memory, channel_mixer=channel_mixer)


class EncoderDecoder(Model, name="encoder_decoder"):
    """An encoder, and a decoder of cross blocks. Shapes: :class:`Texts` to ``(batch, target tokens, vocabulary)``.

    A target alone, identifiers or :class:`~anyformer.parts.embeds.token_table.Tokens`, has the start token as its source:
    then the decoder is a language model. ``data_config["start"]`` is that token, 0 where it is absent.
    """

    class Config(core.Config):
        """``decoder`` is a decoder skeleton, whose width and vocabulary are the encoder's too."""

        encoder: core.Config
        decoder: core.Config

        @property
        def vocabulary(self) -> int:
            """The number of tokens that are known, and scored."""
            return self.decoder.size("vocabulary")

    @classmethod
    def binds(cls, config: Config) -> dict[str, dict[str, str]]:
        """One width and one vocabulary."""
        return {"encoder": {"dim": "decoder.dim", "vocabulary": "decoder.vocabulary"}}

    @classmethod
    def pattern(
        cls,
        *,
        dim: int,
        encoder: str,
        decoder: str,
        cross_mixer: str = "cross_attention",
        vocabulary: int = 256,
        channel_mixer: str = "gated_mlp",
        norm: str = "rms_norm",
        tie: bool = True,
    ) -> core.Config:
        """A pattern from texts: token mixers by layer, or whole blocks. Source, target and, tied, the head share a table."""
        normed, channels, cross = parse_part(norm), parse_part(channel_mixer), parse_part(cross_mixer)
        head: dict[str, Any] = {"linear": core.Shared.Config(path="decoder.embed.table")} if tie else {}
        return cls.Config(
            encoder=Encoder.Config(
                embed=TokenTable.Config(table=core.Shared.Config(path="decoder.embed.table")),
                blocks=layer_blocks(encoder, channels, normed),
                norm=normed,
            ),
            decoder=Decoder.Config(
                dim=dim,
                vocabulary=vocabulary,
                embed=TokenTable.Config(),
                blocks=_cross_blocks(decoder, cross, channels, normed),
                norm=normed,
                head=VocabularyHead.Config(**head),
            ),
        )

    def __init__(self, config: Config) -> None:
        for what, wanted in (("encoder", Encoder), ("decoder", Decoder)):
            part = getattr(config, what).part
            if part is not wanted:
                raise core.UsageError(f"the {what} of an encoder_decoder is one, not a {part.name}")
        for index, block in enumerate(config.decoder.blocks):  # type: ignore[attr-defined]
            if block.part is not CrossBlock:
                raise core.UsageError(f"decoder block {index} must be a cross_block, a {block.part.name} has no memory")
        super().__init__(config)

    @property
    def head(self) -> Any:
        """The decoder's."""
        return self.decoder.head

    def forward_features(
        self,
        raw: Tensor | Tokens | Texts,
        sink: core.Collected | None = None,
        stages: list[Tensor] | None = None,
    ) -> tuple[Tensor, core.Context]:
        """The decoder's; the memory is the first stage. See :meth:`anyformer.core.model.Model.forward_features`."""
        source, target = self._texts(raw)
        memory, decoder = self.encode(source, sink), self.decoder
        if stages is not None:
            stages.append(memory[0])
        x, ctx = decoder.embed(target)
        ctx = dataclasses.replace(ctx, memory=memory, sink=sink)
        for block in decoder.blocks:
            x = block(x, ctx)
            if stages is not None:
                stages.append(x)
        return x if decoder.norm is None else decoder.norm(x), ctx

    def encode(self, source: Tensor | Tokens, sink: core.Collected | None = None) -> Features:
        """The memory of a source: its features ``(batch, tokens, dim)`` and their context.

        Raises:
            UsageError: for a source without tokens, or a packed one.
        """
        ids, _, offsets = source if isinstance(source, tuple) else Tokens(source)
        if offsets is not None:
            raise core.UsageError("sources are not packed; give them as rows with pads")
        if not ids.shape[1]:
            raise core.UsageError("the source is empty; give at least one token, a line break for instance")
        return self.encoder(source, sink)

    def init_state(self, batch: int, capacity: int, memory: Features | None = None) -> DecoderState:
        """The decoder's state before the first token of targets of up to ``capacity`` tokens, pads included.

        Args:
            batch: Rows.
            capacity: Tokens.
            memory: What :meth:`encode` made of their sources; of the start token alone when absent. Its keys and values are
                computed here, and stay in the state.

        Raises:
            UsageError: where the memory has another number of rows.
        """
        if memory is None:
            memory = self.encode(self._starts(batch))
        if len(memory[0]) != batch:
            raise core.UsageError(
                f"the memory has {len(memory[0])} rows, not {batch}; encode as many sources as targets"
            )
        like = next(self.parameters())
        states = [block.init_state(batch, capacity, like, memory) for block in self.decoder.blocks]
        return DecoderState(blocks=states, seen=0, owner=self.decoder.owner)

    def stream(self, raw: Tensor | Tokens, state: DecoderState, last: bool = False) -> tuple[Tensor, DecoderState]:
        """The scores of the next tokens of the target; see :meth:`anyformer.skeletons.decoder.Decoder.stream`."""
        if isinstance(raw, Texts):
            raise core.UsageError("a stream takes the target alone; the source is in the state, by init_state")
        return self.decoder.stream(raw, state, last)

    def generate(
        self,
        source: Any,
        *,
        max_new_tokens: int,
        start: tuple[int, ...] | None = None,
        keep: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """The targets of sources, the start tokens included.

        Args:
            source: ``(batch, tokens)``, for which a tensor is given back, or rows of numbers, for which rows are.
            max_new_tokens: After the start tokens.
            start: What every target begins with; the start token when absent.
            keep: ``(batch, tokens)``, True where a token of a source tensor counts.
            options: As :func:`anyformer.skeletons.generation.generate` takes them.

        Raises:
            UsageError: for an empty source, tokens outside of the vocabulary, or options that are out of range.
        """
        rows = token_rows(source, keep, self.config.vocabulary, what="source")
        begin = [self._start] if start is None else list(start)
        with torch.inference_mode():
            memory = self.encode(padded(rows, next(self.parameters()).device)) if rows else None
            state = self.init_state(len(rows), len(begin) + max(0, max_new_tokens), memory)
        prompts: Any = [begin] * len(rows)
        if isinstance(source, Tensor):
            prompts = source.new_tensor(begin, dtype=torch.int64).expand(len(rows), -1)
        return generate(self, prompts, max_new_tokens=max_new_tokens, state=state, **options)

    def forward_head(self, x: Tensor, context: core.Context) -> Tensor:
        """Scores, by the decoder's head."""
        return self.decoder.forward_head(x, context)

    @property
    def _start(self) -> int:
        return self.data_config.get("start", 0)

    def _starts(self, batch: int) -> Tensor:
        return torch.full((batch, 1), self._start, device=next(self.parameters()).device)

    def _texts(self, raw: Tensor | Tokens | Texts) -> tuple[Tensor | Tokens, Tensor | Tokens]:
        if not isinstance(raw, Texts):
            return self._starts(len(raw[0] if isinstance(raw, tuple) else raw)), raw
        if len(raw.source) != len(raw.target):
            raise core.UsageError(f"there are {len(raw.source)} sources for {len(raw.target)} targets; give one a row")
        return Tokens(raw.source, raw.source_keep), Tokens(raw.target, raw.target_keep)


def _cross_blocks(
    layers: str, cross_mixer: core.Config, channel_mixer: core.Config, norm: core.Config
) -> tuple[core.Config, ...]:
    """The blocks of a pattern of layers; those that a count repeats are one object."""
    row = parse_pattern(layers)
    blocks = {id(layer): _cross_block(layer, cross_mixer, channel_mixer, norm) for layer in row}
    return tuple(blocks[id(layer)] for layer in row)


def _cross_block(
    layer: core.Config, cross_mixer: core.Config, channel_mixer: core.Config, norm: core.Config
) -> core.Config:
    if layer.part.slot == "block":
        return layer
    if layer.part.slot != "token_mixer":
        raise core.UsageError(f"a layer is a token mixer or a block, {layer.part.name!r} is a {layer.part.slot}")
    return CrossBlock.Config(
        norm1=norm, mixer=layer, norm2=norm, cross_mixer=cross_mixer, norm3=norm, channel_mixer=channel_mixer
    )
