"""Texts with classes, labels or numbers, from folders and tables."""

import os

import pytest
import torch

from anyformer.core.errors import UsageError
from anyformer.data.labelled_text import read_labelled_text
from anyformer.data.tokenizers import ByteTokenizer

BYTES = ByteTokenizer()


def folder(root, files):
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def classes(parts=("",), each=4):
    return {
        f"{part}{name}/{i}.txt": f"{name} {i}\n".encode() * (i + 1)
        for part in parts
        for name in ("good", "bad")
        for i in range(each)
    }


def test_a_folder_of_classes(tmp_path):
    files = {**classes(), "bad/9.txt": b"\xff\0\xfe", "bad/empty.txt": b""}
    texts = read_labelled_text(folder(tmp_path, files), BYTES)
    assert texts.classes == ("bad", "good")
    assert len(texts) == 9
    assert texts.given is None
    assert texts.notes == ("1 empty files are passed over",)
    for position, name in enumerate(texts.names):
        ids, keep, _ = texts.rows(torch.tensor([position]))
        assert bytes(ids[0].tolist()) == files[name]
        assert keep.all()
        assert texts.classes[texts.labels[position]] == name.split("/")[0]


def test_rows_have_pads_behind(tmp_path):
    texts = read_labelled_text(folder(tmp_path, classes()), BYTES, longest=15)
    ids, keep, _ = texts.rows(torch.tensor([3, 0]))
    assert ids.shape == keep.shape == (2, 15)
    assert bytes(ids[0].tolist()) == b"bad 3\n" * 2 + b"bad"
    assert bytes(ids[1][keep[1]].tolist()) == b"bad 0\n"
    assert keep[1].tolist() == [True] * 6 + [False] * 9
    assert "4 texts are cut to 15 tokens" in texts.notes
    assert texts.rows(torch.tensor([], dtype=torch.int64)).ids.shape == (0, 0)


def test_a_folder_of_parts(tmp_path):
    texts = read_labelled_text(folder(tmp_path, classes(("train/", "test/"))), BYTES)
    assert texts.classes == ("bad", "good")
    assert texts.given is not None
    assert texts.given.tolist() == [0 if name.startswith("train/") else 2 for name in texts.names]
    division = texts.split(seed=0)
    assert division.test.tolist() == [i for i, name in enumerate(texts.names) if name.startswith("test/")]
    assert len(division.validation)


def test_a_table_of_classes(tmp_path):
    rows = [f'"text {i}, quoted",{"spam" if i % 2 else "ham"},{"test" if i > 6 else "train"}' for i in range(10)]
    (tmp_path / "mail.csv").write_text("text,label,split\n" + "\n".join(rows))
    texts = read_labelled_text(tmp_path / "mail.csv", BYTES)
    assert texts.classes == ("ham", "spam")
    assert texts.labels.tolist() == [0, 1] * 5
    assert texts.names[0] == "row 2"
    assert texts.given is not None
    assert texts.given.tolist() == [0] * 7 + [2] * 3
    ids = texts.rows(torch.tensor([4])).ids
    assert bytes(ids[0].tolist()) == b"text 4, quoted"


def test_a_table_of_numbers(tmp_path):
    (tmp_path / "t.csv").write_text("words,score,other\n" + "\n".join(f"w{i},{i / 3},x" for i in range(9)))
    texts = read_labelled_text(tmp_path / "t.csv", BYTES, text="words", target=["score"])
    assert texts.kind == "regression"
    assert texts.labels[:, 0].tolist() == pytest.approx([i / 3 for i in range(9)])


@pytest.mark.parametrize(
    ("content", "options", "says"),
    [
        ("text,label", {}, "has no row below its header"),
        ("words,label\na,b", {}, r"has no column of text \(it has 'words', 'label'\)"),
        ("text,review,label\na,b,c", {}, "has several columns of text"),
        ("text\na", {}, "has no column of targets beside 'text'"),
        ("text,label\na,b", {"text": "txt"}, "has no column 'txt'; did you mean text"),
        ("text,label\na,b", {"target": ["labl"]}, "has no column 'labl'; did you mean label"),
        ("text,label\n" + "a,b\n,b\n" * 4, {}, r"t\.csv has 4 rows without text \(3, 5, 7, 9\)"),
        ("text,label\n" + "a,b\n" * 4, {}, "needs at least two"),
        ("text,label\na,b", {"longest": 0}, "longest=0"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, content, options, says):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(UsageError, match=says):
        read_labelled_text(tmp_path / "t.csv", BYTES, **options)


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ({**classes(), "readme.txt": b"x"}, r"readme\.txt lies outside of the classes; put text files straight"),
        ({**classes(), "good/deep/x.txt": b"x", "y.txt": b"y"}, "as do 1 more"),
        (classes(each=2), "class 'bad' has 2"),
        ({"good/1.txt": b"x"}, "has 1 classes"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, files, says):
    with pytest.raises(UsageError, match=says):
        read_labelled_text(folder(tmp_path, files), BYTES)


def test_a_large_file_is_not_read_whole(tmp_path):
    folder(tmp_path, classes())
    with open(tmp_path / "good" / "large.txt", "wb") as file:
        file.truncate(2**36)
    texts = read_labelled_text(tmp_path, BYTES, longest=100)
    assert os.stat(tmp_path / "good" / "large.txt").st_size == 2**36
    assert texts.rows(torch.tensor([len(texts) - 1])).ids.shape == (1, 100)
