"""Pieces of source are from the package that they are said to be from, and files are whole in one part."""

import sysconfig
from pathlib import Path

import pytest
import torch

from anyformer.core.errors import UsageError
from anyformer.data.source_packages import PACKAGES, PARTS, SourcePackages

ROOT = Path(sysconfig.get_paths()["stdlib"])
TASK = SourcePackages(size=24, tokens=200)


def test_a_piece_stands_in_a_file_of_its_package():
    contents = {package: [path.read_bytes() for path in (ROOT / package).rglob("*.py")] for package in PACKAGES}
    batch = TASK(0)
    assert batch.images.ids.shape == (24, 200)
    for ids, label in zip(batch.images.ids, batch.labels.tolist(), strict=True):
        piece = bytes(ids.tolist())
        assert any(piece in content for content in contents[PACKAGES[label]])
    assert len(set(batch.labels.tolist())) > 4


def test_no_file_is_in_two_parts():
    parts = [SourcePackages(part=part, tokens=200) for part in PARTS]
    for package in range(len(PACKAGES)):
        files = [part._files[package] for part in parts]
        assert min(map(len, files)) >= 1
        assert len({file for some in files for file in some}) == sum(map(len, files))
    other = SourcePackages(part="test", tokens=200, division=1)
    assert other._files != parts[2]._files


def test_a_step_is_a_function_of_seed_part_and_step():
    again = SourcePackages(size=24, tokens=200)
    assert torch.equal(again(1).images.ids, TASK(1).images.ids)
    for change in ({"seed": 1}, {"part": "test"}):
        assert not torch.equal(SourcePackages(size=24, tokens=200, **change)(1).images.ids, TASK(1).images.ids)
    assert (TASK.vocabulary, TASK.classes) == (256, 8)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"tokens": 0}, "are no task"),
        ({"packages": ("xml",)}, "are no task"),
        ({"part": "tset"}, "there is no part 'tset'; the parts are train, validation, test"),
    ],
)
def test_what_cannot_be_asked_for_is_named(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        SourcePackages(**options)


def test_a_package_that_is_too_small_is_named():
    with pytest.raises(UsageError, match="the package 'nowhere' of this interpreter has 0 files of 200 bytes or more"):
        SourcePackages(tokens=200, packages=("nowhere", "xml")).sample(0)
