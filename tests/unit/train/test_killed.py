"""Kills, failing calls and signals in real processes: the short form of ``benchmarks/survival.py``."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[3] / "benchmarks" / "survival.py"
CHECKS = ["kills", "control: kills", "signals", "failing", "order"]


@pytest.fixture(scope="module")
def checks(tmp_path_factory):
    out = tmp_path_factory.mktemp("survival") / "report.json"
    command = [sys.executable, PROGRAM, "--share", "0.02", "--only", *CHECKS, "--out", out]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert out.exists(), done.stderr
    return json.loads(out.read_text())["checks"]


@pytest.mark.parametrize("name", ["kills inside saves", "kills over the run", "kills at each call", "signals"])
def test_nothing_told_is_lost_and_the_run_ends_with_the_same_bits(checks, name):
    found = checks[name]["found"]
    if "barred" in found:
        pytest.skip(found["barred"])
    assert checks[name]["good"], found
    assert found.get("kills", found.get("tried")) >= 2


def test_the_same_kills_harm_a_plain_save(checks):
    """The negative control: without it, the tests above might be aiming beside the mark."""
    name = "control: kills inside plain torch.save"
    assert checks[name]["good"], checks[name]["found"]
    assert checks[name]["found"]["unreadable"] >= 6


@pytest.mark.parametrize("name", ["failing calls", "order of calls"])
def test_failing_calls_are_told_and_nothing_is_told_too_early(checks, name):
    found = checks[name]["found"]
    if "barred" in found:
        pytest.skip(found["barred"])
    assert checks[name]["good"], found
