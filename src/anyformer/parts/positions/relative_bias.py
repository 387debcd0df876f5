"""Relative position biases in buckets (T5, arXiv:1910.10683)."""

import math

import torch
from torch import Tensor

from anyformer import core


class RelativeBias(core.Part, name="relative_bias"):
    """Add to each product of a query and a key a number of the head's own for the bucket that their distance falls in.

    Half of the buckets of a direction are for one distance each; the others grow logarithmically up to ``max_distance``,
    and what is further shares the last. One part may serve all layers: the first owns it, the others hold
    ``shared(path=...)``.

    Shapes: positions ``(rows, queries)`` and ``(rows, keys)`` to ``(rows, heads, queries, keys)``. Cost: that many lookups.
    """

    slot = "logit_bias"

    class Config(core.Config):
        """``bidirectional``: half of the buckets are for later keys; otherwise all of those share the bucket of distance 0."""

        heads: int = core.bound()
        buckets: int = 32
        max_distance: int = 128
        bidirectional: bool = True
        init: core.Init = core.Init("normal", 0.02)

    axes = {"weight": "buckets heads"}
    fixed = {"buckets": "distances, not channels"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        directions = 2 if config.bidirectional else 1
        if config.buckets % (2 * directions) or not config.max_distance > config.buckets // (2 * directions) > 0:
            raise core.UsageError(
                f"{config.buckets} buckets up to a distance of {config.max_distance}: give a multiple of "
                f"{2 * directions}, and a distance beyond the buckets of one distance each"
            )
        self.weight = self.parameter("weight", config.init)

    def forward(self, query: Tensor, key: Tensor, dtype: torch.dtype) -> Tensor:
        """The biases, in ``dtype``; positions are whole numbers."""
        reach = self.config.max_distance
        # all distances beyond the reach are in the last bucket, so that a short table has the biases of all
        table = self.weight[self._bucket(torch.arange(-reach, reach + 1, device=query.device))].to(dtype).T
        distance = (key[:, None] - query[:, :, None]).clamp(-reach, reach) + reach
        return table.index_select(1, distance.flatten()).unflatten(1, distance.shape).transpose(0, 1)

    def _bucket(self, distance: Tensor) -> Tensor:
        """Of key minus query."""
        config: RelativeBias.Config = self.config
        buckets, first = config.buckets, 0
        if config.bidirectional:
            buckets //= 2
            first = (distance > 0) * buckets
            distance = distance.abs()
        else:
            distance = -distance.clamp(max=0)
        single = buckets // 2
        far = (distance.clamp(min=1).float() / single).log() / math.log(config.max_distance / single)
        far = (single + far * (buckets - single)).long().clamp(max=buckets - 1)
        return first + torch.where(distance < single, distance, far)
