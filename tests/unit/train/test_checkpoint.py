"""The newest good checkpoint is found, a damaged one is named and never used, and a wrong one is refused."""

import json
import shutil
import warnings

import numpy as np
import pytest
import torch

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.train import checkpoint
from anyformer.train.checkpoint import Checkpoints, CheckpointWarning, differences

CONFIG = {"spec": {"width": 8, "blocks": [1, 2]}, "seed": 0, "dtype": "float32"}


def state(step):
    return {"weights": torch.full((50,), float(step)), "step": step}


@pytest.fixture
def directory(tmp_path):
    """Steps 10 and 20."""
    with Checkpoints(tmp_path / "run", CONFIG) as store:
        assert store.load() is None
        for step in (10, 20):
            store.save(step, state(step))
    return tmp_path / "run"


def load(directory, **changes):
    with Checkpoints(directory, CONFIG | changes) as store:
        found = store.load()
    assert found is not None
    step, values = found
    assert values["step"] == step
    assert (values["weights"] == step).all()
    return step


def names(directory):
    return sorted(path.name for path in directory.iterdir() if path.name != ".lock")


def test_newest_is_loaded_and_two_are_kept(directory):
    assert load(directory) == 20
    with Checkpoints(directory, CONFIG) as store:
        store.load()
        store.save(30, state(30))
        store.save(30, state(30))
    assert names(directory) == ["step-00000020", "step-00000030"]
    with pytest.raises(UsageError, match="at least 2"):
        Checkpoints(directory, CONFIG, keep=1)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "meta.json", "manifest.json"])
def test_damage_is_named_and_the_previous_one_used(directory, name):
    """Flips, cuts and zeroed blocks at random places: none is accepted in silence."""
    path = directory / "step-00000020" / name
    good = path.read_bytes()
    chance = np.random.default_rng(0)
    for trial in range(90):
        changed = bytearray(good)
        place = int(chance.integers(len(good)))
        if trial % 3 == 0:
            changed[place] ^= 1 << int(chance.integers(8))
        elif trial % 3 == 1:
            del changed[place:]
        else:
            changed[place : place + 8] = bytes(8)[: len(changed) - place]
        path.write_bytes(changed)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step = load(directory)
        if bytes(changed) == good:
            assert step == 20
        else:
            assert step == 10
            assert [warning.category for warning in caught] == [CheckpointWarning]
            sentence = str(caught[0].message)
            assert "step-00000020" in sentence
            assert sentence.endswith("going on from step 10")
    path.write_bytes(good)
    assert load(directory) == 20


def test_missing_extra_and_swapped_files_are_named(directory):
    new, old = directory / "step-00000020", directory / "step-00000010"
    (new / "state.json").unlink()
    with pytest.warns(CheckpointWarning, match=r"step-00000020/state\.json is missing"):
        assert load(directory) == 10
    shutil.copy(old / "state.json", new / "state.json")
    with pytest.warns(CheckpointWarning, match=r"step-00000020/state\.json is damaged"):
        assert load(directory) == 10
    shutil.rmtree(new)
    shutil.copytree(old, new)
    with pytest.warns(CheckpointWarning, match="step-00000020 is not the checkpoint of step 20"):
        assert load(directory) == 10
    (old / "more").write_bytes(b"")
    with pytest.raises(AnyformerError, match=r"no checkpoint .* can be used: .*; .*step-00000010/more does not belong"):
        load(directory)


def test_all_damaged_is_an_error_every_time_and_never_a_new_start(directory):
    for folder in directory.glob("step-*"):
        (folder / "tensors.safetensors").write_bytes(b"")
    for _ in range(2):
        with pytest.raises(AnyformerError, match=r"no checkpoint in .*00020.*00010.*; restore one, or delete"):
            load(directory)
    assert names(directory) == ["step-00000010", "step-00000020"]


def test_damaged_one_is_replaced_and_does_not_count_as_kept(directory):
    (directory / "step-00000020" / "state.json").write_bytes(b"")
    with Checkpoints(directory, CONFIG) as store:
        with pytest.warns(CheckpointWarning):
            store.load()
        store.save(15, state(15))
        assert names(directory) == ["step-00000010", "step-00000015"]
    (directory / "step-00000015" / "state.json").write_bytes(b"")
    with Checkpoints(directory, CONFIG) as store:
        with pytest.warns(CheckpointWarning):
            store.load()
        store.save(15, state(15))
    assert load(directory) == 15


