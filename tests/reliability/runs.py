"""The run under test, told step by step, and how what it has made is compared to the bit."""

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from children import Say, fork
from small_run import CONFIG, make_trainer, outcome

from anyformer.train.checkpoint import Checkpoints
from anyformer.train.packing import pack

STEPS = 40


def train(folder: Path, steps: int = STEPS, *, leave: bool = True, **changes: Any) -> Callable[[Say], None]:
    """Goes on with the run in a folder; says ``step N`` before a save and ``saved N`` after it, then leaves its bits."""

    def work(say: Say) -> None:
        trainer = make_trainer(folder, **changes)
        assert trainer.store is not None
        save = trainer.store.save

        def save_and_tell(step: int, state: Any) -> None:
            save(step, state)
            say(f"saved {step}")

        trainer.store.save = save_and_tell  # type: ignore[method-assign]
        trainer.run(steps, progress=lambda step, losses: say(f"step {step}"))
        if leave:
            tree, tensors = pack(outcome(trainer))
            bits_of(folder).write_bytes(tree + tensors)

    return work


def bits_of(folder: Path) -> Path:
    """Where a finished run leaves weights, optimizer, averages, best, and log."""
    return folder.with_name(f"{folder.name}.bits")


def in_peace(folder: Path, steps: int = STEPS, **changes: Any) -> bytes:
    """The bits of the run when nothing disturbs it."""
    child = fork(train(folder, steps, **changes))
    assert child.end() == 0
    return bits_of(folder).read_bytes()


def newest(folder: Path) -> int | None:
    """The step of the newest checkpoint, None where it cannot be read or there is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            with Checkpoints(folder, CONFIG) as store:
                found = store.load()
        except Exception:
            return None
    return found[0] if found else 0


def goes_on_to(folder: Path, bits: bytes, steps: int = STEPS) -> bool:
    """Whether the run, left in peace from here on, ends with these bits."""
    child = fork(train(folder, steps))
    return child.end() == 0 and not child.last("warned") and bits_of(folder).read_bytes() == bits


def copied(source: Path, target: Path) -> Path:
    """A fresh copy of a run's folder, without the bits of an earlier one."""
    shutil.rmtree(target, ignore_errors=True)
    bits_of(target).unlink(missing_ok=True)
    shutil.copytree(source, target)
    return target
