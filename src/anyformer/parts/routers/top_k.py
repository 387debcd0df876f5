"""Routing of each token to the few experts that score highest (Shazeer et al. 2017, arXiv:1701.06538)."""

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from anyformer import core


class Routing(NamedTuple):
    """Which experts see which token.

    An entry may be absent, so that tokens have different numbers of experts, or none: its expert is -1, its weight 0.

    Attributes:
        experts: (tokens, k), the numbers of a token's experts, the highest score first.
        weights: (tokens, k), what their outputs are multiplied by, in the dtype of the features.
        shares: (tokens, experts), the softmax of all scores, float32 at least.
    """

    experts: Tensor
    weights: Tensor
    shares: Tensor


class TopK(core.Router, name="top_k"):
    """One linear map scores the experts; the ``k`` highest are taken, weighted by a softmax.

    ``over`` "all": the softmax runs over all experts and the weights of those that were taken are what they are (Switch
    Transformer, arXiv:2101.03961, eq. 1-2; Jamba's code). "chosen": it runs over those that were taken, so that the weights
    sum to 1 (arXiv:1701.06538, eq. 3-5; Mixtral, arXiv:2401.04088), which is the same as dividing the others by their sum.

    Shapes: ``(tokens, dim)`` to a :class:`Routing`. Cost: ``dim * experts`` multiply-adds a token.
    """

    class Config(core.Config):
        """``k`` experts a token."""

        dim: int = core.bound()
        experts: int = core.bound()
        k: int = 2
        over: Literal["all", "chosen"] = "chosen"
        linear: core.Config = core.linear(bias=False)

    axes = {"linear.weight": "experts dim"}
    reduces = ("experts",)
    fixed = {"experts": "an expert is a part of its own, which is left out whole"}

    def __init__(self, config: Any) -> None:
        if not 1 <= config.k <= config.experts:
            raise core.UsageError(f"a token goes to 1 to {config.experts} experts, not to k={config.k}")
        super().__init__(config)

    def forward(self, x: Tensor, ctx: core.Context) -> Routing:
        """Route tokens that stand in a row."""
        scores = self.linear(x)
        precise = torch.promote_types(scores.dtype, torch.float32)
        shares = scores.softmax(-1, dtype=precise)
        weights, experts = shares.topk(self.config.k)
        if self.config.over == "chosen":
            weights = scores.gather(-1, experts).softmax(-1, dtype=precise)
        return Routing(experts, weights.to(x.dtype), shares)
