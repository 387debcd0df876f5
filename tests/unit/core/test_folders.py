"""Folders of transformers: what is refused, and with which sentence."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import anyformer as af
from anyformer.core.errors import AnyformerError, UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model: Any = af.create_model("llama_micro")
    model.save_pretrained(tmp_path, format="transformers")
    return tmp_path


def changed(folder: Path, **values: Any) -> Path:
    path = folder / "config.json"
    table = {**json.loads(path.read_text()), **values}
    path.write_text(json.dumps({key: value for key, value in table.items() if value is not ...}))
    return folder


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"model_type": "lama"}, "no model here has model_type 'lama'; known: .*llama"),
        ({"hidden_size": ...}, "does not say hidden_size"),
        ({"hidden_size": "64"}, "hidden_size is '64'; it must be a number above 0"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"attention_bias": True}, "attention_bias is True; only False is built here"),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1; it must be true or false"),
        ({"rope_parameters": 3}, "rope_parameters is 3; it must be a mapping"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_parameters: rope_type is 'yarn'"),
        ({"intermediate_size": 8}, "gate_proj.*is needed"),
    ],
)
def test_settings_that_are_not_built_here(folder: Path, values: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        af.from_pretrained(changed(folder, **values), format="transformers")


def test_old_words_mean_the_same(folder: Path) -> None:
    model: Any = af.from_pretrained(
        changed(folder, rope_parameters=..., rope_theta=10000.0, head_dim=..., max_position_embeddings=512),
        format="transformers",
    )
    assert (model.model_name, model.system, model.data_config["context"]) == ("llama_micro", "llama", 512)


def test_other_sizes_have_no_name_but_keep_their_names_of_weights(folder: Path, tmp_path: Path) -> None:
    model: Any = af.from_pretrained(changed(folder, rope_parameters={"rope_theta": 500.0}), format="transformers")
    assert (model.model_name, model.system) == ("", "llama")
    model.save_pretrained(tmp_path / "ours")
    again: Any = af.from_pretrained(tmp_path / "ours")
    again.save_pretrained(tmp_path / "again", format="transformers")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["rope_parameters"]["rope_theta"] == 500.0


def test_a_model_of_two_files(folder: Path) -> None:
    ids = torch.arange(9)[None]
    whole: Any = af.from_pretrained(folder, format="transformers")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {key: f"part-{number % 2}.safetensors" for number, key in enumerate(tensors)}
    for name in set(places.values()):
        save_file({key: tensors[key] for key, place in places.items() if place == name}, folder / name)
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    assert torch.equal(af.from_pretrained(folder, format="transformers")(ids), whole(ids))
    index.write_text(json.dumps({"weight_map": {key: f"../{place}" for key, place in places.items()}}))
    with pytest.raises(AnyformerError, match="names no files beside it"):
        af.from_pretrained(folder, format="transformers")


def test_half_precision_stays(folder: Path) -> None:
    tensors = {key: tensor.bfloat16() for key, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    model = af.from_pretrained(folder, format="transformers")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_missing_and_damaged_files(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(AnyformerError, match=r"has no model.safetensors and no pytorch_model.bin"):
        af.from_pretrained(folder, format="transformers")
    (folder / "config.json").write_text("[]")
    with pytest.raises(AnyformerError, match="is no mapping"):
        af.from_pretrained(folder, format="transformers")
    (folder / "config.json").unlink()
    with pytest.raises(AnyformerError, match=r"cannot read .*config.json"):
        af.from_pretrained(folder, format="transformers")


def test_unknown_formats(folder: Path) -> None:
    model: Any = af.create_model("llama_micro")
    with pytest.raises(UsageError, match="no folder has the format 'onnx'; known: transformers"):
        model.save_pretrained(folder, format="onnx")
    with pytest.raises(UsageError, match="no folder has the format 'hf'"):
        af.from_pretrained(folder, format="hf")


def test_a_pruned_spec_is_no_longer_theirs(tmp_path: Path) -> None:
    from anyformer.core.config import edit
    from anyformer.core.part import build

    spec: Any = af.create_model("llama_micro").spec
    model: Any = build(edit(spec, {"blocks.0.channel_mixer.hidden": 8}))
    model.system = "llama"
    with pytest.raises(UsageError, match="cannot be written for transformers"):
        model.save_pretrained(tmp_path, format="transformers")


def test_layers_that_nemotron_here_has_not(tmp_path: Path) -> None:
    model: Any = af.create_model("mamba2_hybrid_micro")
    model.save_pretrained(tmp_path, format="transformers")
    with pytest.raises(UsageError, match="layers_block_type must be a list of"):
        af.from_pretrained(changed(tmp_path, layers_block_type=["moe"]), format="transformers")
