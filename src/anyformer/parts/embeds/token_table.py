"""Token embeddings: one learned vector a token of the vocabulary."""

from torch import Tensor
from torch.nn import functional as F

from anyformer import core


class TokenTable(core.Embed, name="token_table"):
    """Look up each token's vector. Shapes: ``(batch, tokens)`` whole numbers -> ``(batch, tokens, dim)``.

    The table is a linear node, so that a head may hold ``shared(path="embed.table")`` and be tied to it.
    """

    class Config(core.Config):
        """``vocabulary`` is the number of different tokens."""

        vocabulary: int = core.bound()
        dim: int = core.bound()
        table: core.Config = core.linear(bias=False)

    axes = {"table.weight": "vocabulary dim"}

    def forward(self, raw: Tensor) -> tuple[Tensor, core.Context]:
        """Look up."""
        return F.embedding(raw, self.table.weight), core.Context(layout=core.Layout(grid=(raw.shape[1],)))
