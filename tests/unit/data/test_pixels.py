"""Many pictures lie in a file: read once, whole or told, and never all in memory."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.data import pixels, reading
from anyformer.data.batches import Batches, data_config
from anyformer.data.images import load
from anyformer.data.pixels import Pixels, gather


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, into which every set goes."""
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pixels, "IN_MEMORY", 0)
    return tmp_path / "cache" / "pictures"


def write_folder(root: Path, each: int = 5, coloured: bool = True) -> Path:
    for number, name in enumerate(["a", "b"]):
        (root / name).mkdir(parents=True)
        for index in range(each):
            picture = np.random.default_rng(100 * number + index).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            picture = picture if coloured else np.repeat(picture[..., :1], 3, axis=2)
            Image.fromarray(picture).save(root / name / f"{index}.png")
    return root


@pytest.mark.parametrize("coloured", [True, False])
def test_a_file_and_memory_give_the_same(tmp_path, monkeypatch, cache, coloured):
    root = write_folder(tmp_path / "data", coloured=coloured)
    in_file = load(root)
    assert in_file.channels == (3 if coloured else 1)
    monkeypatch.setattr(pixels, "IN_MEMORY", 2**20)
    in_memory = load(root)
    assert torch.equal(in_file.images, in_memory.images)
    assert in_file.digest() == in_memory.digest()
    positions = torch.tensor([7, 0, 7, 3])
    for data in (in_file, in_memory):
        part, labels = data.part(positions)
        assert part.shape == (4, data.channels, 16, 16)
        assert torch.equal(part[:], data.images[positions])
        assert torch.equal(part.tensor(), data.images[positions])
        assert torch.equal(part[2], data.images[7])
        assert torch.equal(part[torch.tensor([1, 0])], data.images[[0, 7]])
        assert torch.equal(torch.cat(list(part.split(3))), data.images[positions])
        assert torch.equal(part.part(torch.tensor([3]))[0], data.images[3])
        assert labels.tolist() == [1, 0, 1, 0]
    assert data_config(in_file.pixels) == data_config(in_memory.images)


def test_batches_from_a_file_are_those_from_memory(tmp_path, cache):
    data = load(write_folder(tmp_path / "data"))
    config = data_config(data.images)
    from_file = Batches(data.pixels, data.labels, config, size=4, seed=1)
    from_memory = Batches(data.images.clone(), data.labels, config, size=4, seed=1)
    for step in (5, 0, 3):
        assert torch.equal(from_file(step).images, from_memory(step).images)


def test_pictures_are_decoded_once_and_again_when_one_changes(tmp_path, monkeypatch, cache):
    root = write_folder(tmp_path / "data")
    first = load(root).digest()
    decode = reading.decode
    monkeypatch.setattr(reading, "decode", None)
    assert load(root).digest() == first
    assert len(list(cache.glob("*.pixels"))) == 1
    monkeypatch.setattr(reading, "decode", decode)
    shutil.copy(root / "a" / "0.png", root / "b" / "0.png")
    assert load(root).digest() != first
    assert len(list(cache.glob("*.pixels"))) == 2
    assert load(root, 8).size == 8


@pytest.mark.parametrize("damage", ["bit", "cut", "note", "no note"])
def test_a_damaged_file_is_made_anew(tmp_path, cache, damage):
    root = write_folder(tmp_path / "data")
    first = load(root).digest()
    (path,) = cache.glob("*.pixels")
    whole = path.read_bytes()
    if damage == "bit":
        path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    elif damage == "cut":
        path.write_bytes(whole[:-1])
    elif damage == "note":
        path.with_suffix(".json").write_text("[]")
    else:
        path.with_suffix(".json").unlink()
    assert load(root).digest() == first
    assert path.read_bytes() == whole


def test_a_file_cut_while_in_use_is_told(tmp_path, cache):
    data = load(write_folder(tmp_path / "data"))
    (path,) = cache.glob("*.pixels")
    os.truncate(path, 1000)
    with pytest.raises(AnyformerError, match="was cut short while it was in use; delete it and run again"):
        data.part(torch.tensor([9]))[0][0]
    os.truncate(path, 0)
    other = os.open(tmp_path, os.O_RDONLY)
    os.dup2(other, data.pixels.source.descriptor)
    os.close(other)
    with pytest.raises(AnyformerError, match="was cut short"):
        data.pixels[0]


