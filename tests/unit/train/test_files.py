"""Files appear whole or not at all, failures are told, and no changed bit of a sealed folder is accepted."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.core.files import MANIFEST, write_atomic
from anyformer.train import files
from anyformer.train.files import locked, read_sealed, write_sealed

CONTENT = {"a.json": b'{"a": 1}', "b.bin": bytes(range(256))}


def tree(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fail_call(monkeypatch, number):
    """Makes the number-th call to the disk fail with ENOSPC and gives the list of all calls so far."""
    calls = []

    def failing(name, real):
        def call(*arguments, **options):
            calls.append(name)
            if len(calls) == number:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(*arguments, **options)

        return call

    for name in ("fsync", "rename", "replace", "open"):
        monkeypatch.setattr(files.os, name, failing(name, getattr(os, name)))
    monkeypatch.setattr(files, "open", failing("open", open), raising=False)
    monkeypatch.setattr(Path, "open", failing("open", Path.open))
    return calls


def test_file_is_replaced_and_nothing_is_left_beside(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    write_atomic(path, b"new")
    assert tree(tmp_path) == {"file": b"new"}


def test_order_is_write_sync_rename_sync(tmp_path, monkeypatch):
    calls = fail_call(monkeypatch, None)
    write_atomic(tmp_path / "file", b"new")
    assert calls == ["open", "fsync", "replace", "open", "fsync"]
    calls.clear()
    write_sealed(tmp_path / "folder", CONTENT)
    assert calls == ["open", "fsync"] * 4 + ["rename", "open", "fsync"]


@pytest.mark.parametrize("number", range(1, 6))
def test_full_disk_at_any_call_leaves_the_old_or_the_new_file(tmp_path, monkeypatch, number):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with monkeypatch.context() as patch:
        fail_call(patch, number)
        with pytest.raises(AnyformerError, match=f"{path} .*No space left on device.*; free space"):
            write_atomic(path, b"new")
    assert tree(tmp_path) == {"file": b"new" if number > 3 else b"old"}


@pytest.mark.parametrize("number", range(1, 12))
def test_full_disk_at_any_call_leaves_the_whole_folder_or_none(tmp_path, monkeypatch, number):
    with monkeypatch.context() as patch:
        fail_call(patch, number)
        with pytest.raises(AnyformerError, match="No space left on device"):
            write_sealed(tmp_path / "folder", CONTENT)
    if number > 9:  # the rename has been done; only its sync failed
        assert read_sealed(tmp_path / "folder") == CONTENT
    else:
        assert tree(tmp_path) == {}


def test_missing_folder_is_told(tmp_path):
    with pytest.raises(AnyformerError, match="No such file or directory"):
        write_atomic(tmp_path / "nowhere" / "file", b"")
    with pytest.raises(AnyformerError, match="No such file or directory"):
        write_sealed(tmp_path / "nowhere" / "folder", {})
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(AnyformerError, match="cannot write"), locked(tmp_path / "file"):
        pass


@pytest.fixture
def sealed(tmp_path):
    write_sealed(tmp_path / "folder", CONTENT)
    assert read_sealed(tmp_path / "folder") == CONTENT
    return tmp_path / "folder"


def test_every_flipped_bit_is_refused(sealed):
    flips = 0
    for path in sorted(sealed.iterdir()):
        good = path.read_bytes()
        for bit in range(0, 8 * len(good), 7):
            changed = bytearray(good)
            changed[bit // 8] ^= 1 << bit % 8
            path.write_bytes(changed)
            with pytest.raises(AnyformerError, match=r"folder/\S+ (is damaged|is missing)"):
                read_sealed(sealed)
            flips += 1
        path.write_bytes(good)
    assert flips > 500
    assert read_sealed(sealed) == CONTENT


def test_every_cut_and_zeroed_block_is_refused(sealed):
    for path in sorted(sealed.iterdir()):
        good = path.read_bytes()
        for cut in range(0, len(good), 3):
            zeroed = good[:cut] + bytes(len(good[cut : cut + 16])) + good[cut + 16 :]
            for changed in (good[:cut], zeroed, good + good[: cut + 1]):
                if changed == good:
                    continue
                path.write_bytes(changed)
                with pytest.raises(AnyformerError):
                    read_sealed(sealed)
        path.write_bytes(good)
    assert read_sealed(sealed) == CONTENT


@pytest.mark.parametrize("name", [*CONTENT, MANIFEST])
def test_missing_files_are_named(sealed, name):
    (sealed / name).unlink()
    with pytest.raises(AnyformerError, match=f"folder/{name} is missing"):
        read_sealed(sealed)


def test_swapped_extra_and_linked_files_are_named(sealed, tmp_path):
    (sealed / "a.json").rename(sealed / "x")
    (sealed / "b.bin").rename(sealed / "a.json")
    (sealed / "x").rename(sealed / "b.bin")
    with pytest.raises(AnyformerError, match=r"folder/a\.json is damaged: its SHA-256"):
        read_sealed(sealed)
    write_sealed(tmp_path / "other", CONTENT)
    (tmp_path / "other" / "more").write_bytes(b"")
    with pytest.raises(AnyformerError, match="other/more does not belong there"):
        read_sealed(tmp_path / "other")
    (tmp_path / "other" / "more").unlink()
    (tmp_path / "other" / "more").symlink_to("/dev/zero")
    with pytest.raises(AnyformerError, match="other/more is a link or no file"):
        read_sealed(tmp_path / "other")
    with pytest.raises(AnyformerError, match="nowhere cannot be read"):
        read_sealed(tmp_path / "nowhere")


def test_random_bytes_are_no_manifest(sealed):
    chance = np.random.default_rng(0)
    for data in [b"", b"null", b"[]", b'{"sha256": 3}', b'{"sha256": [1]}', *(chance.bytes(40) for _ in range(20))]:
        (sealed / MANIFEST).write_bytes(data)
        with pytest.raises(AnyformerError, match=MANIFEST):
            read_sealed(sealed)


def test_second_writer_is_refused_until_the_first_has_gone(tmp_path):
    folder = tmp_path / "deep" / "folder"
    with locked(folder), pytest.raises(UsageError, match=r"another run is writing to .*folder; wait"), locked(folder):
        pass
    with locked(folder):
        pass
