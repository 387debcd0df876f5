"""The learning rate's curve and the optimizer's groups."""

import pytest
import torch
from torch import nn

from anyformer.train.schedule import WarmupCosine, adamw


def test_rise_fall_and_floor():
    schedule = WarmupCosine(steps=110, warmup=10, floor=0.1)
    assert [schedule(step) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert [schedule(step) for step in (10, 60, 110, 999)] == pytest.approx([1.0, 0.55, 0.1, 0.1])
    falling = [schedule(step) for step in range(10, 111)]
    assert falling == sorted(falling, reverse=True)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (0, 0), (5, 5), (3, 9)])
def test_short_runs_are_finite(steps, warmup):
    schedule = WarmupCosine(steps=steps, warmup=warmup)
    assert all(0 < schedule(step) <= 1 for step in range(20))


def test_vectors_are_not_decayed_and_frozen_parameters_left_out():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    model[2].requires_grad_(False)
    decayed, kept = adamw(model, 0.5, weight_decay=0.5).param_groups
    assert [parameter.ndim for parameter in decayed["params"]] == [4]
    assert [parameter.ndim for parameter in kept["params"]] == [1, 1, 1]
    before = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = adamw(model, 0.5, weight_decay=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for parameter, old in zip(model.parameters(), before, strict=True):
        factor = 0.75 if parameter.ndim == 4 else 1.0
        torch.testing.assert_close(parameter.detach(), old * factor)
