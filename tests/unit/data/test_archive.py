"""Arrays in a ``.npz`` file become pictures with targets, read some rows at a time."""

import numpy as np
import pytest
import torch

from anyformer.core.errors import UsageError
from anyformer.data import archive as reader
from anyformer.data.images import load

COUNT = 20
GREY = np.random.default_rng(0).integers(0, 256, (COUNT, 16, 16), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (COUNT, 16, 16, 3), dtype=np.uint8)
LABELS = np.arange(COUNT) % 2


@pytest.fixture
def save(tmp_path):
    def save(packed=False, **arrays):
        (np.savez_compressed if packed else np.savez)(tmp_path / "data.npz", **arrays)
        return tmp_path / "data.npz"

    return save


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("chunk", [1, 1000, reader.CHUNK])
def test_pictures_are_kept_to_the_bit(save, monkeypatch, packed, chunk):
    monkeypatch.setattr(reader, "CHUNK", chunk)
    grey = load(save(packed, images=GREY, labels=LABELS))
    assert (grey.images[:, 0].numpy() == GREY).all()
    assert grey.labels.tolist() == LABELS.tolist()
    assert (grey.kind, grey.classes) == ("classes", ("0", "1"))
    assert grey.where(3) == "images[3] (data.npz, row 4)"
    colour = load(save(packed, images=COLOUR, labels=LABELS))
    assert (colour.images.permute(0, 2, 3, 1).numpy() == COLOUR).all()
    assert (load(save(images=GREY[..., None], labels=LABELS)).images == grey.images).all()


@pytest.mark.parametrize("scale", [1, 255])
def test_floats_are_levels_or_shares(save, scale):
    images = (GREY / 255 * scale).astype(np.float32)
    assert (load(save(images=images, labels=LABELS)).images[:, 0].numpy() == GREY).all()


def test_size_is_chosen_and_asked_for(save):
    path = save(images=np.repeat(np.repeat(GREY, 4, 1), 3, 2), labels=LABELS)
    assert load(path).size == 48
    assert load(path, 24).images.shape == (COUNT, 1, 24, 24)
    with pytest.raises(UsageError, match="4 to 1024 pixels, not 3"):
        load(path, 3)


def test_kinds_of_targets(save):
    names = np.array(["cat", "dog"])
    words = load(save(images=GREY, labels=names[LABELS]))
    assert (words.classes, words.labels.tolist()) == (("cat", "dog"), LABELS.tolist())
    named = load(save(images=GREY, labels=LABELS, classes=names[::-1]))
    assert (named.classes, named.labels.tolist()) == (("dog", "cat"), LABELS.tolist())
    table = np.stack([LABELS, np.arange(COUNT) % 3 == 0], axis=1)
    several = load(save(images=GREY, labels=table, classes=names))
    assert (several.kind, several.classes, several.labels.dtype) == ("multilabel", ("cat", "dog"), torch.float32)
    assert (several.labels.numpy() == table).all()
    numbers = load(save(images=GREY, targets=np.arange(COUNT) / 7))
    assert (numbers.kind, numbers.labels.shape) == ("regression", (COUNT, 1))
    assert load(save(images=GREY, labels=np.arange(COUNT)), kind="regression").labels.flatten().tolist() == list(
        range(COUNT)
    )


def test_parts_that_are_given_are_kept(save):
    parts = np.array(["train"] * 14 + ["test"] * 6)
    data = load(save(images=GREY, labels=LABELS, split=parts))
    assert data.split(0).test.tolist() == list(range(14, 20))


def test_a_large_archive_is_read_through_a_file(save, monkeypatch, tmp_path):
    monkeypatch.setattr("anyformer.data.pixels.IN_MEMORY", 0)
    monkeypatch.setenv("ANYFORMER_CACHE", str(tmp_path / "cache"))
    path = save(images=GREY, labels=LABELS)
    first = load(path)
    monkeypatch.setattr(reader, "_pictures", None)
    again = load(path)
    assert (again.images[:, 0].numpy() == GREY).all()
    assert first.digest() == again.digest()


def test_a_large_table_is_refused(save, monkeypatch):
    monkeypatch.setattr(reader, "MAX_TABLE", 9)
    with pytest.raises(UsageError, match=r"array labels is .20,.; it has one row a picture"):
        load(save(images=GREY, labels=LABELS))
