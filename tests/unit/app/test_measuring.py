"""``anyformer measure`` and ``compare``: what is printed, what is kept, what is refused."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from anyformer.app.measuring import print_table
from anyformer.core.errors import AnyformerError, UsageError
from anyformer.measure import run
from anyformer.measure.memory import Peak
from anyformer.measure.table import load


@pytest.fixture
def forms(monkeypatch):
    """Forms that compute nothing twice; a runtime may be given an error to raise."""
    errors = {}

    def form(model, runtime, example, precision, threads):
        if runtime in errors:
            raise errors[runtime]
        with torch.no_grad():
            scores = model(example)
        return lambda batch: scores

    monkeypatch.setattr(run, "form", form)
    monkeypatch.setattr(run, "peak", lambda asked: Peak(forward_mb=2.5))
    monkeypatch.setattr(run, "matrix_rate", lambda: 1.0)
    return errors


QUICK = {"seconds": 0.001, "threads": 1}


def test_a_table_for_people(forms, capsys):
    print_table("measure", ["vit_micro"], runtime="eager, onnx", batch="1,4", **QUICK)
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert lines[0].split()[:5] == ["model", "runtime", "precision", "batch", "size"]
    assert "forward MB" in lines[0]
    assert "training MB" not in lines[0]  # a column of nothing
    assert [line.split()[1] for line in lines[1:7]] == ["eager", "onnx", "(A/A)"] * 2
    assert any(line.startswith("Ratios are times over those of vit_micro eager float32") for line in lines)
    assert any(line.startswith("Energy: ") for line in lines)
    assert "Measuring vit_micro in onnx, float32" in said.err


def test_json_alone_on_standard_output(forms, capsys):
    print_table("compare", ["vit_micro", "swin_micro"], size="32,64x32", as_json=True, **QUICK)
    data = json.loads(capsys.readouterr().out)
    assert {(row["name"], row["height"], row["width"]) for row in data["rows"]} == {
        (name, height, 32) for name in ("vit_micro", "swin_micro") for height in (32, 64)
    }
    assert {each["name"] for each in data["exponents"]} == {"vit_micro", "swin_micro"}
    assert all({"uncounted", "ratio_low", "forward_mb"} <= row.keys() for row in data["rows"])


def test_all_runtimes_and_precisions(forms, capsys):
    print_table("measure", ["vit_micro"], runtime="all", precision="float32,int8", memory=False, as_json=True, **QUICK)
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert {(row["runtime"], row["precision"]) for row in rows} == {
        (runtime, precision)
        for runtime in ("eager", "compiled", "onnx", "openvino")
        for precision in ("float32", "int8")
    }
    assert all(row["forward_mb"] is None for row in rows)


def test_files_in_every_format(forms, tmp_path, capsys):
    out = [tmp_path / f"table{ending}" for ending in (".json", ".csv", ".md", ".png")]
    print_table("measure", ["vit_micro"], out=out, as_json=True, **QUICK)
    assert out[0].read_text() == capsys.readouterr().out
    assert load(out[0]) == load(out[1])
    assert out[2].read_text().startswith("| model | runtime |")
    assert out[3].read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in out}


def test_an_interruption_keeps_what_was_measured(forms, tmp_path, capsys):
    forms["openvino"] = KeyboardInterrupt()
    out = [tmp_path / "table.csv", tmp_path / "table.png"]
    with pytest.raises(KeyboardInterrupt):
        print_table("compare", ["vit_micro", "swin_micro"], runtime="eager,openvino", out=out, **QUICK)
    assert [row.name for row in load(out[0]).rows] == ["vit_micro", "swin_micro", "vit_micro"]
    assert out[1].read_bytes().startswith(b"\x89PNG")
    assert "swin_micro" in capsys.readouterr().out


def test_nothing_measured_is_said_after_the_reasons(forms, tmp_path, capsys):
    forms["onnx"] = UsageError("onnx is not installed")
    with pytest.raises(AnyformerError, match="nothing was measured: vit_micro: onnx is not installed"):
        print_table("measure", ["vit_micro"], runtime="onnx", out=[tmp_path / "a.png", tmp_path / "a.json"], **QUICK)
    assert "vit_micro, onnx float32: onnx is not installed" in capsys.readouterr().out
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"out": [Path("table.txt")]}, r"--out table.txt: a table is written as .json, .csv, .md, .png"),
        ({"out": [Path("nowhere/table.csv")]}, "there is no folder nowhere; make it first"),
        ({"batch": "1,two"}, r"--batch: 'two' is not a whole number; write for example --batch 1,4,16"),
        ({"batch": "-1"}, "--batch: '-1' is not a whole number"),
        ({"size": "x224"}, "--size: '' is not a whole number"),
        ({"size": "9" * 5000}, "--size: '9+\\.\\.\\. is not a whole number"),
        ({"runtime": "egaer"}, "there is no runtime 'egaer'; .*did you mean eager"),
        ({"runtime": ","}, "give at least one runtime"),
        ({"precision": "int9"}, "there is no precision 'int9'; .*did you mean int8"),
        ({"batch": "0"}, "a batch must be at least 1"),
        ({"width": 0.0}, "the width of the interval must be positive"),
    ],
)
def test_bad_requests_are_one_sentence(forms, options, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=says):
        print_table("measure", ["vit_micro"], **options)
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_while_a_model_is_timed(tmp_path):
    code = (
        "import sys; from pathlib import Path; from anyformer.app.measuring import print_table\n"
        "print_table('measure', ['vit_micro', 'swin_micro'], memory=False, threads=1, width=1e-9, seconds=float(sys.argv[1]),"
        " out=[Path('table.json')])"
    )
    first = "Measuring swin_micro"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "0.3"], cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(first):
            break
    os.kill(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert {row.name for row in load(tmp_path / "table.json").rows} == {"vit_micro"}
