"""Form: an algorithm is a pure function, held against an oracle that tries everything.

Bipartite soft matching of Token Merging (arXiv:2210.09461, section 3): the tokens are dealt into two sets, each of the
first is paired with its likest of the second, and the likest pairs become one token.
"""

import itertools
from typing import NamedTuple

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F


class Matching(NamedTuple):
    """Pairs ``(batch, merges)`` of token numbers: ``source`` goes into ``target``."""

    source: Tensor
    target: Tensor


def match(keys: Tensor, merges: int) -> Matching:
    """The ``merges`` likest pairs of an even-numbered token and an odd-numbered one, each source in one pair.

    Args:
        keys: ``(batch, tokens, channels)``; cosine similarity says how alike two tokens are.
        merges: at most the number of even-numbered tokens, 0 where there are no odd-numbered ones.

    Cost: ``batch * tokens^2 / 4 * channels`` multiply-adds, and a sort.
    """
    keys = F.normalize(keys, dim=-1)
    best, target = (keys[:, ::2] @ keys[:, 1::2].mT).max(dim=-1)
    source = best.argsort(dim=1, descending=True)[:, :merges]
    return Matching(2 * source, 2 * target.gather(1, source) + 1)


def merge(x: Tensor, sizes: Tensor, pairs: Matching) -> tuple[Tensor, Tensor]:
    """The means of what was merged, weighted by how many tokens each stands for, in the order of the tokens.

    Shapes: ``(batch, tokens, channels)``, ``(batch, tokens)`` -> the same with ``tokens - merges`` tokens.
    """
    batch, tokens, channels = x.shape
    weights = sizes.scatter_add(1, pairs.target, sizes.gather(1, pairs.source))
    moved = (x * sizes[..., None]).gather(1, pairs.source[..., None].expand(-1, -1, channels))
    sums = (x * sizes[..., None]).scatter_add(1, pairs.target[..., None].expand(-1, -1, channels), moved)
    stays = torch.ones(batch, tokens, dtype=torch.bool).scatter(1, pairs.source, False)
    kept = tokens - pairs.source.shape[1]
    return (sums / weights[..., None])[stays].view(batch, kept, channels), weights[stays].view(batch, kept)


def most_alike(keys: Tensor, merges: int) -> float:
    """The oracle, for one row: the largest total similarity of all ways to merge so many even tokens into odd ones."""
    likeness = F.cosine_similarity(keys[:, None], keys[None, :], dim=-1).tolist()
    odd = range(1, len(keys), 2)
    return max(
        sum(likeness[source][target] for source, target in zip(sources, targets, strict=True))
        for sources in itertools.combinations(range(0, len(keys), 2), merges)
        for targets in itertools.product(odd, repeat=merges)
    )


@st.composite
def tokens(draw: st.DrawFn) -> tuple[Tensor, int]:
    count = draw(st.integers(2, 7))
    shape = (draw(st.integers(1, 3)), count, draw(st.integers(1, 4)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randn(shape, generator=generator, dtype=torch.float64), draw(st.integers(0, (count + 1) // 2))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(tokens())
def test_no_other_matching_is_more_alike(case):
    keys, merges = case
    pairs = match(keys, merges)
    for row, source, target in zip(keys, *pairs, strict=True):
        assert len(set(source.tolist())) == merges
        assert all(s % 2 == 0 and t % 2 == 1 for s, t in zip(source.tolist(), target.tolist(), strict=True))
        found = F.cosine_similarity(row[source], row[target], dim=-1).sum().item()
        assert abs(found - most_alike(row, merges)) < 1e-9


@settings(max_examples=60, deadline=None, derandomize=True)
@given(tokens())
def test_merging_equals_merging_by_hand_and_loses_nothing(case):
    x, merges = case
    sizes = torch.randint(1, 5, x.shape[:2], generator=torch.Generator().manual_seed(0)).double()
    pairs = match(x, merges)
    merged, weights = merge(x, sizes, pairs)
    torch.testing.assert_close((merged * weights[..., None]).sum(1), (x * sizes[..., None]).sum(1), rtol=0, atol=1e-12)
    assert torch.equal(weights.sum(1), sizes.sum(1))
    for row in range(len(x)):
        groups = {token: [token] for token in range(x.shape[1])}
        for source, target in zip(pairs.source[row].tolist(), pairs.target[row].tolist(), strict=True):
            groups[target] += groups.pop(source)
        for position, group in enumerate(groups.values()):
            mean = (x[row, group] * sizes[row, group, None]).sum(0) / sizes[row, group].sum()
            torch.testing.assert_close(merged[row, position], mean, rtol=0, atol=1e-12)


def test_equal_tokens_merge_without_a_trace():
    """Two copies of each token, side by side: merging half of them gives each token once, for two."""
    once = torch.randn(2, 4, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    twice = once.repeat_interleave(2, dim=1)
    merged, weights = merge(twice, torch.ones(2, 8, dtype=torch.float64), match(twice, 4))
    torch.testing.assert_close(merged, once)
    assert (weights == 2).all()
