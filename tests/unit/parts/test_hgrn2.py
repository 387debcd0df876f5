"""HGRN2 is its recurrence, whole or as a stream, padded or packed."""

import pytest
import torch

from .build_part import build, config, on_grid, random
from .linear_mixers import CHECKS, DIM, heads, rms, silu
from .test_hgrn import floor_of


def made(layer=2, **settings):
    floors = config("forget_floors", layers=4)
    return build(
        "hgrn2", **{"dim": DIM, "heads": 2, "key": 3, "value": 4, "layer": layer, "floors": floors, **settings}
    )


def written_out(part, x, floor):
    """Section 3.2, token by token."""
    c, out = part.config, []
    keys, values = c.heads * c.key, c.heads * c.value
    for row in x:
        q, forget, v = (row @ part.in_proj.weight.T).split((keys, keys, values), -1)
        kept = floor + (1 - floor) * torch.sigmoid(forget)
        q, kept, v = (heads(tensor, c.heads) for tensor in (silu(q), kept, v))
        state, ys = torch.zeros(c.heads, c.key, c.value, dtype=x.dtype), []
        for t in range(len(row)):
            state = kept[:, t, :, None] * state + (1 - kept[:, t, :, None]) * v[:, t, None, :]
            ys.append((c.scale * q[:, t, :, None] * state).sum(1).flatten())
        out.append(rms(part.norm, torch.stack(ys)) @ part.out_proj.weight.T)
    return torch.stack(out)


@pytest.mark.parametrize("layer", [0, 1, 3])
def test_as_written_out(layer):
    part, x = made(layer), random(2, 9, DIM)
    torch.testing.assert_close(part(x, on_grid(9)), written_out(part, x, floor_of(part)), rtol=1e-10, atol=1e-10)


def test_without_floors_gates_start_at_0():
    part, x = made(floors=None), random(2, 9, DIM)
    torch.testing.assert_close(part(x, on_grid(9)), written_out(part, x, 0.0), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_holds_that(check):
    check(made())


def test_a_memory_as_wide_as_the_model():
    part = build("hgrn2", dim=32, heads=2)
    assert (part.config.key, part.config.value, part.norm.weight.shape) == (16, 16, (32,))
