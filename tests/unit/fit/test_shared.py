"""Processes that share a fit give what one alone gives; one that is killed in the middle loses nothing."""

import getpass
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.fit import shared
from anyformer.fit.run import fit, study_name, work
from anyformer.fit.run import request as asking_for
from anyformer.fit.shared import Shared, shown_url

from .small_fit import write_costs, write_folder

BINARIES = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), reverse=True)
OPTIONS = {"budget": "latency<=100ms", "minutes": 5, "trials": 2}
WORKER = """
import json, os, signal, sys
import torch
from anyformer.fit import shared
from anyformer.fit.run import work
url, data, out, fate, threads, options = sys.argv[1:]
torch.set_num_threads(int(threads))
shared.HEARTBEAT, shared.GRACE, shared.POLL = 1, 6, 0.2
def notify(what, share):
    if fate == "dies" and "step" in what:
        os.kill(os.getpid(), signal.SIGKILL)
print(work(data, storage=url, notify=notify, out=out, **json.loads(options)))
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"HEARTBEAT": 1, "GRACE": 6, "POLL": 0.2}.items():
        monkeypatch.setattr(shared, name, seconds)


@pytest.fixture(scope="module")
def postgresql() -> Iterator[str]:
    """A server of its own on loopback, with its data in a folder that goes with it."""
    if not BINARIES:
        pytest.skip("there is no PostgreSQL server on this machine (Debian: apt install postgresql)")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    folder = Path(tempfile.mkdtemp(prefix="anyformer-postgresql-"))
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    root = os.geteuid() == 0  # as which the server refuses to run
    user = "postgres" if root else getpass.getuser()
    if root:
        shutil.chown(folder, user, user)

    def run(program: str, *words: str) -> None:
        command = [BINARIES[0].with_name(program), *words]
        options = {"user": user, "group": user, "extra_groups": []} if root else {}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder, **options)

    store = str(folder / "data")
    run("initdb", "-D", store, "-A", "trust", "-U", "anyformer", "--no-sync")
    settings = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={folder} -c fsync=off"
    run("pg_ctl", "-D", store, "-w", "-l", str(folder / "log"), "-o", settings, "start")
    yield f"postgresql://anyformer@127.0.0.1:{port}/postgres"
    run("pg_ctl", "-D", store, "-w", "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_one_of_two_workers_is_killed_and_the_outcome_is_that_of_one_process(
    database: str, data: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    url = database if database == "sqlite" else request.getfixturevalue(database)
    out, alone = tmp_path / "run", tmp_path / "alone"
    for folder in (out, alone):
        write_costs(folder, data)
    expected = fit(data, out=alone, **OPTIONS)

    def start(fate: str) -> subprocess.Popen[str]:
        words = [url, str(data), str(out), fate, str(torch.get_num_threads()), json.dumps(OPTIONS)]
        return subprocess.Popen([sys.executable, "-c", WORKER, *words], stdout=subprocess.PIPE, text=True)

    dying = start("dies")
    others: list[subprocess.Popen[str]] = []

    def wait(what: str, share: float) -> None:
        """The main process keeps its first candidate until one worker has died and the other has done its trial."""
        if "Training" not in what or others:
            return
        dying.communicate(timeout=120)
        assert dying.returncode == -signal.SIGKILL
        others.append(start("lives"))
        with Shared(url, out, study_name(asked(data, out))) as opened:
            ends = time.monotonic() + 120
            while not any(trial.state.name == "COMPLETE" for trial in opened.study.get_trials(deepcopy=False)):
                assert time.monotonic() < ends
                time.sleep(0.2)

    found = fit(data, out=out, storage=url, notify=wait, **OPTIONS)
    said, _ = others[0].communicate(timeout=60)
    assert others[0].returncode == 0
    assert said.strip() == "1"

    with Shared(url, out, study_name(asked(data, out))) as opened:
        states = [trial.state.name for trial in opened.study.trials]
    assert states.count("COMPLETE") == 2
    assert states.count("FAIL") == 1
    assert found.report["test"] == expected.report["test"]
    assert [row["score"] for row in found.report["candidates"]] == [
        row["score"] for row in expected.report["candidates"]
    ]
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (out, alone))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def asked(data: Path, out: Path) -> dict:
    return asking_for(data, out=out, **OPTIONS).read()[1]


def test_a_worker_without_a_fit_is_told_to_start_one(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nobody has begun this fit within 0\.06 s; start the same command"):
        work(data, out=tmp_path / "run", minutes=0.001)


def test_a_worker_whose_time_is_over_leaves_its_trial_to_others(data: Path, tmp_path: Path) -> None:
    """The study says that the time is over, and no trial counts as done."""
    out = tmp_path / "run"
    write_costs(out, data)
    costs = {name: shared.Costs(**cost) for name, cost in json.loads((out / "costs.json").read_text())["costs"].items()}
    with Shared("sqlite", out, study_name(asked(data, out))) as opened:
        opened.announce(costs, list(costs), deadline=time.time() - 1)
        assert work(data, out=out, **OPTIONS) == 0
        assert opened.study.user_attrs[shared.STOPPED]
        assert {trial.state.name for trial in opened.study.trials} <= {"PRUNED", "WAITING"}


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_trial_that_nobody_queued_is_told_from_one_that_is_to_be_done(tmp_path: Path) -> None:
    with Shared("sqlite", tmp_path, "queue") as opened:
        opened.study.ask()
        assert [shared._job(trial) for trial in opened.study.trials] == [None]
        opened.study.enqueue_trial({"candidate": "a", "rung": 0})
        assert shared._job(opened.study.trials[1]) == ("a", 0)


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_settling_waits_for_whoever_trains(tmp_path: Path) -> None:
    with Shared("sqlite", tmp_path, "settle") as opened:
        trial = opened.study.ask()
        telling = threading.Timer(0.5, lambda: opened.study.tell(trial, 1.0))
        telling.start()
        opened.settle()
        state = opened.study.trials[0].state.name
        telling.join()
        assert state == "COMPLETE"


def test_databases_that_cannot_be_opened_are_named_without_their_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown_url("postgresql://me:secret@host/db") == "postgresql://me@host/db"
    with pytest.raises(UsageError, match="--storage nonsense"):
        Shared("nonsense", tmp_path, "a")
    with pytest.raises(AnyformerError, match="cannot be opened"):
        Shared(f"sqlite:///{tmp_path}/lost/study.db", tmp_path, "a")
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UsageError, match=r"anyformer\[storage\]"):
        Shared("sqlite", tmp_path, "a")


def test_a_teacher_is_not_shared(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave out --distill or --storage"):
        fit(data, out=tmp_path / "run", storage="sqlite", distill=True)
