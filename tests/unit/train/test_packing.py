"""State survives packing without loss, and only data comes back."""

import math

import pytest
import torch
from torch import nn

from anyformer.train.packing import pack, unpack
from anyformer.train.schedule import adamw


def same(left, right):
    """Equal in type, structure and every bit."""
    assert type(left) is type(right)
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype
        assert left.shape == right.shape
        assert torch.equal(left.reshape(-1).view(torch.uint8), right.reshape(-1).view(torch.uint8))
    elif isinstance(left, dict):
        assert list(left) == list(right)
        for key in left:
            same(left[key], right[key])
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            same(one, other)
    else:
        assert left == right


def test_nested_state_comes_back_to_the_bit():
    odd = torch.tensor([math.nan, -0.0, math.inf, 1e-45])
    state = {
        "": None,
        "a/b": {"c": torch.arange(6).reshape(2, 3).T, 3: (True, 1, 1.0, "x", [0.1, -0.0, 1e308])},
        "a": {"b/c": odd},
        "tensor": {"tensor": "x", "dict": [], "tuple": ()},
        "kinds": [odd.to(kind) for kind in (torch.float64, torch.float16, torch.bfloat16)],
        "scalars": [torch.tensor(3), torch.tensor(True), torch.zeros(0, 4), torch.tensor(2, dtype=torch.uint8)],
    }
    same(unpack(*pack(state)), state)


def test_optimizer_state_comes_back_to_the_bit():
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    optimizer = adamw(model)
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    same(unpack(*pack(state)), state)


def test_later_changes_do_not_reach_what_was_packed():
    tensor = torch.zeros(3)
    packed = pack([tensor, tensor, tensor[1:]])
    tensor += 1
    assert [part.sum().item() for part in unpack(*packed)] == [0, 0, 0]


def test_what_json_cannot_hold_is_refused():
    with pytest.raises(TypeError, match="/a/1 is of type object"):
        pack({"a": [1, object()]})
    with pytest.raises(TypeError, match="keys are strings"):
        pack({(1, 2): 3})
    with pytest.raises(ValueError, match="not JSON compliant"):
        pack([math.nan])


def test_two_paths_that_read_alike_do_not_collide():
    state = {"a/b": torch.tensor(1), "a": {"b": torch.tensor(2)}}
    same(unpack(*pack(state)), state)
