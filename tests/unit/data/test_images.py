"""Folders of pictures become labelled tensors; what is wrong with them is told in one sentence."""

import os
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from anyformer.core.errors import UsageError
from anyformer.data.decode import decode
from anyformer.data.images import DIGITS_STEP, digits, load, read_folder
from anyformer.data.split import split


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
    for source in (folder, "digits", "glyphs"):
        with pytest.raises(UsageError, match=f"4 to 1024 pixels, not {size}"):
            load(source, size)


def test_missing_source_tells_what_is_known(tmp_path):
    with pytest.raises(UsageError, match=r"no folder .*digit.*built-in sets: digits, glyphs; did you mean digits\?"):
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
    with pytest.raises(UsageError, match="is neither a folder nor a table"):
        load(folder / "cat" / "0.png")
    with pytest.raises(UsageError, match=r"0\.png cannot be listed \(Not a directory\); make it a readable folder"):
        read_folder(folder / "cat" / "0.png")
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


def test_digits_are_exact_and_reversible():
    from sklearn.datasets import load_digits

    data = load("digits")
    assert data.images.shape == (1797, 1, 8, 8)
    assert data.classes == tuple("0123456789")
    assert (data.images[:, 0].numpy() / DIGITS_STEP == load_digits().images).all()
    assert (data.labels.numpy() == load_digits().target).all()
    assert digits(16).images.shape == (1797, 1, 16, 16)


def test_without_scikit_learn_the_remedy_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UsageError, match="the digits come with scikit-learn: pip install"):
        load("digits")


def test_digest_follows_pixels_labels_and_names(folder):
    first = read_folder(folder)
    assert first.digest() == read_folder(folder).digest()
    picture(folder / "cat" / "0.png", seed=99)
    changed = read_folder(folder)
    (folder / "cat" / "0.png").rename(folder / "cat" / "00.png")
    renamed = read_folder(folder)
    (folder / "cat" / "3.png").rename(folder / "dog" / "z.png")
    assert len({data.digest() for data in (first, changed, renamed, read_folder(folder))}) == 4


def test_folders_of_parts_keep_their_pictures(tmp_path, folder):
    """Test pictures stay test pictures; validation is taken from training where it is not given."""
    root = tmp_path / "parts"
    for part, offset in {"train": 0, "test": 50}.items():
        for number, name in enumerate(["dog", "cat"]):
            (root / part / name).mkdir(parents=True)
            for index in range(8 if part == "train" else 2):
                picture(root / part / name / f"{index}.png", seed=offset + 10 * number + index)
    (root / "about.json").write_text("{}")
    data = load(root)
    assert data.classes == ("cat", "dog")
    assert data.names[0] == "train/cat/0.png"
    for seed in range(3):
        parts = data.split(seed)
        assert {data.names[i].partition("/")[0] for i in parts.test} == {"test"}
        assert len(parts.test) == 4
        assert data.labels[parts.validation].tolist() == [0, 1]
        assert len(parts.train) == 14
    (root / "val" / "cat").mkdir(parents=True)
    picture(root / "val" / "cat" / "x.png")
    assert load(root).notes == ("the parts are those of the folders train and test",)
    given = load(root)
    assert [given.names[i] for i in given.split(0).validation] == ["val/cat/x.png"]
    assert load(folder).given is None


def test_classes_may_be_called_train_and_test(tmp_path):
    for name in ("train", "test"):
        (tmp_path / name).mkdir()
        for index in range(3):
            picture(tmp_path / name / f"{index}.png", seed=index)
    assert load(tmp_path).classes == ("test", "train")


def test_kind_and_columns_are_refused_where_they_have_no_meaning(folder):
    with pytest.raises(UsageError, match="has classes; regression needs a table"):
        load(folder, kind="regression")
    with pytest.raises(UsageError, match="digits has classes"):
        load("digits", kind="multilabel")
    with pytest.raises(UsageError, match=r"is no table; columns can be named for \.csv"):
        load(folder, target=["age"])
    with pytest.raises(UsageError, match=r"no kind of target 'class'; known are .*did you mean classes"):
        load(folder, kind="class")


def test_split_of_a_folder_is_that_of_its_labels(folder):
    data = load(folder)
    assert data.split(3).digest() == split(data.labels, 3).digest()
    images, labels = data.part(data.split(3).train)
    assert torch.equal(images[:], data.images[data.split(3).train])
    assert torch.equal(labels, data.labels[data.split(3).train])
    assert data.where(2) == "cat/2.png"
