"""What is done for a tight budget: costs without training, int8 where float32 is too slow, a teacher that is too large."""

import json
from pathlib import Path

import pytest

from anyformer.core.errors import UsageError
from anyformer.fit.budget import parse_budget
from anyformer.fit.costs import Costs
from anyformer.fit.int8 import in_int8
from anyformer.fit.predict import predict
from anyformer.fit.run import dry_run, fit
from anyformer.fit.runtimes import check_runtime
from anyformer.fit.teaching import pick_teacher

from .small_fit import NAMES, write_costs, write_folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "pictures")


def test_a_dry_run_measures_and_trains_nothing(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    found = dry_run(data, out=out, trials=1, budget="params<=1k")
    (row,) = found.rows
    assert row["name"] == NAMES[0]
    assert row["exceeds"] == ["params<=1k"]
    assert not row["within"]
    assert row["step_seconds"] > 0
    assert row["latency_ms"]["p10"] <= row["latency_ms"]["median"] <= row["latency_ms"]["p90"]
    assert {path.name for path in out.iterdir()} == {"costs.json", ".lock"}
    kept = json.loads((out / "costs.json").read_bytes())["costs"][NAMES[0]]
    assert (kept["params"], kept["macs"]) == (row["params"], row["macs"])
    again = dry_run(data, out=out, trials=1, budget="")
    assert again.rows[0]["within"]
    assert again.rows[0]["latency_ms"] == row["latency_ms"]


def test_costs_of_another_runtime_are_refused(data: Path, tmp_path: Path) -> None:
    write_costs(tmp_path / "run", data)
    with pytest.raises(UsageError, match="under another runtime"):
        dry_run(data, out=tmp_path / "run", trials=1, runtime="eager")


def test_int8_is_used_where_nothing_else_keeps_the_budget(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    write_costs(out, data, {NAMES[0]: 500.0, f"{NAMES[0]} int8": 0.2})
    report = fit(data, budget="latency<=100ms", minutes=5, out=out, trials=1).report
    assert report["budget"]["measured"]["precision"] == "int8"
    assert report["candidates"][0]["precision"] == "int8"
    assert report["export"]["int8"].keys() == {"before", "after", "inputs"}
    assert (out / "model.int8.onnx").stat().st_size == report["budget"]["measured"]["size_bytes"]
    assert not (out / "model.onnx").exists()
    assert "float32 to int8" in (out / "report.html").read_text()
    (found,) = predict(out, [next((data / "class 1").iterdir())])
    assert found.label.startswith("class ")


def test_a_teacher_beyond_the_budget_teaches_and_does_not_win(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    write_costs(out, data, {NAMES[0]: 0.5, NAMES[1]: 500.0}, step_seconds=0.01)
    monkeypatch.setattr("anyformer.fit.plan.training_seconds", lambda minutes, costs: 0.8)
    monkeypatch.setattr("anyformer.fit.teaching.training_seconds", lambda minutes, costs: 10.0)
    report = fit(data, budget="latency<=100ms", minutes=5, out=out, trials=2, distill=True).report
    assert report["model"] == NAMES[0]
    lesson = report["distillation"]
    assert lesson["teacher"] == NAMES[1]
    assert lesson["n"] == report["split"]["validation"]
    by_name = {row["name"]: row for row in report["candidates"]}
    assert by_name[NAMES[1]]["status"] == "over budget: latency"
    assert by_name[NAMES[1]]["steps"] > 0
    assert f"{NAMES[1]}, accuracy" in (out / "report.html").read_text()


def costs(latency: float, macs: int = 10, step: float = 0.01) -> Costs:
    return Costs(1, macs, 1, {"median": latency, "p10": latency, "p90": latency}, step, 1.0, 1.0)


def test_the_teacher_is_the_largest_that_is_too_costly_but_can_still_be_trained() -> None:
    table = {"a": costs(1), "b": costs(9, macs=20), "c": costs(9, macs=30), "d": costs(9, macs=90, step=60.0)}
    budget = parse_budget("latency<=2ms")
    assert pick_teacher(table, budget, minutes=10) == "c"
    assert pick_teacher({"a": costs(1)}, budget, minutes=10) is None


def test_int8_cannot_help_where_it_is_not_latency_or_size(data: Path, tmp_path: Path) -> None:
    table = {"a": costs(1)}
    for budget, runtime in (("params<=0.5", "onnx"), ("latency<=0.5ms", "eager"), ("latency<=2ms", "onnx")):
        material = type("Nothing", (), {})
        if budget.startswith("params"):
            material = data_of(data)
        assert in_int8(tmp_path, material, runtime, clock(), table, parse_budget(budget)) == table


def data_of(path: Path):
    from anyformer.data.images import load
    from anyformer.fit.picture_material import PictureMaterial

    found = PictureMaterial.of(load(path), 0)
    found.choose(1)
    return found


def clock():
    from anyformer.fit.clock import Clock

    return Clock(0.0, 1.0, lambda what, share: None)


def test_a_runtime_that_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyformer.deploy.runtime.available", lambda: ("eager",))
    with pytest.raises(UsageError, match=r"anyformer\[openvino\]"):
        check_runtime("openvino")
    with pytest.raises(UsageError, match=r"anyformer\[fit\]"):
        check_runtime("onnx")
    assert check_runtime("eager") == "eager"
