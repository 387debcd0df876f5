"""Gated linear attention is its recurrence, whole or as a stream, padded or packed."""

import pytest
import torch

from .build_part import build, on_grid, random
from .linear_mixers import CHECKS, DIM, heads, heads_are_cut_by_their_axis, rms, silu


def made(**settings):
    return build("gated_linear_attention", **{"dim": DIM, "heads": 2, "key": 3, "value": 4, "rank": 2, **settings})


def written_out(part, x):
    """Equation 3 and section 4.4, token by token; decays are roots of sigmoids."""
    c, out = part.config, []
    keys, values = c.heads * c.key, c.heads * c.value
    for row in x:
        q, k, v, gate, low = (row @ part.in_proj.weight.T).split((keys, keys, values, values, c.rank), -1)
        decay = torch.sigmoid(low @ part.decay_proj.weight.T + part.decay_proj.bias) ** (1 / c.normalizer)
        q, k, v, decay = (heads(tensor, c.heads) for tensor in (q, k, v, decay))
        state, ys = torch.zeros(c.heads, c.key, c.value, dtype=x.dtype), []
        for t in range(len(row)):
            state = decay[:, t, :, None] * state + k[:, t, :, None] * v[:, t, None, :]
            ys.append((rms(part.norm, (c.scale * q[:, t, :, None] * state).sum(1))).flatten())
        out.append((torch.stack(ys) * silu(gate)) @ part.out_proj.weight.T)
    return torch.stack(out)


@pytest.mark.parametrize("settings", [{}, {"heads": 1, "key": 5, "value": 2, "normalizer": 1.0, "scale": 2.0}])
def test_as_written_out(settings):
    part, x = made(**settings), random(2, 9, DIM)
    torch.testing.assert_close(part(x, on_grid(9)), written_out(part, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_holds_that(check):
    check(made())


def test_heads_are_cut():
    heads_are_cut_by_their_axis(made(heads=4), [2, 0])


def test_keys_have_half_the_channels():
    part = build("gated_linear_attention", dim=32, heads=2)
    assert (part.config.key, part.config.value, part.config.rank, part.config.scale) == (8, 16, 16, 8**-0.5)
    assert part.init_state(3, 1, random(1)).memory.shape == (3, 2, 8, 16)
