"""A mixture of experts that each take so many tokens of a sequence (Switch Transformers, arXiv:2101.03961, section 2.2)."""

from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from anyformer import core
from anyformer.parts.channel_mixers.experts import BALANCE, LOSS
from anyformer.parts.channel_mixers.mlp import MLP
from anyformer.parts.routers.switch import Switch


class Taken(core.State):
    """How many tokens of each row have asked for each expert."""

    counts: Tensor
    """(batch, experts), int64."""


class CappedExperts(core.ChannelMixer, name="capped_experts"):
    """The weighted sum of the outputs of each token's experts, of which each takes the first ``capacity`` tokens of a row.

    Tokens that come too late get zeros from that expert, so that the residual alone carries them; tokens that ``ctx.mask``
    keeps out ask for no expert and get zeros. The order of the tokens decides, never later ones, and rows do not compete,
    so that a stream whose state counts the tokens is the whole. Products have as many rows as an expert has tokens, so that
    what a token gets is the same up to rounding, not by the bit, whatever other rows hold.

    Collects the balance of what was asked for, before the capacity, as "load_balance": ``experts * sum(f * P)`` (eq. 4-6
    without the factor); and, where ``balance`` is not 0, that much of it as "load_balance_loss".

    Shapes: ``(batch, *grid, dim)`` to the same. Cost: that of the router, and of the experts that a token's routing names.
    """

    class Config(core.Config):
        """``experts`` may differ; where they are not given they are ``count`` perceptrons of ``ratio``.

        ``capacity`` is how many tokens of a row an expert takes. ``balance`` is the weight of the load's balance in the loss.
        """

        dim: int = core.bound()
        router: core.Config = Switch.Config()
        ratio: float = 4.0
        capacity: int
        balance: float = 0.0
        count: int = core.derived(lambda c: 8 if c.experts is None else len(c.experts))
        experts: tuple[core.Config, ...] = core.derived(lambda c: (MLP.Config(ratio=c.ratio),) * c.count)

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
        if config.capacity < 1:
            raise core.UsageError(f"experts of a capacity of {config.capacity} take no token; give at least 1")
        super().__init__(config)

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Route, count, gather, compute, sum."""
        return self._mixed(x, ctx, None)[0]

    def init_state(self, batch: int, capacity: int, like: Tensor) -> Taken:
        """Nothing is taken; for streams of any length."""
        return Taken(counts=like.new_zeros(batch, self.config.count, dtype=torch.int64))

    def stream(self, x: Tensor, ctx: core.Context, state: Taken) -> tuple[Tensor, Taken]:
        """The next tokens of a stream."""
        mixed, counts = self._mixed(x, ctx, state.counts)
        return mixed, Taken(counts=counts)

    def _mixed(self, x: Tensor, ctx: core.Context, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """The sums, and the counts after them."""
        if torch.compiler.is_exporting():
            raise core.UsageError(f"capped_experts cannot be exported: {self.refuses['export']}")
        config: CappedExperts.Config = self.config
        tokens = x.flatten(1, -2)
        keep = ctx.mask
        flat = tokens.flatten(0, 1) if keep is None else tokens[keep]
        chosen, weights, shares = self.router(flat, ctx)
        asked = (chosen[..., None] == torch.arange(config.count, device=x.device)).any(1)
        if ctx.sink is not None:
            balance = config.count * (asked.sum(0) * shares.sum(0)).sum() / max(len(flat), 1) ** 2
            ctx.collect(BALANCE, balance)
            if config.balance:
                ctx.collect(LOSS, config.balance * balance)
        if keep is None:
            rows = asked.view(*tokens.shape[:2], config.count)
        else:
            rows = asked.new_zeros(*keep.shape, config.count).masked_scatter(keep[..., None], asked)
        number, counts = _numbers(rows, before, ctx.offsets)
        number = number.flatten(0, 1) if keep is None else number[keep]
        absent = (chosen < 0) | (number.gather(1, chosen.clamp(min=0)) > config.capacity)
        mixed = self._served(flat, chosen.masked_fill(absent, -1), weights, ctx)
        if keep is not None:
            mixed = torch.zeros_like(tokens).masked_scatter(keep[..., None], mixed)
        return mixed.view(x.shape), counts

    def _served(self, x: Tensor, chosen: Tensor, weights: Tensor, ctx: core.Context) -> Tensor:
        """The sums for tokens in a row, of which entries of -1 name no expert."""
        absent, *sizes = _sizes(chosen, self.config.count)
        order = chosen.flatten().argsort(stable=True)[absent:]  # entries by expert
        token = order.div(chosen.shape[1], rounding_mode="floor")
        alone = core.Context(sink=ctx.sink)
        parts = zip(self.experts, x[token].split(sizes), strict=True)
        given = torch.cat([expert(part[None], alone)[0] for expert, part in parts])  # a row of the tokens that it takes
        return torch.zeros_like(x).index_add(0, token, given * weights.flatten()[order, None])


def _numbers(asked: Tensor, before: Tensor | None, offsets: Tensor | None) -> tuple[Tensor, Tensor]:
    """The number, from 1, of each token among those of its row or sequence that ask for an expert, and the counts at the end.

    Args:
        asked: (batch, tokens, experts), boolean.
        before: (batch, experts): what the row had asked for.
        offsets: the starts of packed sequences.
    """
    number = asked.cumsum(1)
    if before is not None:
        number = number + before[:, None]
    nothing = number.new_zeros(number.shape[0], 1, number.shape[2]) if before is None else before[:, None]
    counted = torch.cat((nothing, number), 1)
    if offsets is not None:
        sequence = torch.searchsorted(offsets, torch.arange(asked.shape[1], device=asked.device), right=True) - 1
        number = number - counted[:, offsets[sequence]]
    return number, counted[:, -1]


def _sizes(chosen: Tensor, count: int) -> list[int]:
    """How many entries are absent, and how many fell on each expert; equally many where there are no numbers."""
    if isinstance(chosen, FakeTensor) or chosen.is_meta:
        each, more = divmod(chosen.numel(), count)
        return [0, *(each + (expert < more) for expert in range(count))]
    return torch.bincount(chosen.flatten() + 1, minlength=count + 1).tolist()
