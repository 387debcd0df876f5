"""Glyphs are the same for ever, and their test fonts are unknown to training."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from anyformer.app.drawing import write_glyphs
from anyformer.core.errors import AnyformerError, UsageError
from anyformer.data import glyphs as drawer
from anyformer.data.glyphs import PARAMETERS, Parameters, draw, glyphs, write
from anyformer.data.images import load


def test_parameters_are_frozen():
    """Were this to change, figures of earlier models would no longer be comparable: give the new generator a new name."""
    assert PARAMETERS.digest() == "4990603f911cbd13e03a7ae872e73f1c3dd6e582f51eaed781fe6d69bdfa03fd"
    assert Parameters(degrees=16.0).digest() != PARAMETERS.digest()


def test_the_drawing_is_frozen():
    """Means of blocks, to a level or two, as versions of FreeType round differently."""
    blocks = draw(64, "train", "K", 0, 0).reshape(4, 16, 4, 16).mean((1, 3))
    assert (
        abs(blocks - [[191, 165, 163, 173], [170, 117, 120, 145], [165, 92, 138, 174], [192, 172, 209, 150]]).max() < 3
    )


def test_fonts_of_train_and_test_are_of_different_families():
    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font

    families = []
    for fonts in (PARAMETERS.train_fonts, PARAMETERS.test_fonts):
        faces = [FT2Font(f"{get_data_path()}/fonts/ttf/{name}") for name in fonts]
        assert all({ord(character) for character in PARAMETERS.characters} <= set(face.get_charmap()) for face in faces)
        families.append({face.family_name for face in faces})
    assert families[0] == {"DejaVu Sans", "DejaVu Serif", "cmr10", "cmb10", "cmti10"}
    assert families[1] == {"DejaVu Sans Mono", "STIXGeneral", "cmss10", "cmtt10"}


def test_fonts_are_those_of_the_part(monkeypatch):
    used = {"train": set(), "test": set()}
    drawn = drawer._drawn
    for part, names in used.items():
        monkeypatch.setattr(
            drawer, "_drawn", lambda a, name, side, names=names: names.add(name) or drawn(a, name, side)
        )
        for number in range(150):
            draw(16, part, "A", number, 0)
    assert used == {"train": set(PARAMETERS.train_fonts), "test": set(PARAMETERS.test_fonts)}


def test_a_picture_is_a_function_of_seed_part_character_and_number():
    first = draw(32, "train", "A", 0, 0)
    np.random.default_rng(0).random(9)
    assert (draw(32, "train", "A", 0, 0) == first).all()
    others = [
        draw(32, *place)
        for place in [("test", "A", 0, 0), ("train", "B", 0, 0), ("train", "A", 1, 0), ("train", "A", 0, 1)]
    ]
    assert all((other != first).any() for other in others)
    assert first.dtype == np.uint8


def test_the_set_has_its_parts_and_a_larger_one_begins_with_it():
    small = glyphs(16, per_class=10, classes=4)
    assert small.classes == tuple("ABCD")
    assert small.images.shape == (40, 1, 16, 16)
    parts = small.split(0)
    assert small.labels[parts.test].bincount().tolist() == [2] * 4
    assert small.labels[parts.validation].bincount().tolist() == [1] * 4
    assert torch.equal(small.split(1).test, parts.test)
    assert small.names[0] == "train/A/0000"
    large = glyphs(16, per_class=20, classes=4)
    places = [large.names.index(name) for name in small.names]
    assert torch.equal(large.images[places], small.images)


def test_what_is_drawn_can_be_told_apart():
    """The nearest mean of undistorted glyphs is far better than chance even on these small pictures."""
    data = glyphs(24, per_class=20, classes=6)
    parts = data.split(0)
    pixels = data.images.float().flatten(1)
    pixels = (pixels - pixels.mean(1, keepdim=True)) / pixels.std(1, keepdim=True)
    likeness = (pixels @ pixels[parts.train].T).abs()
    nearest = data.labels[parts.train][likeness[parts.test].argmax(1)]
    assert (nearest == data.labels[parts.test]).double().mean() > 0.35
    dark = data.images[:, 0, :2].float().mean((1, 2)) > data.images[:, 0, 8:16, 8:16].float().mean((1, 2))
    assert 0.25 < dark.double().mean() < 0.75  # dark on light and light on dark


def test_a_written_folder_is_the_set(tmp_path, capsys):
    folder = tmp_path / "letters"
    write_glyphs(str(folder), per_class=5, classes=3, size=16, seed=2)
    assert "15 pictures of 3 characters at 16 x 16" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["glyphs.json", "test", "train"]
    assert json.loads((folder / "glyphs.json").read_text())["digest"] == PARAMETERS.digest()
    read, made = load(folder), glyphs(16, per_class=5, classes=3, seed=2)
    assert read.classes == made.classes
    order = [made.names.index(name.removesuffix(".png")) for name in read.names]
    assert torch.equal(read.images, made.images[order])
    assert torch.equal(read.labels, made.labels[order])
    assert torch.equal(read.given, made.given[order])
    with Image.open(folder / "train" / "A" / "0000.png") as picture:
        assert picture.mode == "L"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"per_class": 2}, "3 to 10,000 pictures, not 2"),
        ({"per_class": 10_001}, "not 10001"),
        ({"classes": 1}, "2 to 36 classes, not 1"),
        ({"classes": 37}, "not 37"),
        ({"size": 2}, "4 to 1024 pixels, not 2"),
    ],
)
def test_numbers_out_of_range_are_refused(tmp_path, options, reason):
    with pytest.raises(UsageError, match=reason):
        write(tmp_path / "x", **options)
    assert list(tmp_path.iterdir()) == []


def test_folders_that_hold_something_are_left_alone(tmp_path):
    (tmp_path / "mine").write_text("kept")
    for place in (tmp_path, tmp_path / "mine"):
        with pytest.raises(UsageError, match="is there and not empty"):
            write(place, per_class=3, classes=2, size=8)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    (tmp_path / "empty").mkdir()
    assert write(tmp_path / "empty", per_class=3, classes=2, size=8) == 6


def test_a_disk_that_refuses_is_told_and_nothing_is_left(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(AnyformerError, match=r"cannot write .*free space or name another folder"):
        write(tmp_path / "file" / "x", per_class=3, classes=2, size=8)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_is_missing_is_told(monkeypatch, tmp_path):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "PIL", None)
        drawer._drawn.cache_clear()
        with pytest.raises(UsageError, match=r"reading pictures needs Pillow: pip install"):
            draw(16, "train", "A", 0, 0)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(UsageError, match=r"glyphs need Pillow and matplotlib: pip install"):
            draw(16, "train", "A", 0, 0)
    monkeypatch.setattr("matplotlib.get_data_path", lambda: str(tmp_path))
    with pytest.raises(UsageError, match=r"font .*\.ttf is missing; install matplotlib again"):
        draw(16, "train", "A", 0, 0)
