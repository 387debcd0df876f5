"""DeltaNet: what its file says beyond what every system must show."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer import core
from anyformer.parts.token_mixers.grouped_query_attention import GroupedQueryAttention
from anyformer.systems.language.deltanet import SIZES, SMALL, data_config, pattern
from anyformer.verify.equal import compare

PAPER = sorted(set(SIZES) - set(SMALL))
NAMES = json.loads((Path(__file__).parents[2] / "keys/deltanet.official.json").read_text())["sizes"]
PARAMETERS = {
    "deltanet_340m": 341_594_112,
    "deltanet_1.3b": 1_365_677_056,  # a published file of 2.73 gigabytes, two bytes a parameter
    "deltanet_window_340m": 341_346_816,
    "deltanet_window_1.3b": 1_364_987_392,
    "deltanet_global_340m": 341_552_896,
    "deltanet_global_1.3b": 1_365_562_112,
}


@pytest.mark.parametrize("name", PAPER)
def test_names_shapes_and_parameters_are_those_of_the_official_code(name):
    with torch.device("meta"):
        model = af.create_model(name)
    dumped = af.dump_weights(model, format="official")
    assert {key: list(tensor.shape) for key, tensor in dumped.items()} == NAMES[name]
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_every_published_size_has_its_names():
    assert sorted(NAMES) == PAPER


@pytest.mark.parametrize("name", SMALL)
def test_equal_to_the_equations(name):
    assert compare(name, (21,), 2).failures() == []


def attention(name) -> dict[int, Any]:
    spec: Any = core.resolve(pattern(name))
    return {i: block.mixer for i, block in enumerate(spec.blocks) if block.mixer.part is GroupedQueryAttention}


def test_every_other_layer_has_a_window():
    layers = attention("deltanet_window_1.3b")
    assert list(layers) == list(range(1, 24, 2))
    assert {(mixer.window, mixer.head_dim, mixer.group) for mixer in layers.values()} == {(2048, 64, 1)}


def test_two_layers_see_everything():
    layers = attention("deltanet_global_340m")
    assert list(layers) == [1, 12]
    assert {(mixer.window, mixer.kv_heads) for mixer in layers.values()} == {(None, 16)}
    assert attention("deltanet_340m") == {}


@torch.no_grad()
def test_behind_the_window_the_memory_goes_on():
    """A token before the window of the only attention layer still reaches the last score."""
    torch.manual_seed(0)
    model = af.create_model("deltanet_window_micro").double().eval()
    ids = torch.randint(256, (1, 40))
    other = ids.clone()
    other[:, 0] = (ids[:, 0] + 1) % 256
    assert not torch.equal(model(ids)[:, -1], model(other)[:, -1])


@pytest.mark.parametrize("name", SMALL)
def test_weights_go_through_the_official_names_and_back(name):
    ours, again = af.create_model(name), af.create_model(name)
    af.load_weights(again, af.dump_weights(ours, format="official"), format="official")
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in ours.state_dict().items())


def test_texts():
    assert data_config("deltanet_global_1.3b")["context"] == 2048
    assert data_config("deltanet_window_1.3b")["context"] is None
    assert data_config("deltanet_mini") == {"vocabulary": 256, "tokenizer": "bytes", "context": None}
