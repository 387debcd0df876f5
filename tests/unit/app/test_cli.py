"""The command line as its users meet it, and what its commands hand to the functions behind them."""

import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from anyformer.app.cli import app

ANYFORMER = [sys.executable, "-m", "anyformer.app.cli"]


def run(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*ANYFORMER, *words], capture_output=True, text=True, timeout=120, **options)  # type: ignore[call-overload]


def test_help_names_every_command() -> None:
    done = run("--help")
    assert done.returncode == 0
    for command in ("list", "show", "verify", "fit", "predict", "generate", "measure", "compare", "export", "data"):
        assert command in done.stdout


@pytest.mark.parametrize("words", [("--help",), ("list",), ("list", "--json"), ("fit", "--help"), ("export", "--help")])
def test_listing_and_help_do_without_torch(words: tuple[str, ...]) -> None:
    blocked = "import sys; sys.modules['torch'] = None; from anyformer.app.cli import main; main(sys.argv[1:])"
    done = subprocess.run([sys.executable, "-c", blocked, *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_list_as_json_has_the_agreed_columns() -> None:
    rows = json.loads(run("list", "--json").stdout)
    assert len(rows) >= 22
    for row in rows:
        assert {"name", "system", "field", "params", "macs", "levels", "licence"} <= row.keys()
    assert {row["system"] for row in rows} >= {"vit", "swin", "convnext", "edgenext"}


def test_list_takes_a_pattern_and_a_field() -> None:
    rows = json.loads(run("list", "edgenext_*", "--field", "vision", "--json").stdout)
    assert rows
    assert all(row["name"].startswith("edgenext_") for row in rows)


def test_show_prints_the_tree_with_places() -> None:
    done = run("show", "swin_micro")
    assert done.returncode == 0
    for piece in ("window_attention", "swin.py:", "row_offsets column_offsets", "blocks.0..1"):
        assert piece in done.stdout


def test_show_as_json_is_a_spec() -> None:
    data = json.loads(run("show", "vit_micro", "--json").stdout)
    assert data["part"] == "isotropic"


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("lst",), 2, "Did you mean 'list'"),
        (("list", "zzz*"), 2, "no model's name matches"),
        (("list", "--field", "smell"), 2, "no field is named"),
        (("list", "--jsn"), 2, "No such option"),
        (("show", "vit_tny_patch16_224"), 2, "did you mean vit_tiny_patch16_224"),
        (("show",), 2, "Missing argument"),
        (("verify", "vti"), 2, "did you mean vit"),
        (("verify", "vit", "--level", "bilt"), 2, "built"),
        (("fit", "nowhere"), 2, "there is no folder or file 'nowhere'"),
        (("fit", "digits", "--budget", "latency<=2"), 2, "needs a unit"),
        (("fit", "digits", "--minutes", "soon"), 2, "--minutes"),
        (("predict", "nowhere", "a.png"), 1, "nowhere"),
        (("predict", "."), 2, "Missing argument"),
    ],
)
def test_bad_input_is_one_sentence_and_an_exit_code(
    words: tuple[str, ...], code: int, says: str, tmp_path: Path
) -> None:
    done = run(*words, cwd=tmp_path)
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) <= 5
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "module", "function", "given"),
    [
        (
            "measure vit_micro --runtime onnx --precision int8 --batch 2 --size 8 --threads 3 --seconds 4 --width 0.5 "
            "--no-memory --out a.csv --out b.md --json",
            "measuring",
            "print_table",
            {
                "command": "measure",
                "names": ["vit_micro"],
                "memory": False,
                "as_json": True,
                "runtime": "onnx",
                "precision": "int8",
                "batch": "2",
                "size": "8",
                "threads": 3,
                "seconds": 4.0,
                "width": 0.5,
                "out": [Path("a.csv"), Path("b.md")],
            },
        ),
        (
            "compare vit_micro swin_micro",
            "measuring",
            "print_table",
            {
                "command": "compare",
                "names": ["vit_micro", "swin_micro"],
                "memory": True,
                "as_json": False,
                "runtime": "eager",
                "precision": "float32",
                "batch": "1",
                "size": "",
                "threads": None,
                "seconds": 20.0,
                "width": 0.04,
                "out": None,
            },
        ),
        (
            "export vit_micro --to torch --out there --precision bfloat16 --calibrate digits --max-loss 2 --size 8",
            "exporting",
            "run_export",
            {
                "target": "vit_micro",
                "to": "torch",
                "precision": "bfloat16",
                "calibrate": "digits",
                "out": Path("there"),
                "max_loss": 2.0,
                "size": 8,
            },
        ),
        (
            "fit t.csv --budget params<=1M --minutes 2 --out there --seed 3 --trials 4 --size 8 --bf16 --runtime eager "
            "--weights w --distill --device cpu --kind regression --files f --target a --target b --storage s --worker "
            "--dry-run --json",
            "fitting",
            "run_fit",
            {
                "data": "t.csv",
                "measure_only": True,
                "worker": True,
                "storage": "s",
                "as_json": True,
                "target": ["a", "b"],
                "options": {
                    "budget": "params<=1M",
                    "minutes": 2.0,
                    "out": Path("there"),
                    "seed": 3,
                    "trials": 4,
                    "size": 8,
                    "bf16": True,
                    "runtime": "eager",
                    "weights": "w",
                    "distill": True,
                    "device": "cpu",
                    "kind": "regression",
                    "files": "f",
                },
            },
        ),
    ],
)
def test_every_option_arrives(monkeypatch, line: str, module: str, function: str, given: dict[str, object]) -> None:
    behind, arrived = importlib.import_module(f"anyformer.app.{module}"), []
    signature = inspect.signature(getattr(behind, function))
    monkeypatch.setattr(behind, function, lambda *words, **options: arrived.append(signature.bind(*words, **options)))
    app(line.split(), standalone_mode=False)
    assert [call.arguments for call in arrived] == [given]


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = run("show", "vit_tny", "--debug", cwd=tmp_path)
    assert "Traceback" in done.stderr


def test_a_closed_pipe_is_no_traceback() -> None:
    done = subprocess.run(f"{' '.join(ANYFORMER)} show vit_base_patch16_224 | head -1", shell=True, capture_output=True)
    assert b"Traceback" not in done.stderr
    assert b"vit_base" in done.stdout


def test_ctrl_c_exits_with_130(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*ANYFORMER, "fit", "digits", "--minutes", "5"], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    for line in process.stderr:
        if "Measuring" in line:
            break
    time.sleep(0.5)
    os.kill(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
