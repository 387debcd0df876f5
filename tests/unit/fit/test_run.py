import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.fit.run import Fitted, fit

from .small_fit import LATENCIES, NAMES, write_costs, write_folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    out = tmp_path_factory.mktemp("whole") / "run"
    write_costs(out, data)
    return fit(data, budget="latency<=100ms", minutes=5, out=out, trials=2)


def test_the_folder_holds_everything(whole: Fitted) -> None:
    names = {path.name for path in whole.folder.iterdir()}
    wanted = {"config.json", "model.safetensors", "model.onnx", "report.json", "report.html", "front.png", "costs.json"}
    assert wanted <= names
    assert "work" not in names
    with Image.open(whole.folder / "front.png") as picture:
        assert min(picture.size) > 300


def test_the_report_says_what_was_found(whole: Fitted) -> None:
    report = json.loads((whole.folder / "report.json").read_bytes())
    assert report == json.loads(json.dumps(whole.report))
    assert report["finished"]
    environment = report["environment"]
    assert (environment["device"], environment["cores"]) == ("cpu", torch.get_num_threads())
    assert environment["instructions"] == torch.backends.cpu.get_cpu_capability()
    assert report["model"] in LATENCIES
    assert report["test"]["n"] == report["split"]["test"] == 12
    assert sum(map(sum, report["confusion"]["matrix"])) == 12
    right = sum(report["confusion"]["matrix"][i][i] for i in range(3))
    assert report["test"]["score"] == pytest.approx(right / 12)
    assert report["export"]["inputs"] == 12
    assert report["export"]["max_error"] < 1e-5
    assert report["budget"]["met"]
    assert {c["name"] for c in report["candidates"]} == set(LATENCIES)
    assert [c["status"] for c in report["candidates"]].count("winner") == 1
    assert report["baseline"]["n"] == 12


def test_the_model_is_the_one_reported(whole: Fitted) -> None:
    assert whole.model.model_name == whole.report["model"]
    assert whole.model.data_config["classes"] == ["class 0", "class 1", "class 2"]


def test_the_same_command_again_changes_nothing(whole: Fitted, data: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in whole.folder.iterdir() if path.name != ".lock"}
    again = fit(data, budget="latency<=100ms", minutes=5, out=whole.folder, trials=2)
    assert again.report == whole.report
    assert before == {p.name: p.stat().st_mtime_ns for p in whole.folder.iterdir() if p.name != ".lock"}


def test_another_command_in_the_same_folder_is_refused_with_all_that_differs(whole: Fitted, data: Path) -> None:
    with pytest.raises(UsageError, match=r"(?=.*seed)(?=.*minutes)(?=.*budget)"):
        fit(data, budget="latency<=50ms", minutes=6, seed=1, out=whole.folder, trials=2)


def same(resumed: Fitted, whole: Fitted) -> None:
    assert resumed.report["model"] == whole.report["model"]
    assert resumed.report["test"] == whole.report["test"]
    for key in ("score", "steps", "on_front", "status"):
        ours, theirs = ({c["name"]: c[key] for c in report["candidates"]} for report in (resumed.report, whole.report))
        assert ours == theirs
    ours, theirs = (load_file(fitted.folder / "model.safetensors") for fitted in (resumed, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_interrupted_and_resumed_the_weights_are_the_same(whole: Fitted, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    write_costs(out, data)
    calls = iter(range(1000))

    def interrupt(what: str, share: float) -> None:
        if "rung 1" in what and "step" in what and next(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(data, budget="latency<=100ms", minutes=5, out=out, trials=2, notify=interrupt)
    report = json.loads((out / "report.json").read_bytes())
    assert report["interrupted"]
    assert report["test"] is None
    same(fit(data, budget="latency<=100ms", minutes=5, out=out, trials=2), whole)


KILLED = """
import os, signal, sys
import torch
from anyformer.fit.run import fit
torch.set_num_threads(int(sys.argv[3]))
def notify(what, share):
    if what.startswith("Training " + sys.argv[4]) and "step 10" in what:
        os.kill(os.getpid(), signal.SIGKILL)
fit(sys.argv[1], budget="latency<=100ms", minutes=5, out=sys.argv[2], trials=2, notify=notify)
"""


def test_killed_and_resumed_the_weights_are_the_same(whole: Fitted, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    write_costs(out, data)
    words = [str(data), str(out), str(torch.get_num_threads()), NAMES[1]]
    killed = subprocess.run([sys.executable, "-c", KILLED, *words], timeout=300)
    assert killed.returncode == -signal.SIGKILL
    assert not (out / "report.json").exists()
    same(fit(data, budget="latency<=100ms", minutes=5, out=out, trials=2), whole)


@pytest.mark.slow
def test_interrupted_at_ten_random_moments_the_outcome_is_the_same(tmp_path: Path) -> None:
    program = Path(__file__).parents[3] / "benchmarks" / "interrupt.py"
    subprocess.run([sys.executable, program, "--out", str(tmp_path / "found.json")], check=True)
    found = json.loads((tmp_path / "found.json").read_bytes())
    assert found["equal"] == found["of"] == 10


def test_a_budget_that_nothing_meets_names_the_nearest(data: Path, tmp_path: Path) -> None:
    write_costs(tmp_path / "run", data)
    with pytest.raises(UsageError, match=rf"nearest, {NAMES[0]}, would be with latency<=0.55ms"):
        fit(data, budget="latency<=0.1ms, params<=1M", minutes=5, out=tmp_path / "run", trials=2)


def test_costs_of_other_pictures_are_refused(whole: Fitted, tmp_path: Path) -> None:
    other = write_folder(tmp_path / "other", classes=2)
    (tmp_path / "run").mkdir()
    shutil.copy(whole.folder / "costs.json", tmp_path / "run")
    with pytest.raises(UsageError, match="under another classes"):
        fit(other, minutes=1, out=tmp_path / "run", trials=2)


def test_a_damaged_run_file_is_named(data: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(AnyformerError, match=r"run\.json cannot be read"):
        fit(data, minutes=1, out=tmp_path / "run", trials=2)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"minutes": 0}, "must be positive"),
        ({"trials": 0}, "must be positive"),
        ({"device": "abacus"}, "there is no device 'abacus'"),
        ({"budget": "cheap"}, "cannot read 'cheap'"),
    ],
)
def test_arguments_that_make_no_sense(data: Path, tmp_path: Path, options: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        fit(data, out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_too_little_time_to_judge_anything_is_told(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyformer.fit.study.Study.run", lambda self, reserve: None)
    write_costs(tmp_path / "run", data)
    with pytest.raises(
        AnyformerError, match="no candidate was trained far enough to be judged within 5 minutes; give more"
    ):
        fit(data, budget="latency<=100ms", minutes=5, out=tmp_path / "run", trials=2)
