"""Gated linear attention: what its file says beyond what every system must show."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer import core
from anyformer.systems.language.gla import SIZES, SMALL, data_config, pattern
from anyformer.verify.equal import compare

PAPER = sorted(set(SIZES) - set(SMALL))
NAMES = json.loads((Path(__file__).parents[2] / "keys/gla.official.json").read_text())["sizes"]
PARAMETERS = {"gla_340m": 341_707_776, "gla_1.3b": 1_365_514_240}
BYTES = {"gla_340m": 683e6, "gla_1.3b": 2.73e9}  # of the published files, two a parameter


@pytest.mark.parametrize("name", PAPER)
def test_names_shapes_and_parameters_are_those_of_the_published_files(name):
    with torch.device("meta"):
        model = af.create_model(name)
    dumped = af.dump_weights(model, format="official")
    assert {key: list(tensor.shape) for key, tensor in dumped.items()} == NAMES[name]
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    assert 2 * PARAMETERS[name] == pytest.approx(BYTES[name], rel=2e-3)


def test_every_published_size_has_its_names():
    assert sorted(NAMES) == PAPER


@pytest.mark.parametrize("name", SMALL)
def test_equal_to_the_equations(name):
    assert compare(name, (11,), 2).failures() == []


def test_the_layer_of_the_paper():
    mixer: Any = core.resolve(pattern("gla_340m")).blocks[0].mixer
    assert (mixer.key, mixer.value, mixer.rank, mixer.normalizer) == (128, 256, 16, 16.0)
    assert mixer.norm.dim == 256


def test_weights_go_through_the_official_names_and_back():
    ours, again = af.create_model("gla_micro"), af.create_model("gla_micro")
    af.load_weights(again, af.dump_weights(ours, format="official"), format="official")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_texts():
    assert data_config("gla_1.3b")["vocabulary"] == 32000
    assert data_config("gla_mini") == {"vocabulary": 256, "tokenizer": "bytes", "context": None}
    assert core.resolve(pattern("gla_micro", vocabulary=50)).vocabulary == 50
