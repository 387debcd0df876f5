"""Batch norm against torch's, in both modes, over several steps."""

import pytest
import torch
from torch import nn

from anyformer import core

from .build_part import build, random

NAMES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def pair(channels: int):
    ours = build("batch_norm", dim=channels, eps=1e-3, momentum=0.3)
    theirs = nn.BatchNorm2d(channels, eps=1e-3, momentum=0.3).double()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


@pytest.mark.parametrize("size", [(4, 3, 5, 6), (2, 1, 1, 3), (3, 2, 4, 1)])
def test_training_and_evaluation_are_those_of_torch(size):
    ours, theirs = pair(size[-1])
    for training in (True, True, True, False):
        ours.train(training), theirs.train(training)
        x = (random(*size) * 3 + 1).requires_grad_()
        y = x.detach().clone().requires_grad_()
        given, expected = ours(x), theirs(y.movedim(-1, 1)).movedim(1, -1)
        torch.testing.assert_close(given, expected, rtol=0, atol=1e-12)
        cotangent = random(*size)
        given.backward(cotangent), expected.backward(cotangent)
        torch.testing.assert_close(x.grad, y.grad, rtol=0, atol=1e-12)
        for name in NAMES:
            torch.testing.assert_close(getattr(ours, name), getattr(theirs, name), rtol=0, atol=1e-12)
    assert ours.num_batches_tracked == 3


def test_what_it_does_in_evaluation_is_an_affine_map():
    ours, _ = pair(5)
    ours.running_mean.normal_(), ours.running_var.uniform_(0.5, 2)
    scale, shift = ours.affine()
    x = random(2, 3, 5)
    expected = (x - ours.running_mean) / (ours.running_var + 1e-3).sqrt() * ours.weight + ours.bias
    torch.testing.assert_close(x * scale + shift, expected, rtol=0, atol=1e-12)
    assert torch.equal(ours(x), x * scale + shift)


def test_one_value_a_channel_has_no_variance():
    ours, _ = pair(5)
    ours.train()
    with pytest.raises(core.UsageError, match="one value a channel; train with a larger batch"):
        ours(random(1, 1, 1, 5))
    assert ours.num_batches_tracked == 0
    assert ours.eval()(random(1, 1, 1, 5)).shape == (1, 1, 1, 5)
