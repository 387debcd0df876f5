"""The text encoder skeleton: token identifiers in, scores of every token's own place out, each knowing the whole text."""

import dataclasses
from typing import Any

from torch import Tensor

from anyformer import core
from anyformer.core.model import Model


class TextEncoder(Model, name="text_encoder"):
    """Embed, a row of blocks that see earlier and later tokens, a norm, a head.

    Shapes: ``(batch, tokens)``, or what else the embed takes -> ``(batch, tokens, vocabulary)``, or without a head
    ``(batch, tokens, dim)``. It does not stream: every token depends on all others.
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

    def forward_features(
        self, raw: Any, sink: core.Collected | None = None, stages: list[Tensor] | None = None
    ) -> tuple[Tensor, core.Context]:
        """See :meth:`anyformer.core.model.Model.forward_features`."""
        x, ctx = self.embed(raw)
        ctx = dataclasses.replace(ctx, sink=sink)
        for block in self.blocks:
            x = block(x, ctx)
            if stages is not None:
                stages.append(x)
        return x if self.norm is None else self.norm(x), ctx
