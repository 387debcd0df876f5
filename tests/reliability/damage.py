"""Changed, cut, zeroed, swapped, missing and superfluous files; other configurations; each is noticed, or it counts."""

import copy
import random
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from runs import copied, in_peace
from small_run import CONFIG, make_model

from anyformer.core.errors import UsageError
from anyformer.train.checkpoint import Checkpoints, CheckpointWarning
from anyformer.train.packing import pack

Change = Callable[[bytes, random.Random], bytes]


def flip(data: bytes, chance: random.Random) -> bytes:
    """One bit is another."""
    place = chance.randrange(8 * len(data))
    return data[: place // 8] + bytes([data[place // 8] ^ (1 << place % 8)]) + data[place // 8 + 1 :]


def cut(data: bytes, chance: random.Random) -> bytes:
    """The end is missing."""
    return data[: chance.randrange(len(data))]


def zero(data: bytes, chance: random.Random) -> bytes:
    """A block of up to 512 bytes is zero."""
    size = min(512, len(data))
    place = chance.randrange(len(data) - size + 1)
    return data[:place] + bytes(size) + data[place + size :]


CHANGES: dict[str, Change] = {"flips": flip, "truncations": cut, "zeroed": zero}


def damage_newest(folder: Path, trials: int) -> dict[str, Any]:
    """Each change to a file of the newest checkpoint: it must be named and the one before it used, to the bit."""
    folder.mkdir()
    run = folder / "run"
    in_peace(run, 10, save_every=5)
    new, chance = run / "step-00000010", random.Random(0)
    good = {path.name: path.read_bytes() for path in sorted(new.iterdir())}
    previous = _state(run, 5)
    counts: dict[str, Any] = {}
    for kind, change in CHANGES.items():
        tried = accepted = unnamed = other_state = 0
        while tried < trials:
            name = chance.choice(list(good))
            changed = change(good[name], chance)
            if changed == good[name]:
                continue
            tried += 1
            (new / name).write_bytes(changed)
            found, told = _load(run)
            accepted += found is None or found[0] != 5
            unnamed += "step-00000010/" not in told or not told.endswith("going on from step 5")
            other_state += found is None or _bits(found[1]) != previous
            (new / name).write_bytes(good[name])
        counts[kind] = {"tried": tried, "accepted": accepted, "unnamed": unnamed, "other_state": other_state}
    found, told = _load(run)
    assert found is not None, "whole again"
    assert (found[0], told) == (10, "")
    counts["files"] = _mix_up_files(folder, run)
    return counts


def _mix_up_files(folder: Path, run: Path) -> dict[str, int]:
    """Every file missing, every file that of the other checkpoint, every two swapped, one more, a link, a folder."""
    names = sorted(path.name for path in (run / "step-00000010").iterdir())
    counts = {"tried": 0, "accepted": 0}

    def check(change: Callable[[Path], object]) -> None:
        work = copied(run, folder / "mixed")
        change(work / "step-00000010")
        found, told = _load(work)
        counts["tried"] += 1
        counts["accepted"] += found is None or found[0] != 5 or "step-00000010" not in told

    def swap(new: Path, one: str, other: str) -> None:
        (new / one).rename(new / "x")
        (new / other).rename(new / one)
        (new / "x").rename(new / other)

    for name in names:
        check(lambda new, name=name: (new / name).unlink())
        check(lambda new, name=name: shutil.copy(new.with_name("step-00000005") / name, new / name))
        check(lambda new, name=name: (new / f"{name}.1").write_bytes(b""))
        for other in names:
            if name < other:
                check(lambda new, name=name, other=other: swap(new, name, other))
    check(lambda new: (new / "more").symlink_to("meta.json"))
    check(lambda new: (new / "more").mkdir())
    check(lambda new: (shutil.rmtree(new), shutil.copytree(new.with_name("step-00000005"), new)))
    return counts


def _load(run: Path) -> tuple[tuple[int, Any] | None, str]:
    with warnings.catch_warnings(record=True) as caught, Checkpoints(run, CONFIG) as store:
        warnings.simplefilter("always")
        try:
            found = store.load()
        except Exception:
            found = None
    return found, "; ".join(str(warning.message) for warning in caught if warning.category is CheckpointWarning)


def _state(run: Path, step: int) -> bytes:
    work = copied(run, run.with_name("previous"))
    shutil.rmtree(work / "step-00000010")
    found, _ = _load(work)
    assert found is not None
    assert found[0] == step
    return _bits(found[1])


def _bits(state: Any) -> bytes:
    return b"".join(pack(state))


def damage_plain_files(folder: Path, trials: int) -> dict[str, Any]:
    """The control: how often ``torch.load`` and safetensors take a changed file without a word."""
    folder.mkdir()
    state = make_model(1).state_dict()
    torch.save(state, folder / "state.pt")
    (folder / "state.safetensors").write_bytes(safetensors.torch.save(state))
    readers: dict[str, Callable[[Path], Any]] = {
        "state.pt": torch.load,
        "state.safetensors": lambda path: safetensors.torch.load(path.read_bytes()),
    }
    counts: dict[str, Any] = {}
    for name, read in readers.items():
        good, chance = (folder / name).read_bytes(), random.Random(0)
        for kind, change in (("flips", flip), ("zeroed", zero)):
            accepted = tried = 0
            while tried < trials:
                changed = change(good, chance)
                if changed == good:
                    continue
                tried += 1
                (folder / "changed").write_bytes(changed)
                try:
                    read(folder / "changed")
                    accepted += 1
                except Exception:
                    accepted += 0
            counts[f"{name} {kind}"] = {"tried": tried, "accepted": accepted}
    return counts


def other_configurations(folder: Path, trials: int) -> dict[str, Any]:
    """Runs that differ in random keys of a nested configuration: refused, with every key and no other, and how fast."""
    folder.mkdir()
    chance = random.Random(0)
    config = {
        "spec": {f"part{i}": {"dim": i, "heads": 2, "act": "gelu"} for i in range(20)},
        "data": {"digest": "a" * 64, "batch": 32},
        "dtype": "float32",
        "seed": 0,
    }
    with Checkpoints(folder / "run", config) as store:
        store.save(1, {"step": 1})
    places = [("spec", part, key) for part in config["spec"] for key in ("dim", "heads", "act")]
    places += [("data", "digest"), ("data", "batch"), ("dtype",), ("seed",)]
    counts = {"tried": 0, "accepted": 0, "keys_missing": 0, "longest_seconds": 0.0}
    for _ in range(trials):
        other, chosen = copy.deepcopy(config), chance.sample(places, chance.randint(1, 12))
        for *path, key in chosen:
            inner: Any = other
            for name in path:
                inner = inner[name]
            if chance.random() < 0.3:
                del inner[key]
            else:
                inner[key] = f"{inner[key]}x"
        began, sentence = time.monotonic(), ""
        with Checkpoints(folder / "run", other) as store:
            try:
                store.load()
            except UsageError as error:
                sentence = str(error)
        counts["tried"] += 1
        counts["accepted"] += not sentence
        counts["keys_missing"] += sum(f"{'.'.join(path)}: saved" not in sentence for path in chosen)
        counts["keys_missing"] += sentence.count(": saved") != len(chosen)
        counts["longest_seconds"] = max(counts["longest_seconds"], round(time.monotonic() - began, 4))
    return counts
