"""Tables of files and targets: every kind of target is found, or taken from what the user says."""

import csv
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from anyformer.core.errors import UsageError
from anyformer.data import tables
from anyformer.data.decode import decode
from anyformer.data.images import load

COUNT = 24


@pytest.fixture
def write(tmp_path):
    """Writes pictures, and a table of columns beside them."""
    (tmp_path / "photos").mkdir()
    for index in range(COUNT):
        pixels = np.random.default_rng(index).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{index}.png")

    def table(ending=".csv", **columns):
        columns = {"path": [f"photos/{index}.png" for index in range(COUNT)], **columns}
        path = tmp_path / f"table{ending}"
        if ending == ".parquet":
            import pyarrow as pa
            import pyarrow.parquet

            pa.parquet.write_table(pa.table(columns), path)
        else:
            with path.open("w", newline="") as file:
                writer = csv.writer(file, delimiter="\t" if ending == ".tsv" else ",")
                writer.writerow(columns)
                writer.writerows(zip(*columns.values(), strict=True))
        return path

    return table


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet"])
def test_classes(write, tmp_path, ending):
    names = ["dog", "cat", "a, b"] * (COUNT // 3)
    data = load(write(ending, label=names, width=[16] * COUNT))
    assert data.kind == "classes"
    assert data.classes == ("a, b", "cat", "dog")
    assert [data.classes[label] for label in data.labels] == names
    assert data.notes == ("column 'label' is read as classes", "columns left out: width")
    assert data.where(3) == f"photos/3.png (table{ending}, row {4 if ending == '.parquet' else 5})"
    for image, name in zip(data.images, data.names, strict=True):
        assert (image.numpy() == decode(tmp_path / name, 16, 1)).all()


def test_a_few_whole_numbers_are_classes_in_their_order(write):
    data = load(write(label=[2, 10, 9] * (COUNT // 3)))
    assert (data.kind, data.classes) == ("classes", ("2", "9", "10"))
    assert data.labels[:3].tolist() == [0, 2, 1]


@pytest.mark.parametrize("ending", [".csv", ".parquet"])
def test_numbers(write, ending):
    ages = [20.5 + index for index in range(COUNT)]
    data = load(write(ending, age=ages))
    assert (data.kind, data.classes) == ("regression", ("age",))
    assert data.labels.dtype == torch.float32
    assert data.labels.flatten().tolist() == ages
    assert load(write(age=range(COUNT))).kind == "regression"
    assert load(write(age=[1, 2] * (COUNT // 2)), kind="regression").kind == "regression"
    several = load(write(x=ages, y=[-age for age in ages]))
    assert (several.kind, several.classes, several.labels.shape) == ("regression", ("x", "y"), (COUNT, 2))


@pytest.mark.parametrize(("mark", "kind"), [("|", None), (";", None), (",", "multilabel"), (" ", "multilabel")])
def test_labels_in_one_cell(write, mark, kind):
    cells = [f"cat{mark}dog", "cow", "", f"dog{mark}cow"] * (COUNT // 4)
    data = load(write(tags=cells), kind=kind)
    assert (data.kind, data.classes) == ("multilabel", ("cat", "cow", "dog"))
    assert data.labels[:4].tolist() == [[1, 0, 1], [0, 1, 0], [0, 0, 0], [0, 1, 1]]
    assert data.labels.dtype == torch.float32


def test_labels_in_columns(write):
    columns = {"cat": [0, 1] * (COUNT // 2), "dog": [1, 0, 0] * (COUNT // 3)}
    data = load(write(**columns))
    assert (data.kind, data.classes) == ("multilabel", ("cat", "dog"))
    assert data.labels[:, 1].tolist() == columns["dog"]
    chosen = load(write(**columns, other=["x"] * COUNT), target=["dog", "cat"])
    assert chosen.classes == ("dog", "cat")
    assert chosen.labels[:, 0].tolist() == columns["dog"]
    assert load(write(**columns), kind="regression").kind == "regression"


def test_columns_that_are_no_labels_are_refused(write):
    columns = {"cat": [0, 1] * (COUNT // 2), "dog": [1, 0.5, 0] * (COUNT // 3)}
    with pytest.raises(UsageError, match=r"row 3: column 'dog' is '0.5'; labels are 0 or 1"):
        load(write(**columns), kind="multilabel")
    with pytest.raises(UsageError, match="classes stand in one column, not in 2"):
        load(write(**columns), kind="classes")
    with pytest.raises(UsageError, match="has no label in any row"):
        load(write(tags=[""] * COUNT), kind="multilabel")


def test_parts_that_are_given_are_kept(write):
    parts = (["train"] * 8 + ["val"] * 2 + ["test"] * 2) * 2
    data = load(write(label=["a", "b"] * (COUNT // 2), split=parts))
    division = data.split(0)
    assert [parts[i] for i in division.test] == ["test"] * 4
    assert [parts[i] for i in division.validation] == ["val"] * 4
    assert data.digest() != load(write(label=["a", "b"] * (COUNT // 2))).digest()
    with pytest.raises(UsageError, match="puts no picture in train"):
        load(write(label=["a", "b"] * (COUNT // 2), split=["test"] * COUNT))


def test_columns_can_be_named(write):
    ages = [0.5 + index for index in range(COUNT)]
    table = write(label=["a", "b"] * (COUNT // 2), age=ages, image=["x"] * COUNT)
    with pytest.raises(UsageError, match="several columns of picture files"):
        load(table)
    assert load(table, files="path").kind == "classes"
    data = load(table, files="path", target=["age"])
    assert data.labels.flatten().tolist() == ages
    with pytest.raises(UsageError, match="no column 'agee'; did you mean age"):
        load(table, files="path", target=["agee"])


def test_digest_follows_kind_and_targets(write):
    ages = [1.0 * (index % 3) for index in range(COUNT)]
    first = load(write(age=ages), kind="regression")
    other = load(write(age=[2 * age for age in ages]), kind="regression")
    assert first.digest() == load(write(age=ages), kind="regression").digest()
    assert len({first.digest(), other.digest(), load(write(age=[f"{a:g}" for a in ages])).digest()}) == 3


def test_bounds_of_a_table_are_told(write, monkeypatch):
    table = write(label=["a", "b"] * (COUNT // 2))
    monkeypatch.setattr(tables, "MAX_ROWS", 5)
    with pytest.raises(UsageError, match="has more than 5 rows; divide it"):
        load(table)


def test_too_many_different_labels_are_refused(write, monkeypatch):
    monkeypatch.setattr("anyformer.data.targets.MOST_CLASSES", 1)
    with pytest.raises(UsageError, match="has 2 different labels; at most 1"):
        load(write(label=["a", "b"] * (COUNT // 2)))


def test_without_pyarrow_the_remedy_is_told(write, monkeypatch):
    table = write(".parquet", label=["a", "b"] * (COUNT // 2))
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(UsageError, match=r'needs pyarrow: pip install "anyformer\[tables\]"; or save it as \.csv'):
        load(table)


def test_targets_without_a_part_to_train_are_refused():
    from anyformer.data.targets import Targets, check_classes

    numbers = Targets("regression", torch.arange(3.0)[:, None], ("age",))
    with pytest.raises(UsageError, match="has no picture for training"):
        check_classes(numbers, torch.tensor([2, 2, 2], dtype=torch.int8), "table.csv")
