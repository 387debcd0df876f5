"""Classification heads: one vector an image, then one linear map."""

from torch import Tensor

from anyformer import core


class MeanPoolHead(core.Head, name="mean_pool_head"):
    """The mean over the tokens that ``ctx.mask`` keeps, a norm where one is given, then scores.

    Prefix tokens do not count. Without classes it gives the pooled features.

    Shapes: ``(batch, *grid, dim) -> (batch, num_classes)``.
    """

    class Config(core.Config):
        """``num_classes`` = 0 leaves the linear map out."""

        dim: int = core.bound()
        num_classes: int = 1000
        norm: core.Config | None = None
        linear: core.Config = core.linear()

    axes = {"linear.weight": "num_classes dim"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.num_classes == 0:
            self.linear = None

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Pool, normalise, score."""
        prefix = ctx.layout.prefix if ctx.layout is not None else 0
        tokens = x.flatten(1, -2)[:, prefix:]
        if ctx.mask is None:
            pooled = tokens.mean(dim=1)
        else:
            keep = ctx.mask[:, prefix:, None].to(x.dtype)
            pooled = (tokens * keep).sum(dim=1) / keep.sum(dim=1).clamp(min=1)
        if self.norm is not None:
            pooled = self.norm(pooled)
        return pooled if self.linear is None else self.linear(pooled)


class PrefixHead(core.Head, name="prefix_head"):
    """Scores from the first prefix token, the class token; without classes, that token.

    Shapes: ``(batch, prefix + tokens, dim) -> (batch, num_classes)``.
    """

    class Config(core.Config):
        """``num_classes`` = 0 leaves the linear map out."""

        dim: int = core.bound()
        num_classes: int = 1000
        linear: core.Config = core.linear()

    axes = {"linear.weight": "num_classes dim"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.num_classes == 0:
            self.linear = None

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Take the first token, score."""
        return x[:, 0] if self.linear is None else self.linear(x[:, 0])
