"""The authors' names and shapes, committed as they are in the authors' files, are exactly what we give and take."""

import json
from pathlib import Path

import pytest
import torch

import anyformer as af
from anyformer import core
from anyformer.core import registry

FILES = {
    path.name.partition(".")[0]: json.loads(path.read_text())
    for path in Path(__file__).parents[2].glob("keys/*.official.json")
}
SIZES = [(slug, size) for slug, content in FILES.items() for size in content["sizes"]]
PRE_TRAINED = ".orig_in21k"  # with a hidden layer before the classifier, which fine-tuned weights do not have


def meta_model(name, **options):
    with torch.device("meta"):
        return af.create_model(name, **options)


def test_every_paper_model_has_its_names_committed():
    paper_models = {name for system in registry.systems().values() for name in set(system.names) - set(system.small)}
    assert {size for _, size in SIZES if not size.endswith(PRE_TRAINED)} == paper_models


@pytest.mark.parametrize(("slug", "size"), [pair for pair in SIZES if not pair[1].endswith(PRE_TRAINED)])
def test_names_and_shapes_are_the_authors(slug, size):
    dumped = af.dump_weights(meta_model(size), format="official")
    assert registry.system_of(size).paper.slug == slug
    assert {name: list(tensor.shape) for name, tensor in dumped.items()} == FILES[slug]["sizes"][size]
    types = FILES[slug].get("buffers", {})
    for name, tensor in dumped.items():
        assert str(tensor.dtype) == f"torch.{types.get(name.rpartition('.')[2], 'float32')}"


@pytest.mark.parametrize(("slug", "size"), [pair for pair in SIZES if pair[1].endswith(PRE_TRAINED)])
def test_pre_trained_files_differ_by_their_hidden_layer_alone(slug, size):
    names = FILES[slug]["sizes"][size]
    classes = names["head/bias"][0]
    model = meta_model(size.removesuffix(PRE_TRAINED), num_classes=classes)
    dumped = {name: list(tensor.shape) for name, tensor in af.dump_weights(model, format="official").items()}
    hidden = {name: shape for name, shape in names.items() if name.startswith("pre_logits/")}
    assert sorted(hidden) == ["pre_logits/bias", "pre_logits/kernel"]
    assert {**dumped, **hidden} == names
    theirs = {name: torch.zeros(shape, device="meta") for name, shape in names.items()}
    with pytest.raises(core.UsageError, match=f"2 of {len(names)} keys are not of this format: pre_logits/"):
        af.load_weights(model, theirs, format="official")


def test_the_buffers_are_those_that_the_authors_stored():
    types = FILES["swin"]["buffers"]
    assert types == {"relative_position_index": "int64", "attn_mask": "float32"}
    stored = FILES["swin"]["sizes"]["swin_tiny_patch4_window7_224"]
    assert sum(name.rpartition(".")[2] in types for name in stored) == 12 + 5
