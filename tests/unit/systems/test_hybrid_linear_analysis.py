"""The hybrids of six linear mixers: what their file says beyond what every system must show."""

from typing import Any

import pytest
import torch

import anyformer as af
from anyformer.systems.language.hybrid_linear_analysis import (
    MIXERS,
    SMALL,
    attention_layers,
)
from anyformer.verify.equal import compare

PARTS = {"retnet": "retention", "gla": "gated_linear_attention", "deltanet": "delta_net"}


def meta_model(name) -> Any:
    with torch.device("meta"):
        return af.create_model(name)


def test_six_mixers_with_a_layer_of_attention_among_three():
    assert len(MIXERS) == 6
    for mixer in MIXERS:
        blocks = meta_model(f"hybrid_linear_{mixer}_3to1_micro").blocks
        attending = [block.mixer.name == "grouped_query_attention" for block in blocks]
        assert attending == [False, False, True, False]
        assert {block.mixer.name for block in blocks} == {PARTS.get(mixer, mixer), "grouped_query_attention"}


@pytest.mark.parametrize(
    ("depth", "ratio", "places"),
    [
        (24, 24, (12,)),
        (24, 12, (6, 18)),
        (24, 6, (4, 12, 20)),
        (24, 3, (2, 6, 10, 14, 18, 22)),
        (21, 6, (3, 10, 17)),
        (4, 3, (2,)),
    ],
)
def test_layers_of_full_attention_stand_in_the_middle_of_equal_spans(depth, ratio, places):
    assert attention_layers(depth, ratio) == places


@pytest.mark.parametrize("name", SMALL)
def test_equal_to_the_equations(name):
    assert compare(name, (11,), 2).failures() == []


@pytest.mark.parametrize("name", SMALL)
def test_weights_go_through_the_official_names_and_back(name):
    ours, again = af.create_model(name), af.create_model(name)
    af.load_weights(again, af.dump_weights(ours, format="official"), format="official")
    assert all(torch.equal(tensor, again.state_dict()[key]) for key, tensor in ours.state_dict().items())


@pytest.mark.parametrize("mixer", ["hgrn", "hgrn2"])
def test_one_table_of_floors_serves_all_layers(mixer):
    model = meta_model(f"hybrid_linear_{mixer}_3to1_micro")
    tables = [name for name, _ in model.named_parameters() if name.endswith("floors.weight")]
    assert tables == ["blocks.0.mixer.floors.weight"]
    assert model.blocks[0].mixer.floors.weight.shape == (4, 64)
    layers = {i: block.mixer.config.layer for i, block in enumerate(model.blocks) if block.mixer.name == mixer}
    assert layers == {i: i for i in range(4) if i != 2}
