"""A program that kills its own children in the middle of saving and training, and reports what it finds as JSON.

Children are forked, not started, so that torch is imported once. Nothing is computed before the last fork.
"""

import json
import os
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from small_run import make_trainer, outcome

from anyformer.core.errors import AnyformerError
from anyformer.train.checkpoint import Checkpoints
from anyformer.train.packing import pack, unpack

SIZE = 500_000

Say = Callable[[str], Any]
Save = Callable[[int], None]


def state(step: int) -> dict[str, Any]:
    return {"step": step, "weights": torch.full((SIZE,), float(step))}


def safe(directory: Path) -> Save:
    store = Checkpoints(directory, {})
    store.load()
    return lambda step: store.save(step, state(step))


def load_safely(directory: Path) -> Any:
    with Checkpoints(directory, {}) as opened:
        found = opened.load()
    return found[1] if found else None


def in_place(directory: Path) -> Save:
    """The negative control: synced, but under the final names."""

    def save(step: int) -> None:
        for name, data in zip(("state.json", "tensors.safetensors"), pack(state(step)), strict=True):
            with (directory / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())

    return save


def load_in_place(directory: Path) -> Any:
    return unpack((directory / "state.json").read_bytes(), (directory / "tensors.safetensors").read_bytes())


def child(work: Callable[[Say], None]) -> tuple[int, Any]:
    """Runs ``work(say)`` in a forked process; gives its number and a file of the lines that it says."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reading)
        code = 1
        try:
            work(lambda line: os.write(writing, f"{line}\n".encode()))
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    return process, os.fdopen(reading)


def kill_during_saves(
    directory: Path, kills: int, opened: Callable[[Path], Save], load: Callable[[Path], Any]
) -> dict[str, int]:
    """Counts kills after which the newest state is unreadable, or older than one that was told to be saved."""
    directory.mkdir()
    counts = {"kills": 0, "unreadable": 0, "lost": 0}
    duration, began, first = 0.0, 0.0, 1
    for _ in range(kills):

        def work(say: Say, first: int = first) -> None:
            save = opened(directory)
            for step in range(first, first + 10_000):
                say(f"begin {step}")
                save(step)
                say(f"saved {step}")

        process, lines = child(work)
        told = 0
        for count, line in enumerate(lines):
            word, step = line.split()
            if word == "saved":
                told = int(step)
                duration = time.monotonic() - began
            began = time.monotonic()
            if word == "begin" and count >= 4:
                break
        time.sleep(random.uniform(0, duration))
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        told = max([told, *(int(line.split()[1]) for line in lines if line.startswith("saved"))])
        counts["kills"] += 1
        try:
            found = load(directory)
            readable = bool((found["weights"] == found["step"]).all()) and found["weights"].shape == (SIZE,)
        except Exception:
            readable, found = False, {"step": told}
        counts["unreadable"] += not readable
        counts["lost"] += found["step"] < told
        first = max(found["step"], told) + 1
    return counts


def kill_during_training(directory: Path) -> dict[str, Any]:
    """Kills a run again and again until it ends; compares it with one that is left in peace."""

    def train(folder: Path, say: Say) -> None:
        trainer = make_trainer(folder)
        trainer.run(40, progress=lambda step, losses: say(f"step {step}"))
        tree, tensors = pack(outcome(trainer))
        (folder.parent / f"{folder.name}.bits").write_bytes(tree + tensors)

    process, lines = child(lambda say: train(directory / "peace", say))
    list(lines)
    os.waitpid(process, 0)
    kills = 0
    while not (directory / "killed.bits").exists():
        process, lines = child(lambda say: train(directory / "killed", say))
        patience = random.randint(6, 16)
        for count, _ in enumerate(lines):
            if count == patience:
                os.kill(process, signal.SIGKILL)
                kills += 1
        os.waitpid(process, 0)
    same = (directory / "killed.bits").read_bytes() == (directory / "peace.bits").read_bytes()
    return {"kills": kills, "same": same}


def end_by_sigterm(directory: Path) -> dict[str, Any]:
    """The exit code of a run that gets SIGTERM, and the steps said and saved."""

    def train(say: Say) -> None:
        try:
            make_trainer(directory).run(10**6, progress=lambda step, losses: say(f"step {step}"))
        except SystemExit as end:
            os._exit(int(str(end.code)))

    process, lines = child(train)
    said = 0
    for line in lines:
        said = int(line.split()[1])
        if said == 12:
            os.kill(process, signal.SIGTERM)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    return {"code": code, "said": said, "saved": make_trainer(directory).step}


def fill_the_disk(directory: Path) -> dict[str, Any]:
    """Saves under a limit on the size of files; the kernel refuses in the middle of a write."""
    store = Checkpoints(directory, {})
    store.load()
    store.save(1, state(1))
    sentences = []
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    for limit in (0, 100, 4096, 4 * SIZE - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            store.save(2, state(2))
            sentences.append("saved")
        except AnyformerError as error:
            sentences.append(str(error))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    store.close()
    return {"sentences": sentences, "found": load_safely(directory)["step"], "files": sorted(os.listdir(directory))}


if __name__ == "__main__":
    folder, kills = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    report = {
        "safe": kill_during_saves(folder / "safe", kills, safe, load_safely),
        "in_place": kill_during_saves(folder / "in_place", 2 * kills, in_place, load_in_place),
        "training": kill_during_training(folder),
        "sigterm": end_by_sigterm(folder / "sigterm"),
        "full": fill_the_disk(folder / "full"),
    }
    print(json.dumps(report))
