"""RepMixer and the conditional position encoding: what they compute, and the one convolution that they become."""

import pytest
import torch

from anyformer import core

from .build_part import build, config, on_grid, random

NORM = config("batch_norm")
GRID = on_grid(5, 6)


def rep_mixer(kernel=3):
    branches = tuple(config("grouped_convolution", kernel=size, norm=NORM) for size in (kernel, 1))
    convolution = config("parallel_convolution", branches=branches, identity=NORM)
    part = build("rep_mixer", dim=4, convolution=convolution, norm=NORM)
    for name, buffer in part.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 2)
    return part


@pytest.mark.parametrize("kernel", [3, 5])
def test_a_skip_around_a_convolution_less_a_norm_is_one_convolution(kernel):
    part, x = rep_mixer(kernel), random(2, 5, 6, 4)
    expected = x + part.gamma * (part.convolution(x) - part.norm(x))
    torch.testing.assert_close(part(x, GRID), expected, rtol=0, atol=1e-12)
    with torch.no_grad():
        one = part.deployed()
    assert (one.name, one.config.kernel) == ("depthwise_convolution", kernel)
    torch.testing.assert_close(one(x, GRID), expected, rtol=0, atol=1e-12)


def test_in_training_the_moments_are_those_of_the_batch():
    part, x = rep_mixer().train(), random(2, 5, 6, 4)
    trained = part(x, GRID)
    kept = part.norm.running_mean.clone()
    torch.testing.assert_close(trained, x + part.gamma * (part.convolution(x) - part.norm(x)), rtol=0, atol=1e-12)
    assert not torch.equal(part.norm.running_mean, kept)


def position(convolution):
    return build("conditional_position", dim=4, convolution=convolution)


def test_position_is_added():
    part, x = position(config("depthwise_convolution", kernel=7)), random(2, 5, 6, 4)
    expected = x + part.convolution(x, GRID)
    assert torch.equal(part(x, GRID), expected)
    with torch.no_grad():
        one = part.deployed()
    assert one.name == "depthwise_convolution"
    torch.testing.assert_close(one(x, GRID), expected, rtol=0, atol=1e-12)


def test_another_mixer_keeps_its_skip():
    part, x = position(config("attention", heads=2)), random(2, 5, 6, 4)
    assert part.deployed() is part
    torch.testing.assert_close(part(x, GRID), x + part.convolution(x, GRID), rtol=0, atol=1e-12)


def test_prefix_tokens_are_refused():
    for part in (rep_mixer(), position(config("depthwise_convolution"))):
        with pytest.raises(core.UsageError, match="without prefix tokens"):
            part(random(2, 31, 4), on_grid(5, 6, prefix=1))
