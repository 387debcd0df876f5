"""What ``anyformer fit`` and ``anyformer predict`` print, of results that are given."""

import json
from pathlib import Path
from typing import Any

import pytest

from anyformer.app import fitting, predicting
from anyformer.fit.measuring import DryRun
from anyformer.fit.predict import Labels, Numbers, Prediction
from anyformer.fit.run import Fitted

LATENCY = {"median": 0.41, "p10": 0.4, "p90": 0.5}
COSTS = {
    "name": "edgenext_micro",
    "system": "edgenext",
    "precision": "int8",
    "latency_ms": LATENCY,
    "params": 118_000,
    "macs": 4_720_000,
    "size_bytes": 502_000,
    "step_seconds": 0.012,
    "within": False,
    "exceeds": ["latency<=0.1ms"],
    "weights": "none: hub:a/b cannot be reached (offline)",
}
REPORT: dict[str, Any] = {
    "model": "edgenext_micro",
    "system": "edgenext",
    "runtime": "onnxruntime",
    "kind": "classes",
    "metric": "accuracy",
    "budget": {
        "asked": "latency<=2ms",
        "limits": [1],
        "met": False,
        "measured": {"latency_ms": LATENCY, "params": 118_000, "precision": "int8"},
    },
    "test": {"score": 0.9, "interval": [0.85, 0.93], "n": 270},
    "baseline": {"name": "SVC", "score": 0.8, "interval": [0.75, 0.85], "n": 270},
    "data": {"notes": ["classes are uneven: [b]"]},
    "candidates": [{"name": "vit_micro", "start": "fresh: no file"}, {"name": "swin_micro", "start": "fresh"}],
}


def said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_a_fit_is_told_in_a_few_lines_with_intervals(monkeypatch, capsys):
    given = {}
    monkeypatch.setattr(fitting, "fit", lambda data, **options: given.update(options) or Fitted(Path("out"), REPORT))
    fitting.run_fit("photos", storage="sqlite", minutes=3)
    text = said(capsys)
    for piece in (
        "edgenext_micro (edgenext), 118k parameters, int8",
        "note classes are uneven: [b]",
        "test accuracy 90.0 % (95 % interval 85.0 % to 93.0 %) on 270 pictures, read once",
        "baseline 80.0 % (95 % interval 75.0 % to 85.0 %), SVC",
        "latency 0.41 ms, 0.4 to 0.5 ms, onnxruntime, batch 1",
        "budget latency<=2ms: NOT met when measured again",
        "weights vit_micro: fresh: no file",
    ):
        assert piece in text
    assert "swin_micro" not in text
    assert given["storage"] == "sqlite"
    assert given["minutes"] == 3


def test_scores_that_are_no_shares_are_plain_numbers(monkeypatch, capsys):
    report = {**REPORT, "kind": "regression", "metric": "R\N{SUPERSCRIPT TWO}"}
    monkeypatch.setattr(fitting, "fit", lambda data, **_: Fitted(Path("out"), report))
    fitting.run_fit("photos")
    assert "test R\N{SUPERSCRIPT TWO} 0.900 (95 % interval 0.850 to 0.930)" in said(capsys)


def test_a_fit_as_json_is_its_report(monkeypatch, capsys):
    monkeypatch.setattr(fitting, "fit", lambda data, **_: Fitted(Path("out"), REPORT))
    fitting.run_fit("photos", as_json=True)
    assert json.loads(capsys.readouterr().out) == REPORT


def test_a_dry_run_is_a_table_or_json(monkeypatch, capsys):
    found = DryRun(Path("out"), "onnx", [COSTS])
    monkeypatch.setattr(fitting, "dry_run", lambda data, **_: found)
    fitting.run_fit("photos", measure_only=True)
    text = said(capsys)
    for piece in ("edgenext_micro (int8)", "0.410", "0.400 to 0.500", "118k", "12.0", "over latency<=0.1ms", "offline"):
        assert piece in text
    fitting.run_fit("photos", measure_only=True, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"folder": "out", "runtime": "onnx", "rows": [COSTS]}


def test_a_worker_says_how_much_it_did(monkeypatch, capsys):
    given = {}
    monkeypatch.setattr(fitting, "work", lambda data, **options: given.update(options) or 3)
    fitting.run_fit("photos", worker=True, minutes=3)
    assert "trained 3 trials" in said(capsys)
    assert given["storage"] == "sqlite"
    fitting.run_fit("photos", worker=True, storage="postgresql://a/b", as_json=True)
    assert json.loads(capsys.readouterr().out) == {"trials": 3}
    assert given["storage"] == "postgresql://a/b"


@pytest.mark.parametrize(
    ("found", "line"),
    [
        (Prediction("a.png", "cat", 0.25), "a.png\tcat\t0.2500"),
        (Labels("a.png", ["cat", "dog"], {"cat": 0.75, "dog": 0.5, "cow": 0.1}), "a.png\tcat 0.7500\tdog 0.5000"),
        (Labels("a.png", [], {"cat": 0.1}), "a.png"),
        (Numbers("a.png", {"price": 1234.5678, "share": 0.25}), "a.png\tprice 1234.57\tshare 0.25"),
    ],
)
def test_predictions_are_a_line_each_or_json(found, line, monkeypatch, capsys):
    monkeypatch.setattr(predicting, "predict", lambda folder, images, runtime: [found])
    predicting.print_predictions(Path("out"), [Path("a.png")], False)
    assert capsys.readouterr().out == f"{line}\n"
    predicting.print_predictions(Path("out"), [Path("a.png")], True, "onnx")
    assert json.loads(capsys.readouterr().out) == [vars(found)]


def test_a_language_model_is_told_in_bits_and_tokens_a_second(monkeypatch, capsys):
    found = {"score": 1.5, "interval": [1.4, 1.625], "n": 262_144}
    report = {
        "model": "mamba_micro",
        "system": "mamba",
        "kind": "language",
        "metric": "bits per byte",
        "budget": {
            "asked": "tokens_per_second>=500",
            "limits": [1],
            "met": True,
            "measured": {"latency_ms": LATENCY, "params": 81_856, "state_bytes": 18_432},
        },
        "test": found,
        "baseline": {**found, "score": 1.84, "name": "n-gram"},
        "data": {"notes": ["657 files [a]"], "trained_context": 256},
    }
    monkeypatch.setattr(fitting, "fit", lambda data, **_: Fitted(Path("out"), report))
    fitting.run_fit("stdlib")
    text = said(capsys)
    for piece in (
        "mamba_micro (mamba), 81.9k parameters",
        "note 657 files [a]",
        "test bits per byte 1.500 (95 % interval 1.400 to 1.625) on 262,144 bytes, read once",
        "baseline 1.840 (95 % interval 1.400 to 1.625), n-gram",
        "decoding 2.44k tokens a second (0.41 ms, 0.4 to 0.5 ms), batch 1, after 256",
        "state 18.4kB of a stream there",
        "budget tokens_per_second>=500: met",
        "anyformer generate out --prompt",
    ):
        assert piece in text


def test_classes_of_text_are_counted_as_texts(monkeypatch, capsys):
    report = {**REPORT, "data": {"notes": [], "texts": 1800}}
    monkeypatch.setattr(fitting, "fit", lambda data, **_: Fitted(Path("out"), report))
    fitting.run_fit("mails")
    text = said(capsys)
    assert "on 270 texts, read once" in text
    assert "model.safetensors, report.html" in text
