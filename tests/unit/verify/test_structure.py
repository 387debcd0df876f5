"""Every check of structure is shown to fail on something wrong."""

import dataclasses

import pytest
import torch
from torch import nn

from anyformer.core import registry
from anyformer.core.paper import Published
from anyformer.parts.token_mixers.attention import Attention
from anyformer.verify import structure
from anyformer.verify.structure import CHECKS, on_meta

NAME = "vit_micro"


def check(name, model):
    return CHECKS[name](model)


@pytest.mark.parametrize("name", CHECKS)
def test_a_good_model_passes(name):
    assert check(name, on_meta(NAME)) == []


def test_a_module_that_is_not_in_the_spec_is_seen():
    model = on_meta(NAME)
    model.blocks[1].mixer = model.blocks[1].channel_mixer
    found = check("paths", model)
    assert "blocks.1.mixer is 'attention' in the spec and 'mlp' in the model" in found


def test_a_layer_that_is_not_in_the_spec_is_seen():
    model = on_meta(NAME)
    model.blocks.append(on_meta(NAME).blocks[0])
    assert "blocks.4 is nothing in the spec and 'pre_norm_block' in the model" in check("paths", model)


def test_a_tensor_of_another_shape_than_its_axes_is_seen():
    model = on_meta(NAME)
    model.norm.weight = nn.Parameter(torch.empty(5, device="meta"))
    assert check("axes", model) == ["norm.weight is (5,), its axes say (64,)"]


def test_a_tensor_without_axes_is_seen():
    model = on_meta(NAME)
    model.register_buffer("extra", torch.empty(5, device="meta"))
    assert check("axes", model) == ["extra has no axes"]


def test_a_spec_that_json_changes_is_seen(monkeypatch):
    loads = structure.serial.loads
    monkeypatch.setattr(structure.serial, "loads", lambda text: loads(text.replace('"scale": 0.1', '"scale": 0.2')))
    assert check("round_trip", on_meta(NAME)) == ["the spec changes on the way through JSON"]


def test_a_key_map_that_loses_a_shape_is_seen(monkeypatch):
    dump = structure.dump_weights
    monkeypatch.setattr(structure, "dump_weights", lambda model, format: dump(on_meta("vit_mini"), format=format))
    assert [failure.partition(":")[0] for failure in check("keys", on_meta(NAME))] == ["timm", "official"]


def test_a_parameter_of_another_shape_than_the_official_one_is_seen():
    model = on_meta(NAME)
    model.reset_classifier(10)
    found = check("official_parameters", model.to("meta"))
    assert found == [
        "head.weight is (10, 64), in the official code (1000, 64)",
        "head.bias is (10,), in the official code (1000,)",
    ]


@pytest.mark.parametrize(
    ("params", "macs", "wrong"), [(5.6e6, 1.25e9, []), (5.5e6, None, ["parameters"]), (None, 1.3e9, ["multiply-adds"])]
)
def test_a_printed_figure_that_is_far_off_is_seen(monkeypatch, params, macs, wrong):
    name = "vit_tiny_patch16_224"
    published = Published(params=params, macs=macs, at=(224, 224), source="Table 9")
    system = dataclasses.replace(registry.system_of(name), published={name: published})
    monkeypatch.setattr(structure.registry, "system_of", lambda _: system)
    assert [failure.split()[1] for failure in check("printed_figures", on_meta(name))] == wrong


def test_what_is_explained_may_be_far_off(monkeypatch):
    name = "vit_tiny_patch16_224"
    published = Published(params=9e6, macs=None, at=(224, 224), source="Table 9", explained="counts the decoder")
    system = dataclasses.replace(registry.system_of(name), published={name: published})
    monkeypatch.setattr(structure.registry, "system_of", lambda _: system)
    assert check("printed_figures", on_meta(name)) == []


def test_an_operation_that_is_not_counted_is_seen(monkeypatch):
    count = dataclasses.replace(structure.counted(NAME, (32, 32)), uncounted=("aten::cumsum",))
    monkeypatch.setattr(structure, "counted", lambda *_: count)
    assert check("fully_counted", on_meta(NAME)) == ["aten::cumsum is not counted"]


@pytest.mark.parametrize("refuses", [{}, {"stream": ""}])
def test_a_refusal_without_a_reason_is_seen(monkeypatch, refuses):
    monkeypatch.setattr(Attention, "refuses", refuses)
    (failure,) = check("refusals", on_meta(NAME))
    assert failure.startswith("Attention")
