"""The decoder skeleton: token identifiers in, scores of the next token out, at once or as a stream."""

import dataclasses
import zlib
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from anyformer import core
from anyformer.core import serial
from anyformer.core.model import Model
from anyformer.core.pattern import parse_part
from anyformer.ops.matrix_vector import unwatched
from anyformer.parts.embeds.token_table import Tokens, TokenTable
from anyformer.parts.heads.vocabulary import VocabularyHead
from anyformer.skeletons.blocks import layer_blocks


class DecoderState(core.State):
    """Where a stream stands.

    Attributes:
        blocks: the states of the blocks, first block first.
        seen: how many tokens counted so far: a number, or ``(batch, 1)`` once rows differ.
        owner: the digest of the spec that it belongs to.
    """

    blocks: list[Any]
    seen: Any
    owner: int


class Decoder(Model, name="decoder"):
    """Embed, a row of causal blocks, a norm, a head. Shapes: ``(batch, tokens) -> (batch, tokens, vocabulary)``.

    Raw input is token identifiers, or :class:`~anyformer.parts.embeds.token_table.Tokens` where rows have pads or are packed.
    An embed whose vectors depend on the place has ``stream(raw, seen) -> (x, ctx)`` beside its forward.
    """

    class Config(core.Config):
        """``vocabulary`` is bound to the embed and to the head."""

        dim: int
        vocabulary: int
        embed: core.Config
        blocks: tuple[core.Config, ...]
        norm: core.Config | None = None
        head: core.Config | None = None

    @classmethod
    def binds(cls, config: Config) -> dict[str, dict[str, str]]:
        """Embed and head share one vocabulary."""
        return {"embed": {"vocabulary": "vocabulary"}, "head": {"vocabulary": "vocabulary"}}

    @classmethod
    def pattern(
        cls,
        *,
        dim: int,
        layers: str,
        vocabulary: int = 256,
        channel_mixer: str = "gated_mlp",
        norm: str = "rms_norm",
        tie: bool = True,
    ) -> core.Config:
        """A pattern from texts: token mixers by layer, or whole blocks; ``channel_mixer`` "none" leaves it out."""
        normed = parse_part(norm)
        mixer = None if channel_mixer == "none" else parse_part(channel_mixer)
        linear: dict[str, Any] = {"linear": core.Shared.Config(path="embed.table")} if tie else {}
        return cls.Config(
            dim=dim,
            vocabulary=vocabulary,
            embed=TokenTable.Config(),
            blocks=layer_blocks(layers, mixer, normed),
            norm=normed,
            head=VocabularyHead.Config(**linear),
        )

    def __init__(self, config: Config) -> None:
        for index, block in enumerate(config.blocks):
            for _, node in core.walk(block):
                if node.part.slot == "token_mixer" and "stream" in node.part.refuses:
                    raise core.UsageError(
                        f"block {index}: {node.part.name!r} cannot stand in a decoder "
                        f"({node.part.refuses['stream']}); take a causal mixer"
                    )
        super().__init__(config)

    def forward_features(
        self, raw: Tensor | Tokens, sink: core.Collected | None = None, stages: list[Tensor] | None = None
    ) -> tuple[Tensor, core.Context]:
        """See :meth:`anyformer.core.model.Model.forward_features`."""
        x, ctx = self.embed(raw)
        ctx = dataclasses.replace(ctx, sink=sink)
        for block in self.blocks:
            x = block(x, ctx)
            if stages is not None:
                stages.append(x)
        return x if self.norm is None else self.norm(x), ctx

    def generate(self, ids: Any, **options: Any) -> Any:
        """Prompts and what follows them; see :func:`anyformer.skeletons.generation.generate`."""
        from anyformer.skeletons.generation import generate

        return generate(self, ids, **options)

    @cached_property
    def owner(self) -> int:
        """The digest of the spec."""
        return zlib.crc32(serial.dumps(self.spec).encode())

    def init_state(self, batch: int, capacity: int) -> DecoderState:
        """The state before the first token, for streams of up to ``capacity`` tokens, pads included."""
        like = next(self.parameters())
        states = [block.init_state(batch, capacity, like) for block in self.blocks]
        return DecoderState(blocks=states, seen=0, owner=self.owner)

    def stream(self, raw: Tensor | Tokens, state: DecoderState, last: bool = False) -> tuple[Tensor, DecoderState]:
        """The scores of the next tokens of a stream, and where it stands after them.

        Args:
            raw: (batch, tokens), any number of them; packed sequences do not stream. In rows with pads what counts stands
                together.
            state: of this model; the call may overwrite it.
            last: only the scores after the last token of each row that counts: (batch, 1, vocabulary).

        Raises:
            UsageError: for a state of another model, or packed sequences.
        """
        if state.owner != self.owner:
            raise core.UsageError("the state belongs to another model; begin with this model's init_state")
        x, ctx = self.embed.stream(raw, state.seen) if hasattr(self.embed, "stream") else self.embed(raw)
        if ctx.offsets is not None:
            raise core.UsageError("packed sequences do not stream; give them as rows with pads")
        tokens, counted = x.shape[1], x.shape[1]
        if ctx.mask is not None:
            counted = ctx.mask.sum(1, keepdim=True)
        if ctx.positions is None:
            ctx = dataclasses.replace(ctx, positions=torch.arange(tokens, device=x.device))
        ctx = dataclasses.replace(ctx, positions=ctx.positions + state.seen)
        states: list[Any] = []
        with unwatched():
            for block, before in zip(self.blocks, state.blocks, strict=True):
                x, after = block.stream(x, ctx, before)
                states.append(after)
            if last and ctx.mask is not None:
                place = (ctx.mask * torch.arange(tokens, device=x.device)).argmax(1)
                x = x.gather(1, place[:, None, None].expand(-1, 1, x.shape[2]))
            elif last:
                x = x[:, -1:]
            scores = self.forward_head(x if self.norm is None else self.norm(x), ctx)
        return scores, DecoderState(blocks=states, seen=state.seen + counted, owner=self.owner)
