"""SIGKILL inside the save, over the run, and at each call to the file system; the same on plain ``torch.save``."""

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from children import CALLS, Say, count_calls, fork, wait_for_tracers
from runs import bits_of, copied, goes_on_to, in_peace, newest, train

SIZE = 300_000  # numbers in the state that the control writes


def kill_inside_saves(folder: Path, kills: int) -> dict[str, Any]:
    """Kills between "the step is done" and "it is saved", until so many have hit; every run goes on until it ends."""
    folder.mkdir()
    peace = in_peace(folder / "peace", save_every=1)
    counts = {"kills": 0, "attempts": 0, "unreadable": 0, "lost": 0, "runs": 0, "other_bits": 0}
    duration, run = 0.0, folder / "run"
    while counts["kills"] < kills or run.exists():
        child = fork(train(run, save_every=1))
        wait, began = random.randint(2, 6), 0.0
        while line := child.hear():
            now = time.monotonic()
            if line.startswith("step"):
                began, wait = now, wait - 1
                if wait <= 0 and counts["kills"] < kills:
                    break
            elif began:
                duration = max(now - began, 0.5 * duration)
        if not line:
            _finish(run, child.end(), peace, counts)
            continue
        time.sleep(random.uniform(0, duration))
        child.end(signal.SIGKILL)
        counts["attempts"] += 1
        counts["kills"] += child.last("step") > child.last("saved")
        _look(run, child.last("saved"), counts)
    return counts


def kill_over_runs(folder: Path, kills: int) -> dict[str, Any]:
    """Kills at moments spread evenly over the length of a run."""
    folder.mkdir()
    began = time.monotonic()
    peace = in_peace(folder / "peace")
    length = time.monotonic() - began
    counts = {"kills": 0, "unreadable": 0, "lost": 0, "runs": 0, "other_bits": 0}
    run = folder / "run"
    while counts["kills"] < kills or run.exists():
        child = fork(train(run))
        if counts["kills"] >= kills:
            _finish(run, child.end(), peace, counts)
            continue
        time.sleep(random.uniform(0, length))
        code = child.end(signal.SIGKILL)
        if code == -signal.SIGKILL:
            counts["kills"] += 1
            _look(run, child.last("saved"), counts)
        else:
            _finish(run, code, peace, counts)
    return counts


def kill_at_each_call(folder: Path, calls: int | None) -> dict[str, Any]:
    """Kills at the entry of every call to the file system that five steps with a line of log and a save make."""
    folder.mkdir()
    base = folder / "base"
    in_peace(base, 10)
    peace = in_peace(copied(base, folder / "peace"), 15)
    work = copied(base, folder / "run")
    found = count_calls(train(work, 15, leave=False), folder / "trace")
    points = [(name, number) for name in CALLS for number in range(1, found[name] + 1)]
    random.shuffle(points)
    counts = {"points": len(points), "kills": 0, "unreadable": 0, "lost": 0, "other_bits": 0}
    for name, number in points[:calls]:
        work = copied(base, work)
        child = fork(
            train(work, 15, leave=False), ["-o", "/dev/null", "-e", f"inject={name}:signal=SIGKILL:when={number}"]
        )
        counts["kills"] += child.end() == -signal.SIGKILL
        wait_for_tracers()
        _look(work, max(10, child.last("saved")), counts)
        counts["other_bits"] += not goes_on_to(work, peace, 15)
    return counts


def _look(run: Path, told: int, counts: dict[str, int]) -> None:
    found = newest(run)
    counts["unreadable"] += found is None
    counts["lost"] += found is not None and found < told


def _finish(run: Path, code: int, peace: bytes, counts: dict[str, int]) -> None:
    counts["runs"] += 1
    counts["other_bits"] += code != 0 or bits_of(run).read_bytes() != peace
    bits_of(run).unlink(missing_ok=True)
    shutil.rmtree(run)


def kill_plain_saves(folder: Path, kills: int) -> dict[str, Any]:
    """The negative control: the same aim at ``torch.save`` to one file; it must often be found broken."""
    folder.mkdir()
    path = folder / "state.pt"
    counts = {"kills": 0, "attempts": 0, "unreadable": 0, "lost": 0}
    duration, first = 0.0, 1

    def saving(first: int) -> Callable[[Say], None]:
        def work(say: Say) -> None:
            for step in range(first, first + 10_000):
                state = {"step": step, "weights": torch.full((SIZE,), float(step))}
                say(f"step {step}")
                torch.save(state, path)
                say(f"saved {step}")

        return work

    while counts["kills"] < kills:
        child = fork(saving(first))
        wait, began = random.randint(2, 6), 0.0
        while line := child.hear():
            now = time.monotonic()
            if line.startswith("step"):
                began, wait = now, wait - 1
                if wait <= 0:
                    break
            elif began:
                duration = max(now - began, 0.5 * duration)
        time.sleep(random.uniform(0, duration))
        child.end(signal.SIGKILL)
        counts["attempts"] += 1
        counts["kills"] += child.last("step") > child.last("saved")
        try:
            state = torch.load(path)
            readable = bool((state["weights"] == state["step"]).all())
        except Exception:
            readable = False
        counts["unreadable"] += not readable
        counts["lost"] += readable and state["step"] < child.last("saved")
        first = max(child.last("step"), child.last("saved")) + 1
    return counts
