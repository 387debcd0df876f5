"""A mixture of experts: channel mixers of which each token sees a few (Shazeer et al. 2017, arXiv:1701.06538)."""

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from anyformer import core
from anyformer.ops.matrix_vector import asked
from anyformer.parts.channel_mixers.gated_mlp import GatedMLP
from anyformer.parts.routers.top_k import TopK

BALANCE = "load_balance"
LOSS = "load_balance_loss"


class Experts(core.ChannelMixer, name="experts"):
    """The weighted sum of the outputs of each token's experts, which a router chooses; eq. 1.

    The tokens of an expert are gathered and pass it together; no expert sees others, none has a capacity, and tokens that
    ``ctx.mask`` keeps out go nowhere and give zeros. A router may give tokens different numbers of experts, or none, by
    absent entries (see :class:`~anyformer.parts.routers.top_k.Routing`), which cost no expert anything. The number of an
    expert's tokens follows from the data, so its products may take other kernels when other tokens change, and what a token
    gets is the same up to rounding, not by the bit.

    Hands the balance of the load to ``ctx.collect`` as "load_balance": ``experts * sum(f * P)`` with ``f`` the choices of an
    expert over the tokens and ``P`` its mean share (arXiv:2101.03961, eq. 4-6, without the factor), which for ``k`` experts
    a token is ``k`` where the load is balanced and more where it is not; and, where ``balance`` is not 0, that much of it as
    "load_balance_loss", which training adds to its loss.

    Shapes: ``(batch, *grid, dim)`` to the same. Cost: that of ``k`` experts and of the router a token, and sorting
    ``k * tokens`` numbers, with ``k`` the width of the routing; where there are no numbers, none of it counts as absent.
    """

    class Config(core.Config):
        """``experts`` may differ; where they are not given they are ``count`` gated perceptrons of ``ratio``.

        ``balance`` is the weight of the load's balance in the loss.
        """

        dim: int = core.bound()
        router: core.Config = TopK.Config()
        ratio: float = 8 / 3
        balance: float = 0.0
        count: int = core.derived(lambda c: 8 if c.experts is None else len(c.experts))
        experts: tuple[core.Config, ...] = core.derived(lambda c: (GatedMLP.Config(ratio=c.ratio),) * c.count)

    collects = (BALANCE, LOSS)
    refuses = {"export": "how many tokens an expert has depends on the data"}

    @classmethod
    def binds(cls, config: Any) -> dict[str, dict[str, str]]:
        """The router scores as many experts as there are."""
        return {"router": {"experts": "count"}}

    def __init__(self, config: Config) -> None:
        if not config.experts or len(config.experts) != config.count:
            raise core.UsageError(
                f"there are {len(config.experts)} experts, but count={config.count}; give at least one"
            )
        super().__init__(config)

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Route, gather, compute, sum."""
        if torch.compiler.is_exporting():
            raise core.UsageError(f"experts cannot be exported: {self.refuses['export']}")
        if ctx.mask is None:
            return self._mixed(x.flatten(0, -2), ctx).view(x.shape)
        keep = ctx.mask.reshape(x.shape[:-1])
        # what is masked may be anything, so it is overwritten, not multiplied
        return torch.zeros_like(x).masked_scatter(keep[..., None], self._mixed(x[keep], ctx))

    def _mixed(self, x: Tensor, ctx: core.Context) -> Tensor:
        """The sums for tokens that all count, ``(tokens, dim)``."""
        chosen, weights, shares = self.router(x, ctx)
        k, count = chosen.shape[1], len(self.experts)
        if ctx.sink is not None:
            load = (chosen[..., None] == torch.arange(count, device=x.device)).sum((0, 1))
            balance = count * (load * shares.sum(0)).sum() / max(len(x), 1) ** 2
            ctx.collect(BALANCE, balance)
            if self.config.balance:
                ctx.collect(LOSS, self.config.balance * balance)
        if len(x) == 1 and asked():
            return self._of_one(x, chosen[0], weights[0], core.Context(sink=ctx.sink))
        absent, *sizes = _sizes(chosen, count)
        order = chosen.flatten().argsort(stable=True)[absent:]  # entries by expert; each token has k of them
        alone = core.Context(sink=ctx.sink)
        parts = x[order.div(k, rounding_mode="floor")].split(sizes)
        mixed = [expert(part, alone) for expert, part in zip(self.experts, parts, strict=True)]
        # what is absent reads a row of zeros that stands before all others
        mixed = torch.cat([x.new_zeros(1 if absent else 0, x.shape[1]), *mixed])
        places = torch.arange(len(mixed) - len(order), len(mixed), device=x.device)
        back = order.new_zeros(chosen.numel()).scatter_(0, order, places)
        return (weights[..., None] * mixed[back].view(len(x), k, x.shape[1])).sum(1)

    def _of_one(self, x: Tensor, chosen: Tensor, weights: Tensor, ctx: core.Context) -> Tensor:
        """The sum for one token, as in decoding: nothing to gather, and nobody else to call."""
        mixed = torch.zeros_like(x)
        for expert, weight in zip(chosen.tolist(), weights, strict=True):
            if expert >= 0:
                mixed = mixed + weight * self.experts[expert](x, ctx)
        return mixed


def _sizes(chosen: Tensor, count: int) -> list[int]:
    """How many entries are absent, and how many fell on each expert; equally many where there are no numbers."""
    if isinstance(chosen, FakeTensor) or chosen.is_meta:
        each, more = divmod(chosen.numel(), count)
        return [0, *(each + (expert < more) for expert in range(count))]
    return torch.bincount(chosen.flatten() + 1, minlength=count + 1).tolist()
