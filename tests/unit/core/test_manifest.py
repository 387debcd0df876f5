"""Files are written whole or not at all, and folders are used only as their manifest says."""

import errno
import json
import os

import pytest

from anyformer import core
from anyformer.core import files
from anyformer.core.files import MANIFEST, read_manifest, read_own, write_atomic, write_manifest

NAMES = ("config.json", "model.safetensors")
OLD = {"config.json": b"old", "model.safetensors": b"old weights"}
NEW = {"config.json": b"new", "model.safetensors": b"new weights"}


@pytest.fixture
def folder(tmp_path):
    write_manifest(tmp_path / "model", OLD)
    return tmp_path / "model"


def test_what_is_written_is_read(tmp_path):
    write_manifest(tmp_path / "deep" / "model", {**OLD, "labels.txt": b"a\nb"})
    assert read_manifest(tmp_path / "deep" / "model", NAMES) == OLD
    assert json.loads(read_own(tmp_path / "deep" / "model" / MANIFEST))["files"]["labels.txt"]["bytes"] == 3


STEPS = ("open", "fsync", "replace")


def failing(monkeypatch, step, number, error):
    """Make one kind of call fail at its ``number``-th use, and count the uses."""
    owner = {"open": files.Path, "fsync": os, "replace": os}[step]
    real, calls = getattr(owner, step), []

    def call(*args, **kwargs):
        calls.append(args)
        if len(calls) == number:
            raise error
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, step, call)
    return calls


@pytest.mark.parametrize("step", STEPS)
def test_a_full_disk_leaves_the_old_folder_whole(step, folder, monkeypatch):
    with monkeypatch.context() as counted:
        calls = failing(counted, step, -1, None)
        write_manifest(folder, NEW)
    uses = len(calls)
    assert uses >= 3
    write_manifest(folder, OLD)
    for number in range(1, uses + 1):
        with monkeypatch.context() as patch:
            failing(patch, step, number, OSError(errno.ENOSPC, "No space left on device"))
            with pytest.raises(core.AnyformerError, match=r"could not write .*No space left on device.*free space"):
                write_manifest(folder, NEW)
        assert sorted(p.name for p in folder.iterdir()) == sorted((*NAMES, MANIFEST)), "nothing is left lying about"
        renamed = step == "replace" and number > 1
        if step == "open" or (step == "fsync" and number <= 3) or number == 1:
            assert read_manifest(folder, NAMES) == OLD
        elif renamed:
            with pytest.raises(core.AnyformerError, match="is damaged"):
                read_manifest(folder, NAMES)
        else:
            assert read_manifest(folder, NAMES) == NEW
        write_manifest(folder, OLD)


@pytest.mark.parametrize("step", STEPS)
def test_an_interrupt_leaves_no_litter(step, folder, monkeypatch):
    with monkeypatch.context() as patch:
        failing(patch, step, 1, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            write_manifest(folder, NEW)
    assert sorted(p.name for p in folder.iterdir()) == sorted((*NAMES, MANIFEST))
    assert read_manifest(folder, NAMES) == OLD


def test_data_is_on_the_disk_before_its_name_is(tmp_path, monkeypatch):
    order = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (order.append(name), real(*args)))
    write_atomic(tmp_path / "a", b"data")
    assert order == ["fsync", "replace", "fsync"], "file, name, folder"
    order.clear()
    write_manifest(tmp_path, NEW)
    assert order == ["fsync"] * 3 + ["replace"] * 3 + ["fsync"]


@pytest.mark.parametrize("missing", [*NAMES, MANIFEST])
def test_a_missing_file_is_named(missing, folder):
    (folder / missing).unlink()
    with pytest.raises(
        core.AnyformerError, match=f"cannot read .*{missing} .No such file.*copy the whole folder again"
    ):
        read_manifest(folder, NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"x", lambda d: b"X" + d[1:], lambda d: b""])
def test_a_damaged_file_is_named(name, change, folder):
    (folder / name).write_bytes(change((folder / name).read_bytes()))
    with pytest.raises(core.AnyformerError, match=f"{name} is damaged: its SHA-256 is not that of manifest.json"):
        read_manifest(folder, NAMES)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "{}", '{"files": 3}', '{"files": {}}', '{"files": {"config.json": 3}}', "[" * 10_000, "\xff\xfe"],
)
def test_a_manifest_that_is_none_is_named(text, folder):
    (folder / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(core.AnyformerError, match=r"manifest\.json is damaged or not a manifest"):
        read_manifest(folder, NAMES)


def test_no_folder_is_named(tmp_path):
    with pytest.raises(core.AnyformerError, match=r"there is no folder .*nowhere; give one that save_pretrained"):
        read_manifest(tmp_path / "nowhere", NAMES)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(core.AnyformerError, match=r"could not make the folder .*file"):
        write_manifest(tmp_path / "file" / "model", NEW)
    with pytest.raises(core.AnyformerError, match=r"could not write .*nowhere"):
        write_atomic(tmp_path / "nowhere" / "a", b"data")


def symbolic(target, path):
    path.symlink_to(target)


def hard(target, path):
    path.hardlink_to(target)


def pipe(_, path):
    os.mkfifo(path)


def device(_, path):
    path.symlink_to("/dev/zero")


def subfolder(_, path):
    path.mkdir()


@pytest.mark.parametrize("make", [symbolic, hard, pipe, device, subfolder])
@pytest.mark.parametrize("name", ["model.safetensors", MANIFEST])
def test_only_files_of_their_own_are_read(make, name, folder, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes((folder / name).read_bytes())
    (folder / name).unlink()
    make(secret, folder / name)
    with pytest.raises(core.AnyformerError, match="is a link or no file; put a copy of the file itself there"):
        read_manifest(folder, NAMES)


def test_a_file_larger_than_memory_is_named(folder, monkeypatch):
    def read(self, *_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(files, "read_own", read)
        with pytest.raises(core.AnyformerError, match="larger than this machine's memory"):
            read_manifest(folder, NAMES)
