"""The isotropic skeleton: one width and one grid from the first block to the last."""

import dataclasses

from torch import Tensor

from anyformer import core
from anyformer.core.model import Model
from anyformer.core.pattern import parse_part
from anyformer.skeletons.blocks import layer_blocks


class Isotropic(Model, name="isotropic"):
    """Embed, a row of blocks, a norm, a head.

    Shapes: whatever the embed takes -> whatever the head gives; the features of every block are its stages.
    """

    class Config(core.Config):
        """``blocks`` is written out layer by layer, even where all are equal."""

        dim: int
        embed: core.Config
        blocks: tuple[core.Config, ...]
        norm: core.Config | None = None
        head: core.Config | None = None

    @classmethod
    def pattern(
        cls,
        *,
        dim: int,
        layers: str,
        embed: str = "patch_embed(patch=16)",
        channel_mixer: str = "mlp",
        norm: str = "layer_norm",
        head: str = "mean_pool_head",
        num_classes: int = 1000,
        in_chans: int = 3,
    ) -> core.Config:
        """A pattern from texts: token mixers by layer (or whole blocks), and one part for every other slot."""
        embed_part, mixer, normed, scores = map(parse_part, (embed, channel_mixer, norm, head))
        return cls.Config(
            dim=dim,
            embed=embed_part.replace(channels=in_chans) if hasattr(embed_part, "channels") else embed_part,
            blocks=layer_blocks(layers, mixer, normed),
            norm=normed,
            head=scores.replace(num_classes=num_classes),
        )

    def forward_features(
        self, raw: Tensor, sink: core.Collected | None = None, stages: list[Tensor] | None = None
    ) -> tuple[Tensor, core.Context]:
        """See :meth:`anyformer.core.model.Model.forward_features`."""
        x, ctx = self.embed(raw)
        ctx = dataclasses.replace(ctx, sink=sink)
        for block in self.blocks:
            x = block(x, ctx)
            if stages is not None:
                stages.append(ctx.layout.split(x)[1])
        return x if self.norm is None else self.norm(x), ctx
