"""Rotary positions: products of queries and keys depend on how far apart they are, and on nothing else."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer import core

from .build_part import build, config, random

places = st.integers(0, 200)


def turned(part, x, place):
    return part(x[None, None, None], torch.tensor([place]))[0, 0, 0]


@settings(deadline=None, derandomize=True, max_examples=50)
@given(places, places, places, st.sampled_from((2, 8, 64)))
def test_products_depend_on_distances(m, n, shift, head_dim):
    part = build("rotary", head_dim=head_dim)
    q, k = random(head_dim), random(head_dim)
    here, there = turned(part, q, m) @ turned(part, k, n), turned(part, q, m + shift) @ turned(part, k, n + shift)
    assert torch.allclose(here, there, rtol=1e-9, atol=1e-9)


def test_a_pair_is_turned_by_its_frequency():
    part = build("rotary", head_dim=6, base=100.0)
    frequencies = [1.0, 100 ** (-1 / 3), 100 ** (-2 / 3)]
    for pair, frequency in enumerate(frequencies):
        x = torch.zeros(6, dtype=torch.float64)
        x[pair] = 1.0
        y = turned(part, x, 5)
        angle = 5 * frequency
        expected = torch.zeros(6, dtype=torch.float64)
        expected[pair], expected[pair + 3] = math.cos(angle), math.sin(angle)
        assert torch.allclose(y, expected, atol=1e-12), "channel i is paired with i + half"


def test_lengths_are_kept_and_the_first_position_turns_nothing():
    part = build("rotary", head_dim=8)
    x = random(2, 3, 10, 8)
    y = part(x, torch.arange(10))
    assert torch.allclose(y.norm(dim=-1), x.norm(dim=-1), rtol=1e-12)
    assert torch.equal(y[:, :, 0], x[:, :, 0])
    assert not torch.allclose(y[:, :, 1:], x[:, :, 1:])


def test_every_row_may_have_positions_of_its_own():
    part = build("rotary", head_dim=4)
    x, positions = random(2, 3, 5, 4), torch.tensor([[0, 1, 2, 3, 4], [9, 9, 1, 0, 7]])
    both = part(x, positions[:, None])
    for row in range(2):
        assert torch.equal(both[row], part(x[row : row + 1], positions[row])[0])


def test_the_pairs_are_stored_with_the_weights_and_no_precision_rounds_them():
    part, x = build("rotary", head_dim=8), torch.ones(1, 1, 1, 8)
    assert list(part.state_dict()) == ["pair"]
    before = part(x, torch.tensor([100]))
    assert torch.equal(part.bfloat16()(x, torch.tensor([100])), before)


def test_half_precision_loses_no_positions():
    """Angles are computed in float32 at least: bfloat16 cannot tell position 257 from 256."""
    part = build("rotary", head_dim=4).float()
    x = torch.ones(1, 1, 2, 4, dtype=torch.bfloat16)
    y = part(x, torch.tensor([256, 257]))
    assert y.dtype == torch.bfloat16
    assert not torch.equal(y[0, 0, 0], y[0, 0, 1])


def test_an_odd_width_has_no_pairs():
    with pytest.raises(core.UsageError, match=r"\(rotary\): head_dim is 5, but '2 half' is 4"):
        core.resolve(config("rotary", head_dim=5))
