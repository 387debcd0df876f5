"""RetNet, HGRN, HGRN2 and Gated DeltaNet alone: what their files say beyond what every system must show."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer import core
from anyformer.core import registry
from anyformer.verify.equal import compare

SLUGS = ("retnet", "hgrn", "hgrn2", "gated_deltanet")
SMALL = tuple(f"{slug}_micro" for slug in SLUGS)
FILES = {slug: Path(__file__).parents[2] / f"keys/{slug}.official.json" for slug in SLUGS}
NAMES = {name: shapes for file in FILES.values() for name, shapes in json.loads(file.read_text())["sizes"].items()}
PARAMETERS = {
    "retnet_1.3b": 1_351_727_104,
    "hgrn_1.3b": 1_364_396_032,
    "hgrn_2.7b": 2_701_724_160,
    "hgrn2_1.3b": 1_364_396_032,
    "gated_deltanet_1.3b": 1_387_348_732,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_names_shapes_and_parameters_are_those_of_flash_linear_attention(name):
    with torch.device("meta"):
        model = af.create_model(name)
    dumped = af.dump_weights(model, format="official")
    assert {key: list(tensor.shape) for key, tensor in dumped.items()} == NAMES[name]
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_every_published_size_has_its_names():
    known = {name for slug in SLUGS for name in registry.system(slug).names}
    assert known - set(SMALL) == set(NAMES) == set(PARAMETERS)
    assert [registry.system(slug).small for slug in SLUGS] == [(name,) for name in SMALL]


@pytest.mark.parametrize("name", SMALL)
def test_equal_to_the_equations(name):
    assert compare(name, (11,), 2).failures() == []


@pytest.mark.parametrize("name", SMALL)
def test_weights_go_through_the_official_names_and_back(name):
    ours, again = af.create_model(name), af.create_model(name)
    af.load_weights(again, af.dump_weights(ours, format="official"), format="official")
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in ours.state_dict().items())


@pytest.mark.parametrize("name", [*SMALL, *PARAMETERS])
def test_texts_and_vocabulary(name):
    system = registry.system_of(name)
    spec: Any = core.resolve(system.pattern(name))
    assert spec.vocabulary == system.data_config(name)["vocabulary"] == (256 if name in SMALL else 32000)
    assert isinstance(spec.head.linear, core.Shared.Config) == (name in SMALL)
    assert core.resolve(system.pattern(name, vocabulary=31)).vocabulary == 31
    start = "xavier_uniform" if name in SMALL else "normal"
    assert {block.mixer.in_proj.init.kind for block in spec.blocks} == {start}


@pytest.mark.parametrize("name", ["hgrn_2.7b", "hgrn2_1.3b", "hgrn_micro", "hgrn2_micro"])
def test_one_table_of_floors_serves_all_layers(name):
    blocks = core.resolve(registry.system_of(name).pattern(name)).blocks
    assert [block.mixer.layer for block in blocks] == list(range(len(blocks)))
    assert blocks[0].mixer.floors.layers == len(blocks)
    assert {block.mixer.floors.path for block in blocks[1:]} == {"blocks.0.mixer.floors"}


def test_the_heads_of_the_published_sizes():
    heads = {}
    for name in ("retnet_1.3b", "hgrn2_1.3b", "gated_deltanet_1.3b"):
        mixer = core.resolve(registry.system_of(name).pattern(name)).blocks[0].mixer
        heads[name] = mixer.heads, mixer.key, mixer.value
    assert heads == {
        "retnet_1.3b": (8, 256, 512),
        "hgrn2_1.3b": (16, 128, 128),
        "gated_deltanet_1.3b": (6, 256, 512),
    }
