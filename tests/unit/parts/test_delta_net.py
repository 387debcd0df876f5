"""DeltaNet is its recurrence, whole or as a stream, padded or packed."""

import pytest
import torch

from .build_part import build, config, on_grid, random
from .linear_mixers import CHECKS, DIM, convolved, heads, heads_are_cut_by_their_axis, rms


def made(**settings):
    return build("delta_net", **{"dim": DIM, "heads": 2, "key": 3, "value": 4, **settings})


def unit(x, eps):
    return x / (x.square().sum(-1, keepdim=True) + eps).sqrt()


def written_out(part, x):
    """Section 2.2, token by token: what a key holds is moved towards its value."""
    c, out = part.config, []
    keys, values = c.heads * c.key, c.heads * c.value
    for row in x:
        qkv, beta = (row @ part.in_proj.weight.T).split((2 * keys + values, c.heads), -1)
        q, k, v = (
            heads(tensor, c.heads) for tensor in convolved(part.convolution, qkv).split((keys, keys, values), -1)
        )
        q, k, beta = unit(q, c.eps), unit(k, c.eps), torch.sigmoid(beta)
        state, ys = torch.zeros(c.heads, c.key, c.value, dtype=x.dtype), []
        for t in range(len(row)):
            held = (k[:, t, :, None] * state).sum(1)
            state = state + k[:, t, :, None] * (beta[t, :, None] * (v[:, t] - held))[:, None]
            ys.append(rms(part.norm, (c.scale * q[:, t, :, None] * state).sum(1)).flatten())
        out.append(torch.stack(ys) @ part.out_proj.weight.T)
    return torch.stack(out)


@pytest.mark.parametrize("kernel", [4, 2])
def test_as_written_out(kernel):
    part, x = made(convolution=config("causal_convolution", kernel=kernel, bias=False)), random(2, 9, DIM)
    torch.testing.assert_close(part(x, on_grid(9)), written_out(part, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_holds_that(check):
    check(made())


def test_heads_are_cut():
    heads_are_cut_by_their_axis(made(heads=4), [2, 0])


def test_keys_and_values_have_the_channels_of_the_model():
    part = build("delta_net", dim=32, heads=2)
    assert (part.config.key, part.config.value, part.config.scale) == (16, 16, 0.25)
    state = part.init_state(3, 1, random(1))
    assert (state.memory.shape, state.convolution.shape) == ((3, 2, 16, 16), (3, 3, 96))
