"""Folders of pictures become labelled tensors; what is wrong with them is told in one sentence."""

import os

import numpy as np
import pytest
import torch
from PIL import Image

from anyformer.core.errors import UsageError
from anyformer.data import images as reader
from anyformer.data.decode import decode
from anyformer.data.images import DIGITS_STEP, digits, load, read_folder


def picture(path, mode="L", side=(16, 16), seed=0):
    shape = (side[1], side[0]) if mode == "L" else (side[1], side[0], 3)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Two classes of four grey pictures of 16 x 16."""
    root = tmp_path / "data"
    for number, name in enumerate(["dog", "cat"]):
        (root / name).mkdir(parents=True)
        for index in range(4):
            picture(root / name / f"{index}.png", seed=10 * number + index)
    return root


def test_folder_is_read_in_order_of_names(folder):
    data = read_folder(folder)
    assert data.classes == ("cat", "dog")
    assert data.names == tuple(f"{name}/{index}.png" for name in ("cat", "dog") for index in range(4))
    assert data.labels.tolist() == [0] * 4 + [1] * 4
    assert (data.channels, data.size, len(data)) == (1, 16, 8)
    assert data.images.dtype == torch.uint8
    assert data.labels.dtype == torch.int64
    for image, name in zip(data.images, data.names, strict=True):
        assert (image.numpy() == decode(folder / name, 16, 1)).all()


def test_hidden_files_and_notes_beside_the_classes_are_passed_over(folder):
    (folder / "README.txt").write_text("notes")
    (folder / ".cache").mkdir()
    (folder / "cat" / ".DS_Store").write_bytes(b"x")
    (folder / "cat" / "Thumbs.db").write_bytes(b"x")
    assert len(load(folder)) == 8


def test_one_coloured_picture_makes_the_set_coloured(folder):
    picture(folder / "cat" / "red.png", mode="RGB")
    data = read_folder(folder)
    assert data.channels == 3
    for image, name in zip(data.images, data.names, strict=True):
        assert (image.numpy() == decode(folder / name, 16, 3)).all()


def test_grey_stored_in_colour_is_grey(folder):
    for path in folder.glob("*/*.png"):
        Image.open(path).convert("RGB").save(path)
    data = read_folder(folder)
    assert data.channels == 1
    assert (data.images[0].numpy() == decode(folder / data.names[0], 16, 1)).all()


def test_size_is_the_median_shorter_side_in_eights_within_bounds(folder):
    for side, expected in {(90, 30): 32, (300, 200): 64, (3, 9): 8, (43, 60): 40}.items():
        for path in folder.glob("*/*.png"):
            picture(path, side=side)
        assert read_folder(folder).size == expected
    assert read_folder(folder, size=20).size == 20


@pytest.mark.parametrize("size", [0, -8, 3, 1025])
def test_size_out_of_range_is_refused(folder, size):
    for source in (folder, "digits"):
        with pytest.raises(UsageError, match=f"4 to 1024 pixels, not {size}"):
            load(source, size)


def test_missing_source_tells_what_is_known(tmp_path):
    with pytest.raises(UsageError, match=r"no folder .*digit.*built-in sets: digits; did you mean digits\?"):
        load("digit")
    with pytest.raises(UsageError, match="no folder"):
        load(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no folder"):
        load("a\0b")


def test_wrong_layouts_are_refused_with_the_remedy(folder, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match="has 0 sub-folders; classification needs at least two"):
        load(empty)
    (empty / "cat").mkdir()
    with pytest.raises(UsageError, match="has 1 sub-folders"):
        load(empty)
    with pytest.raises(UsageError, match="is a file; give a folder"):
        load(folder / "cat" / "0.png")
    picture(folder / "loose.PNG")
    with pytest.raises(UsageError, match=r"loose\.PNG lies outside of the classes; move it"):
        load(folder)
    with pytest.raises(UsageError, match="cat is a folder inside of a class"):
        load(tmp_path)


def test_too_small_class_is_refused(folder):
    (folder / "cow").mkdir()
    for index in range(2):
        picture(folder / "cow" / f"{index}.png")
    with pytest.raises(UsageError, match="cow has 2 pictures; a class needs at least 3, one for each of train"):
        load(folder)


def test_bad_files_are_told_together(folder):
    (folder / "cat" / "0.png").write_bytes(b"")
    with pytest.raises(UsageError, match=r"^\S*cat/0.png is empty; replace it or remove it$"):
        load(folder)
    (folder / "dog" / "notes.txt").write_text("not a picture")
    with pytest.raises(UsageError, match=r"^2 files in .*cat/0.png is empty.*notes.txt is not a readable"):
        load(folder)
    for index in range(10):
        (folder / "dog" / f"x{index}.png").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"^12 files in .* and 7 more$"):
        load(folder)


def test_cut_pixels_behind_a_good_header_are_told(folder):
    path = folder / "cat" / "1.png"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UsageError, match=r"1\.png is damaged or cut short"):
        load(folder)


def test_links_in_circles_and_pipes_are_refused(folder):
    (folder / "loop").symlink_to(folder / "loop")
    with pytest.raises(UsageError, match="loop cannot be read"):
        load(folder)
    (folder / "loop").unlink()
    (folder / "loop").symlink_to(folder)
    with pytest.raises(UsageError, match="is a folder inside of a class"):
        load(folder)
    (folder / "loop").unlink()
    os.mkfifo(folder / "cat" / "pipe.png")
    with pytest.raises(UsageError, match=r"pipe\.png is a device or a pipe"):
        load(folder)


def test_names_that_cannot_be_printed_are_refused(folder):
    picture(folder / "cat" / "a\nb.png")
    with pytest.raises(UsageError, match=r"a\\nb.png' has a name that cannot be printed"):
        load(folder)
    (folder / "cat" / "a\nb.png").unlink()
    os.mkdir(os.fsencode(folder) + b"/caf\xe9")
    with pytest.raises(UsageError, match=r"caf\\udce9' has a name"):
        load(folder)


def test_more_than_the_memory_limit_is_refused_before_decoding(folder, monkeypatch):
    monkeypatch.setattr(reader, "MAX_BYTES", 8 * 16 * 16)
    assert read_folder(folder).size == 16
    monkeypatch.setattr(reader, "decode", None)
    with pytest.raises(
        UsageError, match=r"8 pictures, at 24 x 24 more than .* GiB of memory; use a size of at most 16"
    ):
        read_folder(folder, size=24)
    monkeypatch.setattr(reader, "MAX_BYTES", 8)
    with pytest.raises(UsageError, match="use fewer pictures"):
        read_folder(folder)


def test_digits_are_exact_and_reversible():
    from sklearn.datasets import load_digits

    data = load("digits")
    assert data.images.shape == (1797, 1, 8, 8)
    assert data.classes == tuple("0123456789")
    assert (data.images[:, 0].numpy() / DIGITS_STEP == load_digits().images).all()
    assert (data.labels.numpy() == load_digits().target).all()
    assert digits(16).images.shape == (1797, 1, 16, 16)


def test_digest_follows_pixels_labels_and_names(folder):
    first = read_folder(folder)
    assert first.digest() == read_folder(folder).digest()
    picture(folder / "cat" / "0.png", seed=99)
    changed = read_folder(folder)
    (folder / "cat" / "0.png").rename(folder / "cat" / "00.png")
    renamed = read_folder(folder)
    (folder / "cat" / "3.png").rename(folder / "dog" / "z.png")
    assert len({data.digest() for data in (first, changed, renamed, read_folder(folder))}) == 4
