"""Token embeddings with learned absolute positions: one vector a token, one a place (GPT, Radford et al. 2018)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.parts.embeds.token_table import Tokens, TokenTable


class PositionedTokenTable(core.Embed, name="positioned_token_table"):
    """The vector of the token plus the vector of its place among the tokens of its row that count.

    Shapes: ``(batch, tokens)`` whole numbers, or :class:`~anyformer.parts.embeds.token_table.Tokens` ->
    ``(batch, tokens, dim)``. A head is tied to it by ``shared(path="embed.tokens.table")``. Places are counted anew in every
    packed sequence, and not at pads. Errors: UsageError for a text longer than ``context``.
    """

    class Config(core.Config):
        """``context`` is the number of places; ``init`` is how their vectors start."""

        vocabulary: int = core.bound()
        dim: int = core.bound()
        context: int
        tokens: core.Config = TokenTable.Config()
        init: core.Init = core.Init("normal", 0.02)

    axes = {"positions": "context dim"}
    fixed = {"context": "its indices are places, not channels"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.positions = self.parameter("positions", config.init)

    def forward(self, raw: Tensor | Tokens) -> tuple[Tensor, core.Context]:
        """Look up, and add the vectors of the places."""
        return self.stream(raw, 0)

    def stream(self, raw: Tensor | Tokens, seen: int | Tensor) -> tuple[Tensor, core.Context]:
        """The next tokens of a stream, of which ``seen`` counted before: a number, or ``(batch, 1)`` where rows differ.

        Where they differ the limit is checked against the data, which waits for an accelerator.
        """
        x, ctx = self.tokens(raw)
        tokens, limit = x.shape[1], self.config.context
        places = (torch.arange(tokens, device=x.device) if ctx.positions is None else ctx.positions) + seen
        if isinstance(seen, int) and (ctx.positions is None or seen + tokens <= limit):
            longest = seen + tokens
        else:
            longest = int(places.max()) + 1 if places.numel() else 0
        if longest > limit:
            raise core.UsageError(
                f"a text of {longest} tokens has more than the {limit} places that this model learnt; give a shorter one, "
                f"or make the model with a larger embed.context"
            )
        return x + F.embedding(places, self.positions), ctx
