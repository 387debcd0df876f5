"""Calls to the file system that fail, a disk and an inode table that are full, and the order in which a save calls."""

import random
import re
import resource
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from children import CALLS, FAILED, UNTOLD, Child, Say, count_calls, fork, wait_for_tracers
from runs import copied, goes_on_to, in_peace, newest, train

ERRORS = ("ENOSPC", "EIO", "EACCES")


def fail_each_call(folder: Path, calls: int | None) -> dict[str, Any]:
    """Every k-th call of every kind fails in every way, in a child that resumes, takes five steps and saves.

    A fault is *refused* (the child ends with an error and has not said "saved"), *refused_late* (the new checkpoint was
    durable and told before), *warned* (the checkpoint before the newest was used, and said to be), *harmless* (the
    newest checkpoint is good), or a *failure*, which a run that started anew is too. After each, the run goes on without
    faults and must end with the bits of one that met none.
    """
    folder.mkdir()
    base, work = folder / "base", folder / "run"
    in_peace(base, 10)
    peace = in_peace(copied(base, folder / "peace"), 15)
    found = count_calls(train(copied(base, work), 15, leave=False), folder / "trace")
    points = [(name, k, error) for name in CALLS for k in range(1, found[name] + 1) for error in ERRORS]
    random.shuffle(points)
    counts: dict[str, Any] = {"points": len(points), "tried": 0, "refused": 0, "refused_late": 0, "warned": 0}
    counts |= {"harmless": 0, "failures": 0, "without_sentence": 0, "other_bits": 0, "harmless_calls": {}, "where": []}
    for name, number, error in points[:calls]:
        copied(base, work)
        child = fork(
            train(work, 15, leave=False), ["-o", "/dev/null", "-e", f"inject={name}:error={error}:when={number}"]
        )
        code = child.end()
        wait_for_tracers()
        step = newest(work)
        counts["tried"] += 1
        kind = _kind(child, code, step)
        counts[kind] += 1
        if kind == "harmless":
            counts["harmless_calls"][name] = counts["harmless_calls"].get(name, 0) + 1
        counts["without_sentence"] += code == UNTOLD
        same = goes_on_to(work, peace, 15)
        counts["other_bits"] += not same
        if kind == "failures" or code == UNTOLD or not same:
            counts["where"].append(
                f"{name} {number} {error}: exit {code}, said {child.said}, newest {step}, same {same}"
            )
    return counts


def _kind(child: Child, code: int, step: int | None) -> str:
    told, warned = child.last("saved"), child.last("warned")
    first = min((int(line.split()[1]) for line in child.said if line.startswith("step")), default=11)
    if step not in (10, 15) or (told == 15 and step != 15) or first != (6 if warned else 11):
        return "failures"
    if code in (FAILED, UNTOLD):
        return "refused_late" if told == 15 else "refused"
    return "failures" if code or told != 15 else "warned" if warned else "harmless"


def meet_limits(folder: Path) -> dict[str, Any]:
    """Saves under real limits: the size of files, a full disk, no inode left, a read-only disk, a folder that is gone.

    Gives for each "refused" where the child ended with a sentence, had not said "saved", and the run then went on to the
    same bits; otherwise what went wrong, or why the limit cannot be set here.
    """
    folder.mkdir()
    base = folder / "base"
    in_peace(base, 10)
    peace = in_peace(copied(base, folder / "peace"), 15)
    report: dict[str, Any] = {}
    for limit in (0, 100, 4096, 20_000):

        def within(say: Say, limit: int = limit) -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            train(folder / "run", 15)(say)

        copied(base, folder / "run")
        report[f"files of {limit} bytes"] = _outcome(within, folder / "run", peace)

    for name, options, remount in (
        ("full disk", "size=128k", ""),
        ("full inode table", "size=8m,nr_inodes=14", ""),
        ("read-only disk", "size=8m", "remount,ro"),
    ):
        disk = folder / "disk"
        disk.mkdir(exist_ok=True)
        if subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", disk], capture_output=True).returncode:
            report[name] = "cannot be mounted here"
            continue
        try:
            copied(base, disk / "run")
            if remount:
                subprocess.run(["mount", "-o", remount, disk], check=True)
            code = (child := fork(train(disk / "run", 15))).end()
            copied(disk / "run", folder / "run")
        finally:
            subprocess.run(["umount", disk], check=True)
        report[name] = _verdict(code, child.last("saved"), folder / "run", peace)

    def without_a_folder(say: Say) -> None:
        def leave(line: str) -> None:
            say(line)
            if line == "step 12":
                shutil.move(folder / "run", folder / "moved")

        train(folder / "run", 15)(leave)

    copied(base, folder / "run")
    code = (child := fork(without_a_folder)).end()
    report["folder that is gone"] = _verdict(code, child.last("saved"), folder / "moved", peace)
    return report


