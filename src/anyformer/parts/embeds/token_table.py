"""Token embeddings: one learned vector a token of the vocabulary."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer import core


class Tokens(NamedTuple):
    """Sequences with what is known of them: rows with pads, or sequences packed one after the other.

    Attributes:
        ids: (batch, tokens), whole numbers below the vocabulary.
        keep: (batch, tokens), True where a token counts; all do when None.
        offsets: (sequences + 1,) int64, the starts of sequences packed along the tokens of a batch of 1.
    """

    ids: Tensor
    keep: Tensor | None = None
    offsets: Tensor | None = None


class TokenTable(core.Embed, name="token_table"):
    """Look up each token's vector.

    Shapes: ``(batch, tokens)`` whole numbers, or :class:`Tokens` -> ``(batch, tokens, dim)``. The table is a linear node, so
    that a head may hold ``shared(path="embed.table")`` and be tied to it.
    """

    class Config(core.Config):
        """``vocabulary`` is the number of different tokens; vectors are multiplied by ``scale``."""

        vocabulary: int = core.bound()
        dim: int = core.bound()
        scale: float = 1.0
        table: core.Config = core.linear(bias=False)

    axes = {"table.weight": "vocabulary dim"}

    def forward(self, raw: Tensor | Tokens) -> tuple[Tensor, core.Context]:
        """Look up, and count the positions of the tokens."""
        ids, keep, offsets = raw if isinstance(raw, tuple) else Tokens(raw)
        positions = None
        if offsets is not None:
            place = torch.arange(ids.shape[1], device=ids.device)
            positions = place - offsets[torch.searchsorted(offsets, place, right=True) - 1]
        elif keep is not None:
            positions = (keep.cumsum(1) - 1).clamp(min=0)
        x = F.embedding(ids, self.table.weight)
        if self.config.scale != 1.0:
            x = x * self.config.scale
        layout = core.Layout(grid=(ids.shape[1],))
        return x, core.Context(layout=layout, mask=keep, offsets=offsets, positions=positions)
