"""Form: a down part that keeps a data-dependent set of tokens, and the up part that puts them back.

As in H-Net (arXiv:2507.07955, section 2.2): a token starts a chunk where it differs from the one before it; only chunk
starts go on; afterwards every token gets the output of its chunk, smoothed where the start was in doubt.
"""

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.parts.positions.rotary import Rotary
from anyformer.parts.token_mixers.grouped_query_attention import GroupedQueryAttention


class Chunks(NamedTuple):
    """The trace: which tokens start a chunk, and how probable that was, both ``(batch, tokens)``."""

    starts: Tensor
    probability: Tensor


class ToyChunk(core.Down, name="toy_chunk"):
    """Keep the tokens that start a chunk; rows with fewer of them are filled up and masked.

    Shapes: ``(batch, tokens, dim) -> (batch, most starts in a row, dim)``. Equation 4.
    """

    class Config(core.Config):
        dim: int = core.bound()
        query: core.Config = core.linear(bias=False)
        key: core.Config = core.linear(bias=False)

    axes = {"query.weight": "dim dim", "key.weight": "dim dim"}
    refuses = {"export": "the number of tokens that it keeps depends on the data"}

    def forward(self, x: Tensor, ctx: core.Context) -> tuple[Tensor, core.Context, Chunks]:
        likeness = F.cosine_similarity(self.query(x[:, 1:]), self.key(x[:, :-1]), dim=-1)
        probability = F.pad((1 - likeness) / 2, (1, 0), value=1.0)
        starts = probability >= 0.5
        counts = starts.sum(dim=1)
        longest = int(counts.max())
        positions = starts.int().argsort(dim=1, descending=True, stable=True)[:, :longest]
        kept = x.gather(1, positions[..., None].expand(-1, -1, x.shape[2]))
        mask = torch.arange(longest, device=x.device) < counts[:, None]
        inner = dataclasses.replace(ctx, layout=core.Layout((longest,)), mask=mask, positions=positions)
        return kept, inner, Chunks(starts, probability)


class ToyUnchunk(core.Up, name="toy_unchunk"):
    """Smooth the chunks' vectors, ``z_j = p_j x_j + (1 - p_j) z_(j-1)``, and give each token that of its chunk.

    The choice passes its gradient straight through. Cost: O(tokens log tokens), no loop over tokens. Equations 5 to 8.
    """

    class Config(core.Config):
        pass

    def forward(self, x: Tensor, trace: Chunks) -> Tensor:
        positions = trace.starts.int().argsort(dim=1, descending=True, stable=True)[:, : x.shape[1]]
        weight = trace.probability.gather(1, positions)[..., None]
        carried, smooth, step = 1 - weight, weight * x, 1
        while step < x.shape[1]:  # a scan by doubling
            smooth = smooth + carried * F.pad(smooth, (0, 0, step, 0))[:, :-step]
            carried = carried * F.pad(carried, (0, 0, step, 0))[:, :-step]
            step *= 2
        chunk = trace.starts.cumsum(dim=1) - 1
        spread = smooth.gather(1, chunk[..., None].expand(-1, -1, x.shape[2]))
        confidence = torch.where(trace.starts, trace.probability, 1 - trace.probability)[..., None]
        return spread * (confidence + (1 - confidence).detach())


class ToyHourglass(core.Block, name="toy_hourglass"):
    """Down, a mixer on what is left, up, beside a residual."""

    class Config(core.Config):
        dim: int = core.bound()
        down: core.Config
        mixer: core.Config
        up: core.Config

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        inner, inner_ctx, trace = self.down(x, ctx)
        return x + self.up(self.mixer(inner, inner_ctx), trace)


def made() -> core.Part:
    torch.manual_seed(0)
    mixer = GroupedQueryAttention.Config(kv_heads=2, position=Rotary.Config())
    block = core.build(ToyHourglass.Config(dim=8, down=ToyChunk.Config(), mixer=mixer, up=ToyUnchunk.Config())).double()
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return block


def by_row(block: core.Part, row: Tensor) -> tuple[Tensor, int]:
    """The same for one row ``(tokens, dim)``, as the equations are read aloud."""
    starts, probabilities = [0], [1.0]
    for t in range(1, len(row)):
        likeness = F.cosine_similarity(block.down.query(row[t]), block.down.key(row[t - 1]), dim=0)
        probabilities.append((1 - likeness.item()) / 2)
        if probabilities[t] >= 0.5:
            starts.append(t)
    inner = block.mixer(row[None, starts], core.Context(positions=torch.tensor([starts])))[0]
    smooth, outputs = torch.zeros_like(row[0]), []
    for t in range(len(row)):
        if t in starts:
            smooth = probabilities[t] * inner[starts.index(t)] + (1 - probabilities[t]) * smooth
        outputs.append(row[t] + smooth)
    return torch.stack(outputs), len(starts)


X = torch.randn(5, 13, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_every_row_is_as_if_it_were_alone():
    block = made()
    rows, counts = zip(*(by_row(block, row) for row in X), strict=True)
    assert len(set(counts)) > 2, counts
    torch.testing.assert_close(block(X, core.Context()), torch.stack(rows), rtol=0, atol=1e-12)


def test_down_returns_context_of_what_it_keeps():
    block = made()
    kept, ctx, trace = block.down(X, core.Context())
    for row in range(len(X)):
        count = int(ctx.mask[row].sum())
        assert count == int(trace.starts[row].sum())
        assert torch.equal(kept[row, :count], X[row, trace.starts[row]])
        assert torch.equal(ctx.positions[row, :count], trace.starts[row].nonzero()[:, 0])
    assert ctx.layout.tokens == kept.shape[1] < X.shape[1]


def test_later_tokens_never_change_earlier_ones():
    """Although they change how many tokens are kept, and so all shapes inside."""
    block, other = made(), X.clone()
    other[:, 9:] = torch.randn_like(other[:, 9:])
    before, after = block(X, core.Context()), block(other, core.Context())
    torch.testing.assert_close(before[:, :9], after[:, :9], rtol=0, atol=1e-12)
    assert (before[:, 9:] - after[:, 9:]).abs().max() > 0.1


def test_every_token_teaches_its_boundary_score():
    """Those that start no chunk too: the choice is discrete, so their gradient goes straight through it."""
    generator = torch.Generator().manual_seed(2)
    probability = torch.rand(2, 9, generator=generator, dtype=torch.float64).requires_grad_()
    starts = (probability >= 0.5) | (torch.arange(9) == 0)
    chunks = torch.randn(2, int(starts.sum(1).max()), 4, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(
        ToyUnchunk.Config().build()(chunks, Chunks(starts, probability)).sum(), probability
    )
    assert (gradient != 0).all()


def test_boundary_scores_learn():
    """Gradients reach the scores, and following them lessens the loss, though the choice itself is discrete."""
    block = made()
    down = block.down.parameters()
    optimizer = torch.optim.SGD(down, 0.05)
    target, losses = torch.randn_like(X), []
    for _ in range(30):
        loss = (block(X, core.Context()) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-5:]) < 0.95 * losses[0], losses
