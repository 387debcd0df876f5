"""How fresh parameters start."""

import math

import pytest
import torch

import anyformer as af
from anyformer import core
from anyformer.core import Init
from anyformer.core.initial import unfilled


def filled(kind, value, shape=(200, 300)):
    tensor = torch.full(shape, math.nan)
    Init(kind, value).fill(tensor)
    return tensor


@pytest.mark.parametrize(
    ("kind", "value", "deviation", "limit"),
    [
        ("normal", 0.5, 0.5, math.inf),
        ("truncated_normal", 0.02, 0.02, 2.0),
        ("truncated_normal", 1.0, 0.8796, 2.0),
        ("uniform_fan_in", 1.0, 300**-0.5 / 3**0.5, 300**-0.5),
        ("uniform_fan_in", 2.0, 2 * 300**-0.5 / 3**0.5, 2 * 300**-0.5),
        ("xavier_uniform", 1.0, (2 / 500) ** 0.5, (6 / 500) ** 0.5),
    ],
)
def test_spread_and_limit(kind, value, deviation, limit):
    torch.manual_seed(0)
    tensor = filled(kind, value)
    error = tensor.numel() ** -0.5
    assert tensor.abs().max() <= limit
    assert abs(tensor.mean()) < 5 * deviation * error
    assert abs(tensor.std() / deviation - 1) < 5 * error


def test_fan_in_counts_everything_behind_the_outputs():
    assert filled("uniform_fan_in", 1.0, (500, 3, 4, 4)).abs().max() <= 48**-0.5
    assert filled("uniform_fan_in", 1.0, (500, 3, 4, 4)).abs().max() > 0.99 * 48**-0.5


def test_constants():
    assert filled("constant", -0.25).unique().tolist() == [-0.25]
    assert not filled("truncated_normal", 0.0).any(), "no spread at all is a constant"


def test_a_spread_is_not_negative():
    with pytest.raises(core.UsageError, match="an initialiser's spread is not negative: normal has -1"):
        Init("normal", -1.0)
    assert Init("constant", -1.0).value == -1.0


def test_some_kinds_are_for_weights():
    with pytest.raises(core.UsageError, match="xavier_uniform is for weights, not for biases and scales"):
        filled("xavier_uniform", 1.0, (5,))


def test_empty_and_meta_tensors_need_nothing():
    state = torch.get_rng_state()
    for tensor in (torch.empty(0, 3), torch.empty(3, 0), torch.empty(3, 4, device="meta")):
        Init("uniform_fan_in").fill(tensor)
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_loaded_next_draws_no_random_numbers():
    state = torch.get_rng_state()
    with unfilled():
        model = af.create_model("vit_micro")
        filled_none = filled("normal", 1.0)
    assert torch.equal(torch.get_rng_state(), state)
    assert filled_none.isnan().all()
    assert not any(p.is_meta for p in model.parameters())
    assert not filled("normal", 1.0).isnan().any(), "afterwards all is as before"


def test_one_seed_is_one_model():
    torch.manual_seed(5)
    first = af.create_model("edgenext_micro").state_dict()
    torch.manual_seed(5)
    second = af.create_model("edgenext_micro").state_dict()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
