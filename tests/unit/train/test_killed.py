"""SIGKILL in the middle of saves and of a run, SIGTERM, and a full disk, in real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    program = Path(__file__).with_name("killed_runs.py")
    folder = tmp_path_factory.mktemp("killed")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, program, folder, "12"], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_newest_checkpoint_is_always_readable_and_nothing_told_is_lost(report):
    assert report["safe"] == {"kills": 12, "unreadable": 0, "lost": 0}


def test_the_same_kills_harm_files_written_in_place(report):
    """The negative control: without it, the test above might be aiming beside the mark."""
    assert report["in_place"]["unreadable"] >= 1


def test_killed_run_ends_with_the_same_bits(report):
    assert report["training"]["kills"] >= 2
    assert report["training"]["same"]


def test_sigterm_saves_the_last_step_and_exits_with_143(report):
    assert report["sigterm"]["code"] == 143
    assert report["sigterm"]["saved"] == report["sigterm"]["said"] >= 12


def test_refused_writes_are_told_and_leave_the_previous_checkpoint(report):
    assert len(report["full"]["sentences"]) == 4
    for sentence in report["full"]["sentences"]:
        assert "step-00000002: File too large; free space" in sentence
    assert report["full"]["found"] == 1
    assert report["full"]["files"] == [".lock", "step-00000001"]
