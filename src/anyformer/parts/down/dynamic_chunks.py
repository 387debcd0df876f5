"""Down to chunks of tokens whose borders are learnt (H-Net, arXiv:2507.07955, section 2.2; numbers from memory)."""

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from anyformer import core
from anyformer.ops.causal_attention import kept_first
from anyformer.parts.linear.linear import Linear

RATIO, LOSS = "ratio", "ratio_loss"


class Chunks(NamedTuple):
    """How tokens fell into chunks.

    Attributes:
        probability: (batch, tokens), of a chunk to start at each token; 0 where it does not count.
        starts: (batch, tokens), whether one does.
        chunk: (batch, tokens), the number of each token's chunk, of those that start here; 0 for one before these.
        weight: (batch, chunks), the probabilities of those that do.
        keep: (batch, chunks), which of them there are in each row; None for all.
        offsets: (sequences + 1,), the starts of packed sequences among the chunks.
    """

    probability: Tensor
    starts: Tensor
    chunk: Tensor
    weight: Tensor
    keep: Tensor | None
    offsets: Tensor | None


class RoutingState(core.State):
    """Where a stream of tokens stands.

    Attributes:
        last: (batch, dim), the last token that counted.
        count: (batch, 1), how many chunks have started; none as long as no token counted.
    """

    last: Tensor
    count: Tensor


class DynamicChunks(core.Down, name="dynamic_chunks"):
    """Keep the tokens that are unlike the one before them: ``p = (1 - cos(query(x_(t-1)), key(x_t))) / 2`` is a half or more.

    The first token of a text always starts a chunk. Rows with fewer chunks than others have pads behind them, and packed
    sequences stay packed. Hands the paper's ratio loss to ``ctx.collect`` as "ratio", ``n / (n - 1) * ((n - 1) f g + (1 - f)
    (1 - g))`` with the share of tokens ``f`` that start a chunk, their mean probability ``g``, and chunks of ``ratio = n``
    tokens aimed at, where it is 1; and ``loss`` times it as "ratio_loss", which training adds to its own.

    Shapes: ``(batch, tokens, dim) -> (batch, most chunks of a row, dim)``. Cost: ``2 * dim * keys`` multiply-adds a token, and
    sorting the tokens; where there are no numbers, ``ratio`` tokens count as one chunk.
    """

    class Config(core.Config):
        """``keys`` channels are compared; both maps start as the identity, whatever their slots say, if they are plain."""

        dim: int = core.bound()
        keys: int = core.derived(lambda c: c.dim)
        ratio: float
        loss: float = 0.03
        query: core.Config = core.linear(bias=False)
        key: core.Config = core.linear(bias=False)

    axes = {"query.weight": "keys dim", "key.weight": "keys dim"}
    reduces = ("keys",)
    collects = (RATIO, LOSS)
    refuses = {"export": "how many chunks there are depends on the data"}

    def __init__(self, config: Config) -> None:
        if not config.ratio > 1:
            raise core.UsageError(f"chunks of ratio={config.ratio} tokens are none; give more than 1")
        super().__init__(config)
        for part in (self.query, self.key):
            if isinstance(part, Linear):
                torch.nn.init.eye_(part.weight)

    def forward(self, x: Tensor, ctx: core.Context) -> tuple[Tensor, core.Context, Chunks]:
        """Whole rows, or packed sequences."""
        return self.stream(x, ctx, None)[:3]

    def init_state(self, batch: int, like: Tensor) -> RoutingState:
        """Before the first token."""
        return RoutingState(
            last=like.new_zeros(batch, self.config.dim),
            count=torch.zeros(batch, 1, dtype=torch.int64, device=like.device),
        )

    def stream(
        self, x: Tensor, ctx: core.Context, state: RoutingState | None
    ) -> tuple[Tensor, core.Context, Chunks, RoutingState]:
        """The next tokens, None being before the first."""
        if torch.compiler.is_exporting():
            raise core.UsageError(f"dynamic_chunks cannot be exported: {self.refuses['export']}")
        if ctx.mask is not None:
            x = x.masked_fill(~ctx.mask[..., None], 0.0)
        past = self.init_state(len(x), x) if state is None else state
        earlier, first, last = _earlier(x, ctx, past.last)
        wide = torch.promote_types(x.dtype, torch.float32)
        likeness = F.cosine_similarity(self.query(earlier).to(wide), self.key(x).to(wide), dim=-1)
        probability = torch.where(first & (past.count == 0), 1.0, (1 - likeness) / 2)
        if ctx.mask is not None:
            probability = probability.masked_fill(~ctx.mask, 0.0)
        starts = probability >= 0.5
        if ctx.sink is not None:
            self._collect(probability, starts, ctx)
        counts, keep, offsets, positions = starts.sum(1), None, None, None
        if ctx.offsets is None:
            most, fewest = self._extent(counts, x.shape[1])
            places = kept_first(starts)[:, :most]
            place = torch.arange(most, device=x.device)
            keep = None if most == fewest else place < counts[:, None]
            positions = None if state is None else place + state.count
        else:
            places = starts.nonzero()[None, :, 1]
            offsets = F.pad(starts[0].cumsum(0), (1, 0))[ctx.offsets]
            place = torch.arange(places.shape[1], device=x.device)
            positions = place - _start(place, offsets)
        kept = x.gather(1, places[..., None].expand(-1, -1, x.shape[2]))
        layout = core.Layout(grid=(places.shape[1],))
        inner = dataclasses.replace(ctx, layout=layout, mask=keep, offsets=offsets, positions=positions)
        trace = Chunks(probability, starts, starts.cumsum(1), probability.gather(1, places), keep, offsets)
        return kept, inner, trace, RoutingState(last=last, count=past.count + counts[:, None])

    def _extent(self, counts: Tensor, tokens: int) -> tuple[int, int]:
        """The most and the fewest chunks of a row."""
        if isinstance(counts, FakeTensor) or counts.is_meta:
            return (aimed := -int(-tokens // self.config.ratio)), aimed
        known = counts.tolist()
        return max(known, default=0), min(known, default=0)

    def _collect(self, probability: Tensor, starts: Tensor, ctx: core.Context) -> None:
        tokens = max(starts.numel(), 1) if ctx.mask is None else ctx.mask.sum().clamp(min=1)
        share, mean = (x.to(probability).sum() / tokens for x in (starts, probability))
        n = self.config.ratio
        ratio = n / (n - 1) * ((n - 1) * share * mean + (1 - share) * (1 - mean))
        ctx.collect(RATIO, ratio)
        ctx.collect(LOSS, self.config.loss * ratio)


def _earlier(x: Tensor, ctx: core.Context, last: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each token the one that counts before it, whether there is none in its sequence here, and the last of a row."""
    place = torch.arange(x.shape[1], device=x.device)
    seen = torch.cat((last[:, None].to(x.dtype), x), 1)
    start = 0 if ctx.offsets is None else _start(place, ctx.offsets)
    if ctx.mask is None:
        return seen[:, :-1], place <= start, seen[:, -1]
    counted = torch.where(ctx.mask, place + 1, 0).cummax(1).values  # places in seen, whose first is the one before all
    counted = F.pad(counted, (1, 0))[..., None].expand(-1, -1, x.shape[2])
    found = seen.gather(1, counted)
    return found[:, :-1], counted[:, :-1, 0] <= start, found[:, -1]


def _start(place: Tensor, offsets: Tensor) -> Tensor:
    """Where the packed sequence of each place starts."""
    return offsets[torch.searchsorted(offsets, place, right=True) - 1]
