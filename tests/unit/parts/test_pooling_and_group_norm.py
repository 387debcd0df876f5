"""What PoolFormer is made of: a mixer that averages, and a norm over all of a sample."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer import core

from .build_part import build, config, on_grid, random

engine = settings(deadline=None, derandomize=True, max_examples=25)


@engine
@given(st.sampled_from((1, 3, 5)), st.integers(1, 6), st.integers(1, 6))
def test_pooling_is_the_mean_of_the_neighbours_that_there_are_less_the_token(kernel, height, width):
    x, reach = random(2, height, width, 3), kernel // 2
    expected = torch.empty_like(x)
    for i in range(height):
        for j in range(width):
            near = x[:, max(i - reach, 0) : i + reach + 1, max(j - reach, 0) : j + reach + 1]
            expected[:, i, j] = near.mean((1, 2)) - x[:, i, j]
    y = build("pooling", kernel=kernel)(x, on_grid(height, width))
    assert torch.allclose(y, expected, rtol=1e-10, atol=1e-10)
    assert y.is_contiguous(), "no copy for the linear layers that follow"


def test_pooling_takes_a_constant_to_nothing():
    level = random(2, 1, 1, 3).expand(2, 4, 5, 3)
    assert build("pooling")(level, on_grid(4, 5)).abs().max() < 1e-14


def test_pooling_needs_a_grid():
    part = build("pooling")
    assert {"stream", "prefix"} <= part.refuses.keys()
    with pytest.raises(core.UsageError, match="Pooling needs features on a grid without prefix tokens"):
        part(random(1, 5, 4), on_grid(2, 2, prefix=1))


@pytest.mark.parametrize("shape", [(2, 7, 6), (2, 3, 4, 6), (2, 2, 3, 2, 6), (2, 6)])
def test_a_group_norm_is_over_all_tokens_and_channels_of_a_sample(shape):
    part = build("group_norm", dim=6, eps=1e-3)
    x = random(*shape) * 10 + 3
    whole = tuple(range(1, x.dim()))
    centred = x - x.mean(whole, keepdim=True)
    expected = centred / (centred.square().mean(whole, keepdim=True) + 1e-3).sqrt() * part.weight + part.bias
    y = part(x)
    assert torch.allclose(y, expected, rtol=1e-10)
    assert y.is_contiguous()


def test_a_group_norm_keeps_what_a_layer_norm_evens_out():
    x = random(1, 4, 4, 6)
    x[0, 0] *= 100
    ratio: dict[str, float] = {}
    for name in ("group_norm", "layer_norm"):
        spread = core.build(config(name, dim=6)).double().requires_grad_(False)(x).std(-1)
        ratio[name] = float(spread.max() / spread.min())
    assert ratio["layer_norm"] < 1.01
    assert ratio["group_norm"] > 10


def test_cutting_channels_of_a_group_norm_is_a_norm_of_the_others():
    part = build("group_norm", dim=6)
    live = torch.tensor([4, 0, 3])
    smaller = build("group_norm", dim=3)
    smaller.load_state_dict({name: tensor[live] for name, tensor in part.state_dict().items()})
    x = random(2, 3, 3, 6)
    assert torch.equal(smaller(x[..., live]), smaller(x[..., live].contiguous()))
    assert part.reduces == ("dim",), "what goes changes the spread of what stays"
    assert not torch.allclose(smaller(x[..., live]), part(x)[..., live])
