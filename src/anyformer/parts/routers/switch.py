"""Switch routing: every token to one expert (Switch Transformers, arXiv:2101.03961, section 2.1)."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.ops.segments import without_autocast
from anyformer.parts.routers.top_k import Routing

Z = "router_z"
Z_LOSS = "router_z_loss"


class Switch(core.Router, name="switch"):
    """One linear map scores the experts; the likeliest is taken, weighted by its probability among all of them; eq. 1-2.

    All of it is computed in float32 at least, whatever the model is in, under autocast too (selective precision, section
    2.4). Collects the mean square of the logarithm of the sum of exponentials as "router_z" (arXiv:2202.08906, by the name
    of transformers' code), and, where ``z`` is not 0, that much of it as "router_z_loss", which training adds to its loss.

    Shapes: ``(tokens, dim)`` to a :class:`~anyformer.parts.routers.top_k.Routing` of width 1. Cost: ``dim * experts``
    multiply-adds a token.
    """

    class Config(core.Config):
        """While training, the inputs are multiplied by numbers from ``1 - jitter`` to ``1 + jitter``."""

        dim: int = core.bound()
        experts: int = core.bound()
        jitter: float = 0.0
        z: float = 0.0
        linear: core.Config = core.linear(bias=False)

    axes = {"linear.weight": "experts dim"}
    reduces = ("experts",)
    fixed = {"experts": "an expert is a part of its own, which is left out whole"}
    collects = (Z, Z_LOSS)

    def __init__(self, config: Any) -> None:
        if not 0 <= config.jitter < 1:
            raise core.UsageError(f"jitter={config.jitter} would turn inputs round; give a number from 0 to below 1")
        super().__init__(config)

    def forward(self, x: Tensor, ctx: core.Context) -> Routing:
        """Route tokens that stand in a row."""
        config: Switch.Config = self.config
        precise = torch.promote_types(x.dtype, torch.float32)
        exact = x.to(precise)
        if self.training and config.jitter:
            exact = exact * torch.empty_like(exact).uniform_(1 - config.jitter, 1 + config.jitter)
        bias = self.linear.bias
        with without_autocast(x):
            scores = F.linear(exact, self.linear.weight.to(precise), None if bias is None else bias.to(precise))
        if ctx.sink is not None:
            z = scores.logsumexp(-1).square().sum() / max(len(x), 1)
            ctx.collect(Z, z)
            if config.z:
                ctx.collect(Z_LOSS, config.z * z)
        shares = scores.softmax(-1)
        weights, experts = shares.max(-1, keepdim=True)
        return Routing(experts, weights.to(x.dtype), shares)
