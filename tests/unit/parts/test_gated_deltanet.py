"""Gated DeltaNet is its recurrence, whole or as a stream, padded or packed."""

import pytest
import torch
from torch.nn import functional as F

from anyformer import core
from anyformer.core import registry

from .build_part import build, on_grid, random
from .linear_mixers import CHECKS, DIM, convolved, heads, heads_are_cut_by_their_axis, rms, silu


def made(**settings):
    return build("gated_deltanet", **{"dim": DIM, "heads": 2, "key": 3, "value": 4, **settings})


def unit(x, eps):
    return x / (x.square().sum(-1, keepdim=True) + eps).sqrt()


def written_out(part, x):
    """Equation 10 of arXiv:2412.06464, token by token, as a product with ``a (1 - beta k k^T)``."""
    c, out = part.config, []
    keys, values = c.heads * c.key, c.heads * c.value
    one = torch.eye(c.key, dtype=x.dtype)
    for row in x:
        qkv, gate, beta = (row @ part.in_proj.weight.T).split((2 * keys + values, values, c.heads), -1)
        q, k, v = (
            heads(tensor, c.heads) for tensor in convolved(part.convolution, qkv).split((keys, keys, values), -1)
        )
        q, k, beta = unit(q, c.eps), unit(k, c.eps), torch.sigmoid(beta)
        step = torch.log1p(torch.exp(row @ part.step_proj.weight.T + part.step_proj.bias))
        kept = torch.exp(-torch.exp(part.log_rates) * step)
        state, ys = torch.zeros(c.heads, c.key, c.value, dtype=x.dtype), []
        for t in range(len(row)):
            key, share = k[:, t], beta[t, :, None, None]
            state = kept[t, :, None, None] * (one - share * key[:, :, None] * key[:, None, :]) @ state
            state = state + share * key[:, :, None] * v[:, t, None, :]
            ys.append(rms(part.norm, (c.scale * q[:, t, :, None] * state).sum(1)).flatten())
        out.append((torch.stack(ys) * silu(gate)) @ part.out_proj.weight.T)
    return torch.stack(out)


@pytest.mark.parametrize("settings", [{}, {"heads": 1, "key": 5, "value": 2, "scale": 2.0}])
def test_as_written_out(settings):
    part, x = made(**settings), random(2, 9, DIM)
    torch.testing.assert_close(part(x, on_grid(9)), written_out(part, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_holds_that(check):
    check(made())


def test_heads_are_cut():
    heads_are_cut_by_their_axis(made(heads=4), [2, 0])


def test_it_starts_with_slow_decays():
    torch.manual_seed(0)
    part = core.build(registry.part("gated_deltanet").Config(dim=256, heads=64))
    assert (part.config.key, part.config.value) == (3, 6)
    rates, steps = part.log_rates.exp(), F.softplus(part.step_proj.bias)
    assert 1 <= rates.min() < 3
    assert 13 < rates.max() <= 16
    assert 0.9e-3 < steps.min() < 3e-3
    assert 3e-2 < steps.max() < 1.1e-1