def test_old_ones_stay_when_the_new_one_comes_back_changed(directory, monkeypatch):
    def write_badly(folder, files):
        write_sealed(folder, files)
        (folder / "state.json").write_bytes(b"lost")

    write_sealed = checkpoint.write_sealed
    with Checkpoints(directory, CONFIG) as store:
        store.load()
        monkeypatch.setattr(checkpoint, "write_sealed", write_badly)
        with pytest.raises(AnyformerError, match=r"step-00000030/state\.json is damaged"):
            store.save(30, state(30))
    assert names(directory) == ["step-00000010", "step-00000020", "step-00000030"]
    with pytest.warns(CheckpointWarning, match="00030"):
        assert load(directory) == 20


def test_failing_save_leaves_the_previous_one(directory):
    with Checkpoints(directory, CONFIG) as store:
        store.load()
        with pytest.raises(TypeError, match="cannot hold"):
            store.save(30, object())
        shutil.move(directory, directory.with_name("moved"))
        with pytest.raises(AnyformerError, match="No such file or directory"):
            store.save(30, state(30))
    assert load(directory.with_name("moved")) == 20


def test_folder_that_cannot_be_read_is_told_and_not_taken_for_empty(directory, monkeypatch):
    def refused(path):
        raise PermissionError(13, "Permission denied")

    with Checkpoints(directory, CONFIG) as store:
        monkeypatch.setattr(checkpoint.os, "listdir", refused)
        with pytest.raises(AnyformerError, match=r"cannot read .*run: Permission denied; make it readable"):
            store.load()
        with pytest.raises(AnyformerError, match="cannot read"):
            store.save(30, state(30))


def test_remains_of_a_killed_save_are_cleared_away(directory):
    (directory / "step-00000030.part").mkdir()
    (directory / "step-00000010-deleted.part").mkdir()
    (directory / "step-x").write_bytes(b"")
    assert load(directory) == 20
    assert names(directory) == ["step-00000010", "step-00000020", "step-x"]


def test_other_configuration_is_refused_with_every_difference(directory):
    with pytest.raises(UsageError) as caught:
        load(directory, spec={"width": 9, "blocks": [1, 2], "depth": 1}, dtype="bfloat16")
    sentence = str(caught.value)
    assert "dtype: saved float32, asked bfloat16" in sentence
    assert "spec.width: saved 8, asked 9" in sentence
    assert "spec.depth: saved nothing, asked 1" in sentence
    assert "seed" not in sentence
    assert "blocks" not in sentence
    assert load(directory, spec={"width": 8, "blocks": (1, 2)}) == 20


@pytest.mark.parametrize(
    ("saved", "asked", "expected"),
    [
        ({"a": 1}, {"a": 1.0}, ["a: saved 1, asked 1.0"]),
        ({"a": 1}, {"a": True}, ["a: saved 1, asked True"]),
        ({"a": {"b": 1}}, {"a": 2}, ["a: saved {'b': 1}, asked 2"]),
        ({"a": [1, 2]}, {"a": [2, 1]}, ["a: saved [1, 2], asked [2, 1]"]),
        ({"a": {"x": 1, "y": 2}}, {"a": {"y": 2, "x": 1}}, []),
    ],
)
def test_differences(saved, asked, expected):
    assert differences(saved, asked) == expected


def test_newer_format_is_refused_by_name(directory, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 0)
    with pytest.raises(UsageError, match="step-00000020 has format 1, this version reads up to 0; update anyformer"):
        load(directory)


def test_other_threads_are_told(directory, monkeypatch):
    monkeypatch.setattr(checkpoint.torch, "get_num_threads", lambda: 77)
    with pytest.warns(CheckpointWarning, match=r"made with threads \d+, this is 77: .* not to the same bits"):
        assert load(directory) == 20


def test_second_writer_is_refused(directory):
    with Checkpoints(directory, CONFIG), pytest.raises(UsageError, match="another run is writing"):
        Checkpoints(directory, CONFIG)
    assert load(directory) == 20


def test_meta_is_readable_json(directory):
    meta = json.loads((directory / "step-00000020" / "meta.json").read_text())
    assert meta["config"] == CONFIG
    assert meta["machine"]["torch"] == torch.__version__


def test_old_checkpoint_that_cannot_be_deleted_is_named(directory, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    with Checkpoints(directory, CONFIG) as store:
        store.save(1, state(1))
        store.save(2, state(2))
        monkeypatch.setattr(checkpoint.os, "rename", refuse)
        with pytest.raises(AnyformerError, match=r"cannot delete .*: Permission denied; delete it yourself"):
            store._delete(1)
    assert len(names(directory)) >= 2
