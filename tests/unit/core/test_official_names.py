"""The authors' names and shapes, committed as they are in the authors' files, are exactly what we give and take."""

import json
from pathlib import Path

import pytest
import torch

import anyformer as af
from anyformer import core
from anyformer.core import registry

FILES = {
    tuple(path.name.split(".")[:2]): json.loads(path.read_text())  # the system and the format
    for path in Path(__file__).parents[2].glob("keys/*.json")
}
SIZES = [(*key, size) for key, content in FILES.items() for size in content["sizes"]]
PRE_TRAINED = ".orig_in21k"  # with a hidden layer before the classifier, which fine-tuned weights do not have
PLAIN = [case for case in SIZES if not case[2].endswith(PRE_TRAINED)]


def meta_model(name, **options):
    with torch.device("meta"):
        return af.create_model(name, **options)


NOT_AT_HAND = {
    "nha": "its released weights are in no place that could be read; a few names are held to its code in its unit test",
    "transnormer": "likewise",
}


def test_every_paper_model_has_its_names_committed():
    named = [s for s in registry.systems().values() if set(s.keys) - {"oracle"} and s.paper.slug not in NOT_AT_HAND]
    paper_models = {name for system in named for name in set(system.names) - set(system.small)}
    small = {name for system in registry.systems().values() for name in system.small}
    assert {size for _, _, size in PLAIN} - small == paper_models


@pytest.mark.parametrize(("slug", "format", "size"), PLAIN)
def test_names_and_shapes_are_the_authors(slug, format, size):
    dumped = af.dump_weights(meta_model(size), format=format)
    assert registry.system_of(size).paper.slug == slug
    assert {name: list(tensor.shape) for name, tensor in dumped.items()} == FILES[slug, format]["sizes"][size]
    types = FILES[slug, format].get("buffers", {})
    for name, tensor in dumped.items():
        assert str(tensor.dtype) == f"torch.{types.get(name.rpartition('.')[2], 'float32')}"


@pytest.mark.parametrize(("slug", "format", "size"), [case for case in SIZES if case not in PLAIN])
def test_pre_trained_files_differ_by_their_hidden_layer_alone(slug, format, size):
    names = FILES[slug, format]["sizes"][size]
    classes = names["head/bias"][0]
    model = meta_model(size.removesuffix(PRE_TRAINED), num_classes=classes)
    dumped = {name: list(tensor.shape) for name, tensor in af.dump_weights(model, format=format).items()}
    hidden = {name: shape for name, shape in names.items() if name.startswith("pre_logits/")}
    assert sorted(hidden) == ["pre_logits/bias", "pre_logits/kernel"]
    assert {**dumped, **hidden} == names
    theirs = {name: torch.zeros(shape, device="meta") for name, shape in names.items()}
    with pytest.raises(core.UsageError, match=f"2 of {len(names)} keys are not of this format: pre_logits/"):
        af.load_weights(model, theirs, format=format)


def test_the_buffers_are_those_that_the_authors_stored():
    types = FILES["swin", "official"]["buffers"]
    assert types == {"relative_position_index": "int64", "attn_mask": "float32"}
    stored = FILES["swin", "official"]["sizes"]["swin_tiny_patch4_window7_224"]
    assert sum(name.rpartition(".")[2] in types for name in stored) == 12 + 5
