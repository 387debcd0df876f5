"""Residual joins, and dropping whole branches while training."""

import pytest
import torch

from anyformer import core
from anyformer.core import registry
from anyformer.parts.residuals.residual import drop_path

from .build_part import build, random


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_whole_rows_are_dropped_as_often_as_asked_and_the_others_made_up_for(rate):
    torch.manual_seed(0)
    rows = 20_000
    y = drop_path(torch.ones(rows, 2, 3), rate, training=True).flatten(1)
    assert torch.equal(y, y[:, :1].expand_as(y)), "a row is dropped whole"
    assert torch.allclose(y.unique(), torch.tensor([0.0, 1 / (1 - rate)]))
    dropped = (y[:, 0] == 0).double().mean()
    spread = (rate * (1 - rate) / rows) ** 0.5
    assert abs(dropped - rate) < 5 * spread
    assert abs(y.mean() - 1) < 5 * spread / (1 - rate), "the mean is kept"


@pytest.mark.parametrize(("rate", "training"), [(0.0, True), (0.5, False)])
def test_nothing_is_dropped_otherwise(rate, training):
    x = torch.randn(4, 3)
    state = torch.get_rng_state()
    assert drop_path(x, rate, training) is x
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("name", "settings"), [("residual", {}), ("scaled_residual", {"dim": 3})])
def test_joins(name, settings):
    part = build(name, **settings, drop_path=0.5)
    x, branch = random(64, 5, 3), random(64, 5, 3)
    scaled = branch * part.gamma if settings else branch
    assert torch.equal(part(x, branch), x + scaled)
    torch.manual_seed(1)
    trained = part.train()(x, branch) - x
    for row in range(64):
        kept = torch.allclose(trained[row], 2 * scaled[row], rtol=1e-9, atol=1e-9)
        assert kept or not trained[row].abs().max() > 1e-12
    assert 10 < sum(bool(trained[row].abs().max() > 1e-12) for row in range(64)) < 54


def test_the_scale_has_one_number_a_channel_and_starts_small():
    part = core.build(registry.part("scaled_residual").Config(dim=4))
    assert part.gamma.tolist() == pytest.approx([1e-6] * 4)
