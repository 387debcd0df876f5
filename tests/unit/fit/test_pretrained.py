"""Candidates start from the weights that lie ready for them, and say so; a hub out of reach is a reason, not an end."""

import sys
import types
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import anyformer as af
from anyformer.core.errors import AnyformerError, UsageError
from anyformer.core.model import Model
from anyformer.data.images import load
from anyformer.fit.candidates import Candidate, candidates
from anyformer.fit.picture_material import FINE_TUNING, LEARNING_RATE, NORMED_RATE, PictureMaterial
from anyformer.fit.pretrained import Weights

OPTIONS = {"img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10}


@pytest.fixture(scope="module")
def source() -> Model:
    return af.create_model("convnext_micro", num_classes=7, img_size=32)


def body(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if name.startswith("stages")}


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    ours, theirs = body(one), body(other)
    return bool(ours) and ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_saved_folder_is_adapted_to_other_pictures_and_classes(source, tmp_path):
    source.save_pretrained(tmp_path / "convnext_micro")
    weights = Weights(str(tmp_path))
    assert weights.names == ("convnext_micro",)
    model = weights.start("convnext_micro", OPTIONS)
    assert same(model, source)
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert model.training


def test_a_folder_that_is_itself_a_model_serves_that_model(source, tmp_path):
    source.save_pretrained(tmp_path)
    assert Weights(str(tmp_path)).names == ("convnext_micro",)


def test_a_file_in_the_names_of_timm_is_read_whatever_its_classes(source, tmp_path):
    tensors = {name: tensor.clone() for name, tensor in af.dump_weights(source, format="timm").items()}
    save_file(tensors, tmp_path / "convnext_micro.safetensors")
    model = Weights(str(tmp_path)).start("convnext_micro", OPTIONS)
    assert same(model, source)


def test_what_is_missing_or_damaged_starts_fresh_and_is_told(tmp_path):
    (tmp_path / "convnext_micro.safetensors").write_bytes(b"nothing")
    data = PictureMaterial.of(load("digits"), 0, Weights(str(tmp_path)))
    data.choose(3)
    assert next(iter(data.candidates)) == "convnext_micro"
    other = list(data.candidates)[1]
    for name in ("convnext_micro", other):
        model = data.start(name, 0)
        assert same(model, data.create(name, 0))
        assert data.learning_rate(name, model) == LEARNING_RATE
    assert "cannot read" in data.origins["convnext_micro"]["reason"]
    assert f"has no {other}/ and no {other}.safetensors" in data.origins[other]["reason"]


def test_a_candidate_with_weights_says_where_from_and_learns_more_slowly(source, tmp_path):
    source.save_pretrained(tmp_path / "convnext_micro")
    data = PictureMaterial.of(load("digits"), 0, Weights(str(tmp_path)))
    data.choose(2)
    again = [data.start("convnext_micro", 0) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*(m.state_dict().values() for m in again), strict=True))
    assert data.origins["convnext_micro"]["pretrained"]
    assert data.learning_rate("convnext_micro", again[0]) == FINE_TUNING
    assert again[0].data_config == data.config


def test_networks_with_batch_norms_learn_at_a_higher_rate():
    data = PictureMaterial.of(load("digits"), 0)
    for name in ("convnext_micro", "fastvit_micro"):
        data.candidates[name] = Candidate(name, name.split("_")[0], OPTIONS)
    rates = [data.learning_rate(name, data.start(name, 0)) for name in data.candidates]
    assert rates == [LEARNING_RATE, NORMED_RATE]


def test_published_sizes_come_first_where_their_weights_are():
    chosen = candidates(size=64, channels=3, classes=5, trials=3, weights=("vit_tiny_patch16_224", "convnext_tiny"))
    assert {chosen[0].name, chosen[1].name} == {"vit_tiny_patch16_224", "convnext_tiny"}
    assert chosen[2].name.endswith("_micro")


def hub(monkeypatch: pytest.MonkeyPatch, answer: Path | Exception) -> None:
    module = types.ModuleType("huggingface_hub")

    def snapshot_download(repository: str, **_: object) -> str:
        if isinstance(answer, Exception):
            raise answer
        return str(answer)

    module.snapshot_download = snapshot_download  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_a_hub_out_of_reach_is_a_reason(monkeypatch):
    hub(monkeypatch, ConnectionError("no route to the hub.\nsecond line"))
    weights = Weights("hub:timm/convnext_tiny.fb_in1k")
    assert weights.names == ()
    assert weights.reason("convnext_tiny") == ("hub:timm/convnext_tiny.fb_in1k cannot be reached (no route to the hub)")


def test_a_hub_repository_is_one_model_or_a_folder_of_them(monkeypatch, source, tmp_path):
    tensors = {name: tensor.clone() for name, tensor in af.dump_weights(source, format="timm").items()}
    save_file(tensors, tmp_path / "model.safetensors")
    hub(monkeypatch, tmp_path)
    assert same(Weights("hub:us/convnext_micro.first").start("convnext_micro", OPTIONS), source)
    assert Weights("hub:us/all").names == ()
    save_file(tensors, tmp_path / "convnext_micro.safetensors")
    assert Weights("hub:us/all").names == ("convnext_micro",)
    (tmp_path / "config.json").write_text("{}")
    assert "cannot read" in Weights("hub:us/all").reason("convnext_micro")


def test_sources_that_cannot_be_are_refused(monkeypatch, tmp_path):
    with pytest.raises(UsageError, match="there is no folder"):
        Weights(str(tmp_path / "lost"))
    with pytest.raises(UsageError, match="names no repository"):
        Weights("hub:timm")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UsageError, match=r"anyformer\[hub\]"):
        Weights("hub:us/all")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(AnyformerError, match="cannot read"):
        Weights(str(tmp_path))