def _outcome(work: Callable[[Say], None], run: Path, peace: bytes) -> str:
    child = fork(work)
    return _verdict(child.end(), child.last("saved"), run, peace)


def _verdict(code: int, told: int, run: Path, peace: bytes) -> str:
    if code != FAILED or told:
        return f"exit {code} after saying saved {told}"
    if newest(run) != 10:
        return f"the newest checkpoint is {newest(run)}"
    return "refused" if goes_on_to(run, peace, 15) else "other bits afterwards"


def order_of_saves(log: str) -> dict[str, int]:
    """Checks the order of each save: files written and synced, their folder synced, renamed, the parent synced, told.

    Args:
        log: as ``strace -f -y`` writes it, of write, fsync and rename.
    """
    counts = {"saves": 0, "out_of_order": 0}
    events: list[tuple[str, ...]] = []
    saved: set[str] = set()
    for line in log.splitlines():
        if found := re.search(r"write\(\d+<pipe:\[\d+\]>, \"saved (\d+)", line):
            if found[1] in saved:  # that step was there already, and nothing is written again
                continue
            saved.add(found[1])
            counts["saves"] += 1
            counts["out_of_order"] += not _in_order(events, f"step-{int(found[1]):08d}")
            events = []
        elif found := re.search(r"(write|fsync)\(\d+<(/[^>]+)>.*= (\d+)$", line):
            events.append((found[1], found[2]))
        elif found := re.search(r"rename\w*\(.*?\"([^\"]+)\",.*?\"([^\"]+)\".* = 0$", line):
            events.append(("rename", found[1], found[2]))
    return counts


def _in_order(events: list[tuple[str, ...]], name: str) -> bool:
    moves = [place for place, event in enumerate(events) if event[0] == "rename" and event[2].endswith(f"/{name}")]
    if len(moves) != 1:
        return False
    before, (_, source, target), after = events[: moves[0]], events[moves[0]], events[moves[0] + 1 :]
    written = [(place, event[1]) for place, event in enumerate(before) if event[0] == "write"]
    return (
        len({path for _, path in written if path.startswith(f"{source}/")}) == 4
        and all(("fsync", path) in before[place:] for place, path in written)
        and ("fsync", source) in before
        and ("fsync", str(Path(target).parent)) in after
    )


def order_in_the_log(folder: Path) -> dict[str, Any]:
    """The order of a whole run's saves, and of plain ``torch.save`` as the control, in which nothing is synced."""
    folder.mkdir()
    options = ["-y", "-s", "16", "-e", "trace=write,fsync,?rename,?renameat,?renameat2"]
    fork(train(folder / "run", save_every=2), ["-o", str(folder / "ours"), *options]).end()

    def plainly(say: Say) -> None:
        for step in range(1, 6):
            torch.save({"step": step}, folder / "state.pt")
            say(f"saved {step}")

    fork(plainly, ["-o", str(folder / "plain"), *options]).end()
    wait_for_tracers()
    ours, control = (order_of_saves((folder / name).read_text()) for name in ("ours", "plain"))
    return {**ours, "control": control}
