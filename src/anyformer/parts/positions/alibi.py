"""Attention with linear biases (ALiBi, arXiv:2108.12409, section 3)."""

import torch
from torch import Tensor

from anyformer import core


class Alibi(core.Part, name="alibi"):
    """Take from each product of a query and a key their distance, times a slope of the head's own.

    The slopes fall geometrically from ``2 ** (-8 / heads)`` to ``2 ** -8``; where the heads are no power of two, those of
    the next lower one are followed by every other one of the next higher, as in the authors' code. The numbers of the
    heads are stored with the weights, because a pruned model keeps the slopes of those it kept.

    Shapes: none to ``(heads,)``.
    """

    slot = "logit_position"

    class Config(core.Config):
        """``total`` heads were there before any was cut."""

        heads: int = core.bound()
        total: int = core.derived(lambda c: c.heads)

    axes = {"head": "heads"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.register_buffer("head", torch.arange(config.heads))

    def forward(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The slopes, in float32 at least."""
        lower = 1 << (self.config.total.bit_length() - 1)
        head = self.head.to(torch.promote_types(dtype, torch.float32))
        return torch.exp2(-8 / lower * torch.where(head < lower, head + 1, head - lower + 0.5))
