"""Whatever bytes a table or an archive holds: rows and arrays, or one sentence; the slow form tries ten thousand of each."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.core.errors import UsageError
from anyformer.data.archive import read_archive
from anyformer.data.tables import rows
from anyformer.data.targets import from_columns

cells = st.text(st.sampled_from('ab1.,;|"\n\r\t \x00é-e'), max_size=8)
lines = st.lists(st.lists(cells, min_size=1, max_size=4).map(",".join), max_size=6).map("\n".join)
texts = st.one_of(lines.map(str.encode), lines.map(lambda text: text.encode("utf-16")), st.binary(max_size=200))


def told(read) -> bool:
    """Whether it was refused, which has to be in one printable line that names the file."""
    sentence = ""
    try:
        read()
    except UsageError as error:
        sentence = str(error)
    assert sentence.isprintable()
    assert "data" in sentence or not sentence
    return bool(sentence)


def read_table(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    found = []
    if not told(lambda: found.extend(rows(path))):
        assert all(len(row.cells) == len(found[0].cells) for row in found)
        numbers = [row.number for row in found]
        assert numbers == sorted(set(numbers))


def read_cells(column: list[str]) -> None:
    found = []
    if not told(lambda: found.append(from_columns({"x": column}, range(len(column)), "data.csv", None))):
        assert len(found[0].values) == len(column)
        assert np.isfinite(found[0].values.numpy()).all()


def archive() -> bytes:
    buffer = io.BytesIO()
    images = np.random.default_rng(0).integers(0, 256, (9, 8, 8), dtype=np.uint8)
    np.savez_compressed(buffer, images=images, labels=np.arange(9) % 3)
    return buffer.getvalue()


ARCHIVE = archive()
changes = st.lists(st.tuples(st.integers(0, len(ARCHIVE) - 1), st.integers(0, 255)), min_size=1, max_size=4)


def read_changed(path: Path, changed: list[tuple[int, int]]) -> None:
    content = bytearray(ARCHIVE)
    for place, byte in changed:
        content[place] = byte
    path.write_bytes(content)
    told(lambda: read_archive(path))


def check(tmp_path: Path, examples: int) -> None:
    for strategy, read in (
        (texts, lambda content: read_table(tmp_path / "data.csv", content)),
        (st.lists(cells, min_size=1, max_size=12), read_cells),
        (changes, lambda changed: read_changed(tmp_path / "data.npz", changed)),
    ):
        settings(max_examples=examples, deadline=None)(given(strategy)(read))()


def test_parsers_refuse_in_a_sentence(tmp_path):
    check(tmp_path, 150)


@pytest.mark.slow
def test_parsers_refuse_in_a_sentence_ten_thousand_times(tmp_path):
    check(tmp_path, 10_000)


def test_the_archive_itself_is_sound(tmp_path):
    (tmp_path / "data.npz").write_bytes(ARCHIVE)
    assert len(read_archive(tmp_path / "data.npz")) == 9
    with zipfile.ZipFile(tmp_path / "data.npz") as inner:
        assert inner.namelist() == ["images.npy", "labels.npy"]
