"""Tables survive their files, and are refused when the files are not theirs."""

import builtins
import json
import struct

import pytest

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.measure.markdown import HEADINGS, cells, remarks, to_markdown
from anyformer.measure.table import Row, Table, load, save


def row(**values):
    given = {"name": "vit", "runtime": "eager", "precision": "float32", "batch": 1, "height": 32, "width": 24}
    return Row(**{**given, **values})


FULL = row(
    params=5,
    macs=12_345_678,
    elementwise=7,
    uncounted={"aten::sort": 2, "own::scan": 1},
    median_ms=1 / 3,
    p10_ms=0.1,
    p90_ms=1e-17,
    runs=9,
    against="vit eager float32",
    ratio=1.25,
    ratio_low=1.2,
    ratio_high=1.3,
    blocks=10,
    measured=True,
    error=1e-7,
    forward_mb=3.5,
    training_mb=30.25,
    energy_mj=2.0,
    note='with "quotes", commas\nand a second line, | and ünïcode',
)
TABLE = Table(
    about={"threads": 2, "energy": "not reported by this machine", "torch": None},
    rows=[FULL, row(name="12", note="None"), row(again=True, ratio=1.0), row(measured=False, name="true")],
)


@pytest.mark.parametrize("ending", [".json", ".csv"])
@pytest.mark.parametrize("table", [TABLE, Table(about={})])
def test_files_load_again(tmp_path, ending, table):
    path = tmp_path / f"table{ending}"
    save(table, path)
    again = load(path)
    assert again == table
    assert [type(value) for each in again.rows for value in vars(each).values()] == [
        type(value) for each in table.rows for value in vars(each).values()
    ]


def test_json_has_the_exponents():
    rows = [row(height=side, width=side, macs=side**2) for side in (8, 16, 32)]
    (found,) = json.loads(Table(about={}, rows=rows).to_json())["exponents"]
    assert found["quantity"] == "macs"
    assert found["value"] == pytest.approx(1)


def test_cells_for_people():
    shown = dict(zip(HEADINGS, cells(FULL), strict=True))
    assert shown["size"] == "32x24"
    assert shown["MACs"] == "12.3M+"  # something is not counted
    assert shown["ratio [95 %]"] == "1.250 [1.200, 1.300]"
    assert dict(zip(HEADINGS, cells(row(again=True)), strict=True))["model"] == "vit (A/A)"
    assert cells(row(ratio=1.1, ratio_low=0.9, ratio_high=1.3, measured=False))[7].endswith("unmeasured")
    assert cells(row(ratio=1.1))[7] == "unmeasured"
    assert cells(row(ratio=1.0, ratio_low=1.0, ratio_high=1.0))[7] == "1"
    assert set(cells(row())[5:]) == {"-"}


def test_markdown_is_a_table_with_remarks():
    lines = to_markdown(TABLE).splitlines()
    assert {line.replace("\\|", "").count("|") for line in lines[: 2 + len(TABLE.rows)]} == {len(HEADINGS) + 1}
    text = "\n".join(lines)
    assert "vit: not in its multiply-adds (+): aten::sort (2 calls), own::scan (1 calls)" in text
    assert "Ratios are times over those of vit eager float32; above 1 is slower." in text
    assert "Energy: not reported by this machine." in text
    rows = [row(height=side, width=side, macs=side**2, median_ms=side**4.0) for side in (8, 16)]
    assert remarks(Table(about={}, rows=rows)) == [
        "vit, eager float32, batch 1: MACs grows as pixels^1.00 (2 sizes)",
        "vit, eager float32, batch 1: latency grows as pixels^2.00 (2 sizes)",
    ]


def test_an_aa_row_that_excludes_one_is_said():
    for low, high, count in ((0.98, 1.02, 0), (1.01, 1.03, 1), (0.9, 0.99, 1), (None, None, 0)):
        again = row(again=True, ratio=1.0, ratio_low=low, ratio_high=high, measured=True)
        lines = remarks(Table(about={}, rows=[row(), again]))
        assert sum("excludes 1" in line for line in lines) == count


def size_of_png(data):
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_pictures(tmp_path):
    def timed(median=1.0, **values):
        return row(median_ms=median, p10_ms=0.9 * median, p90_ms=1.2 * median, ratio=median, **values)

    known = {"ratio_low": 0.9, "ratio_high": 1.4, "measured": True}
    dots = [timed(), timed(1.3, name="swin_with_a_name_that_goes_on_and_on_" * 3, **known), timed(again=True)]
    tables = {
        "dots": [*dots, row(note="not measured")],
        "own sizes": [timed(), timed(2.0, name="swin", height=64, width=64), timed(again=True)],
        "wide": [*dots, timed(40.0, runtime="onnx")],
        "sizes": [timed(side**3.0, height=side, width=side, batch=b) for side in (8, 16) for b in (1, 4)],
        "batches": [timed(batch=1), timed(3.0, batch=4), timed(batch=4, precision="bfloat16")],
    }
    sizes = {}
    for name, rows in tables.items():
        table = Table(about={"threads": 1}, rows=rows)
        first, again = tmp_path / f"{name}.png", tmp_path / f"{name}-again.png"
        save(table, first)
        save(table, again)
        assert first.read_bytes() == again.read_bytes()
        width, height = size_of_png(first.read_bytes())
        assert width == 1344
        assert height > 300
        sizes[name] = height
    assert sizes["dots"] == sizes["own sizes"] < sizes["wide"] < sizes["sizes"] == sizes["batches"]
    with pytest.raises(AnyformerError, match="nothing to draw"):
        save(Table(about={}, rows=[row()]), tmp_path / "empty.png")


def test_a_picture_needs_matplotlib(tmp_path, monkeypatch):
    original = builtins.__import__

    def without(name, *arguments, **options):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return original(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UsageError, match=r'needs matplotlib: pip install "anyformer\[fit\]"'):
        save(TABLE, tmp_path / "table.png")


def test_bad_files_are_refused_in_a_sentence(tmp_path):
    with pytest.raises(UsageError, match=r"table.txt: a table is written as .json, .csv, .md, .png"):
        save(TABLE, tmp_path / "table.txt")
    with pytest.raises(UsageError, match=r"only .json and .csv tables are read again"):
        load(tmp_path / "table.md")
    with pytest.raises(AnyformerError, match=r"cannot read .*none\.json"):
        load(tmp_path / "none.json")
    damaged = {
        "a.json": "{",
        "b.json": "[]",
        "c.json": '{"about": {}, "rows": [{"name": "x"}]}',
        "d.csv": "name,runtime\nx,y\n",
        "e.csv": "# {}\nname,colour\nx,red\n",
        "f.csv": '# {}\nname,batch\nx,"many"\n',
    }
    for name, text in damaged.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(AnyformerError, match="is damaged or no table of measurements"):
            load(tmp_path / name)
    path = tmp_path / "cut.csv"
    save(TABLE, path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(AnyformerError, match="is damaged"):
        load(path)
