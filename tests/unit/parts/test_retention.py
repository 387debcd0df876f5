"""Retention is its recurrence, whole or as a stream, padded or packed."""

import math

import pytest
import torch

from .build_part import build, on_grid, random
from .linear_mixers import CHECKS, DIM, heads, heads_are_cut_by_their_axis, rms, silu


def made(**settings):
    return build("retention", **{"dim": DIM, "heads": 2, "key": 4, "value": 3, **settings})


def turned(x, base):
    """Equation 34 of RoFormer with complex numbers; (heads, tokens, key)."""
    half = x.shape[-1] // 2
    pairs = torch.complex(x[..., :half], x[..., half:])
    angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None] * base ** -(torch.arange(half, dtype=x.dtype) / half)
    pairs = pairs * torch.polar(torch.ones_like(angle), angle)
    return torch.cat((pairs.real, pairs.imag), -1)


def written_out(part, x):
    """Equation 6 and 8, token by token."""
    c, out = part.config, []
    keys, values = c.heads * c.key, c.heads * c.value
    kept = torch.tensor([1 - 2.0 ** (-5 - head) for head in range(c.heads)], dtype=x.dtype)[:, None, None]
    for row in x:
        q, k, v, gate = (row @ part.in_proj.weight.T).split((keys, keys, values, values), -1)
        q, k = (turned(heads(tensor, c.heads), part.position.config.base) for tensor in (q, k))
        v = heads(v, c.heads)
        state, ys = torch.zeros(c.heads, c.key, c.value, dtype=x.dtype), []
        for t in range(len(row)):
            state = kept * state + k[:, t, :, None] * v[:, t, None, :]
            ys.append(rms(part.norm, (c.scale * q[:, t, :, None] * state).sum(1)).flatten())
        out.append((torch.stack(ys) * silu(gate)) @ part.out_proj.weight.T)
    return torch.stack(out)


@pytest.mark.parametrize("settings", [{}, {"heads": 3, "key": 2, "value": 5, "scale": 2.0}])
def test_as_written_out(settings):
    part, x = made(**settings), random(2, 9, DIM)
    torch.testing.assert_close(part(x, on_grid(9)), written_out(part, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_holds_that(check):
    check(made())


def test_kept_heads_keep_their_pace():
    heads_are_cut_by_their_axis(made(heads=4), [3, 1])


def test_distances_alone_count():
    """Shifted by a number of positions, queries and keys meet as before."""
    part, x = made(), random(1, 9, DIM)
    y = part(x, on_grid(9, positions=torch.arange(9) + 100))
    torch.testing.assert_close(y, part(x, on_grid(9)), rtol=1e-9, atol=1e-9)


def test_values_have_twice_the_channels():
    config = build("retention", dim=32, heads=2).config
    assert (config.key, config.value, config.scale) == (16, 32, 1 / math.sqrt(16))
