"""The language-model head: a score for every token of the vocabulary."""

from torch import Tensor

from anyformer import core


class VocabularyHead(core.Head, name="vocabulary_head"):
    """One linear map, tied to the embedding by ``linear=shared(path="embed.table")``.

    Shapes: ``(batch, tokens, dim) -> (batch, tokens, vocabulary)``.
    """

    class Config(core.Config):
        """``vocabulary`` is the number of scores a token."""

        vocabulary: int = core.bound()
        dim: int = core.bound()
        linear: core.Config = core.linear(bias=False)

    axes = {"linear.weight": "vocabulary dim"}

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Score."""
        return self.linear(x)