def test_a_bad_picture_leaves_nothing_behind(tmp_path, cache):
    root = write_folder(tmp_path / "data")
    path = root / "a" / "1.png"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(UsageError, match=r"1\.png is damaged"):
        load(root)
    assert list(cache.iterdir()) == []


def test_a_full_disk_is_told_before_decoding(tmp_path, monkeypatch, cache):
    root = write_folder(tmp_path / "data")
    monkeypatch.setattr(reading, "decode", None)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2000))
    with pytest.raises(UsageError, match=r"10 pictures at 16 x 16 take .* use a size of at most 7, free space, or set"):
        load(root)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100))
    with pytest.raises(UsageError, match="use fewer pictures"):
        load(root)


def test_a_cache_that_cannot_be_written_is_told(tmp_path, monkeypatch, cache):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "file"))
    with pytest.raises(AnyformerError, match=r"cannot write .*free space, or set ANYFORMER_CACHE"):
        load(write_folder(tmp_path / "data"))


def test_files_unused_for_the_longest_go(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(pixels, "KEPT", 2 * 100)

    def put(name):
        return gather((1, 1, 10, 10), lambda: [np.full((1, 10, 10), ord(name), np.uint8)], lambda: name)

    first = put("a")
    for name, age in {"old": 0, "new": time.time()}.items():
        (cache / f"{name}.partial").touch()
        os.utime(cache / f"{name}.partial", (age, age))
    for age, name in enumerate("ab"):
        put(name)
        os.utime(cache / f"{name}.pixels", (age, age))
    put("c")
    kept = {f"{name}{end}" for name in "bc" for end in (".pixels", ".json")}
    assert {path.name for path in cache.iterdir()} == {*kept, "new.partial"}
    assert (first[0] == ord("a")).all()  # who has one open keeps it


def test_pictures_that_change_while_being_read_are_told(cache):
    with pytest.raises(AnyformerError, match="1 pictures came where 2 were announced"):
        gather((2, 1, 4, 4), lambda: [np.zeros((1, 4, 4), np.uint8)], lambda: "x")


def test_a_disk_that_changes_bytes_is_told(monkeypatch, cache):
    monkeypatch.setattr(pixels, "write_atomic", lambda path, data: path.write_bytes(b"{}"))
    with pytest.raises(AnyformerError, match="was damaged while it was written; check the disk"):
        gather((1, 1, 4, 4), lambda: [np.zeros((1, 4, 4), np.uint8)], lambda: "x")


def test_a_whole_in_memory_is_not_copied():
    images = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    assert Pixels(images).tensor() is images
    assert torch.equal(Pixels(images, torch.tensor([2, 1, 0])).tensor(), images)


CHILD = """
import resource, sys
from anyformer.data import pixels
from anyformer.data.batches import Batches, data_config
from anyformer.data.images import load

pixels.IN_MEMORY = 0
for name in sys.argv[2:]:
    data = load(f"{sys.argv[1]}/{name}", 256)
    train, labels = data.part(data.split(0).train)
    batches = Batches(train, labels, data_config(train), size=4, seed=0)
    for step in range(80):  # of 4, 280 pictures are an epoch of the larger folder
        batches(step)
    data.digest()
    print(len(data), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def test_memory_does_not_grow_with_the_folder(tmp_path):
    """Decoding, sealing, dividing and 80 batches of 20 MB of pixels, then of 79 MB."""
    for name, each in {"one": 50, "four": 200}.items():
        for label in "ab":
            (tmp_path / name / label).mkdir(parents=True)
            for index in range(each):
                Image.new("RGB", (8, 8), (index, 9, 80)).save(tmp_path / name / label / f"{index}.bmp")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ANYFORMER_CACHE": str(tmp_path / "cache")}
    command = [sys.executable, "-c", CHILD, str(tmp_path), "one", "four"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    one, four = (tuple(map(int, line.split())) for line in done.stdout.splitlines())
    assert (one[0], four[0]) == (100, 400)
    assert sum(path.stat().st_size for path in (tmp_path / "cache").rglob("*.pixels")) == 500 * 3 * 256**2
    assert four[1] < one[1] + 16 * 2**20
