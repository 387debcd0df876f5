"""The pyramid skeleton: stages of falling resolution and growing width."""

import dataclasses
from collections.abc import Sequence

from torch import Tensor

from anyformer import core
from anyformer.core.model import Model
from anyformer.core.pattern import parse_part
from anyformer.skeletons.blocks import layer_blocks


class Stage(core.Part, name="stage"):
    """A down part where there is one, then blocks of one width."""

    slot = "stage"

    class Config(core.Config):
        """``inputs`` is the width before the stage, ``dim`` the one in it."""

        inputs: int = core.bound()
        dim: int
        down: core.Config | None = None
        blocks: tuple[core.Config, ...]

    def forward(self, x: Tensor, ctx: core.Context) -> tuple[Tensor, core.Context]:
        """One stage."""
        if self.down is not None:
            x, ctx, _ = self.down(x, ctx)
        for block in self.blocks:
            x = block(x, ctx)
        return x, ctx


class Pyramid(Model, name="pyramid"):
    """Embed, stages, a norm where one is given, a head.

    Shapes: ``(batch, channels, height, width)`` -> whatever the head gives; features ``(batch, h, w, dim)`` a stage.
    """

    class Config(core.Config):
        """The width of the embed is that of the first stage, the width of norm and head that of the last."""

        embed: core.Config
        stages: tuple[core.Config, ...]
        norm: core.Config | None = None
        head: core.Config | None = None

    @classmethod
    def binds(cls, config: Config) -> dict[str, dict[str, str]]:
        """Each stage's input width is the width of the stage before. Raises UsageError where there is no stage."""
        if not config.stages:
            raise core.UsageError("a pyramid has at least one stage")
        last = {"dim": f"stages.{len(config.stages) - 1}.dim"}
        return {
            "embed": {"dim": "stages.0.dim"},
            "norm": last,
            "head": last,
            **{f"stages.{i}": {"inputs": f"stages.{max(i - 1, 0)}.dim"} for i in range(len(config.stages))},
        }

    @classmethod
    def pattern(
        cls,
        *,
        dims: Sequence[int],
        stages: Sequence[str],
        embed: str = "patch_embed(patch=4)",
        down: str = "patch_down(norm=layer_norm())",
        channel_mixer: str = "mlp",
        norm: str = "layer_norm",
        head: str = "mean_pool_head",
        num_classes: int = 1000,
        in_chans: int = 3,
    ) -> core.Config:
        """A pattern from texts: the layers of each stage, and one part for every other slot."""
        if len(dims) != len(stages):
            raise core.UsageError(f"a pyramid needs one width a stage, got {len(dims)} for {len(stages)} stages")
        embed_part, smaller, mixer, normed, scores = map(parse_part, (embed, down, channel_mixer, norm, head))
        return cls.Config(
            embed=embed_part.replace(channels=in_chans),
            stages=tuple(
                Stage.Config(
                    dim=dim,
                    down=smaller if i else None,
                    blocks=layer_blocks(layers, mixer, normed),
                )
                for i, (dim, layers) in enumerate(zip(dims, stages, strict=True))
            ),
            norm=normed,
            head=scores.replace(num_classes=num_classes),
        )

    def forward_features(
        self, raw: Tensor, sink: core.Collected | None = None, stages: list[Tensor] | None = None
    ) -> tuple[Tensor, core.Context]:
        """See :meth:`anyformer.core.model.Model.forward_features`."""
        x, ctx = self.embed(raw)
        ctx = dataclasses.replace(ctx, sink=sink)
        for stage in self.stages:
            x, ctx = stage(x, ctx)
            if stages is not None:
                stages.append(x)
        return x if self.norm is None else self.norm(x), ctx
