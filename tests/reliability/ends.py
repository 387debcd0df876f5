"""Resumes from every step, signals, and two writers."""

import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from children import FAILED, Child, Say, fork
from runs import STEPS, bits_of, goes_on_to, in_peace, newest, train
from small_run import CONFIG, make_trainer

from anyformer.core.errors import UsageError
from anyformer.train.checkpoint import Checkpoints


def resume_at_each_step(folder: Path, stops: int, **changes: Any) -> dict[str, int]:
    """Stops a run once, at each of its steps in turn; what goes on in another process must end with the same bits."""
    folder.mkdir()
    peace = in_peace(folder / "peace", **changes)
    counts = {"tried": 0, "same": 0}
    for stop in sorted(random.sample(range(1, STEPS + 1), min(stops, STEPS))):
        run = folder / f"stopped-{stop}"
        first = fork(lambda say, run=run, stop=stop: _run_to(run, stop, changes))
        assert first.end() == 0
        counts["tried"] += 1
        child = fork(train(run, **changes))
        counts["same"] += child.end() == 0 and bits_of(run).read_bytes() == peace
    return counts


def _run_to(run: Path, stop: int, changes: dict[str, Any]) -> None:
    make_trainer(run, **changes).run(stop)


def _warm(child: Child, steps: int) -> None:
    while not child.hear().startswith("step") or child.last("step") < steps:
        pass


def send_signals(folder: Path, trials: int) -> dict[str, Any]:
    """SIGTERM and SIGINT in turn at random steps: exit 143 or 130 within 10 s, the last step saved, the same bits."""
    folder.mkdir()
    peace = in_peace(folder / "peace")
    counts: dict[str, Any] = {"tried": 0, "other_code": 0, "not_saved": 0, "other_bits": 0, "longest_seconds": 0.0}
    for trial in range(trials):
        run = folder / f"ended-{trial}"
        number, code = ((signal.SIGTERM, 143), (signal.SIGINT, 130))[trial % 2]
        child = fork(train(run))
        _warm(child, random.randint(1, 30))
        began = time.monotonic()
        found = child.end(number)
        counts["longest_seconds"] = max(counts["longest_seconds"], round(time.monotonic() - began, 3))
        counts["tried"] += 1
        counts["other_code"] += found != code
        counts["not_saved"] += newest(run) != child.last("step")
        counts["other_bits"] += not goes_on_to(run, peace)
    return counts


def send_two_interrupts(folder: Path, trials: int) -> dict[str, Any]:
    """Two Ctrl-C, the second at a random moment after the first: the end comes at once, and nothing is harmed."""
    folder.mkdir()
    peace = in_peace(folder / "peace", save_every=1)
    counts: dict[str, Any] = {"tried": 0, "other_code": 0, "harmed": 0, "other_bits": 0, "longest_seconds": 0.0}
    for trial in range(trials):
        run = folder / f"ended-{trial}"
        child = fork(train(run, save_every=1))
        _warm(child, random.randint(2, 10))
        os.kill(child.process, signal.SIGINT)
        time.sleep(random.uniform(0, 0.01))
        began = time.monotonic()
        found = child.end(signal.SIGINT)
        counts["longest_seconds"] = max(counts["longest_seconds"], round(time.monotonic() - began, 3))
        counts["tried"] += 1
        counts["other_code"] += found != 130
        step = newest(run)
        counts["harmed"] += step is None or step < child.last("saved")
        counts["other_bits"] += not goes_on_to(run, peace)
    return counts


def two_writers(folder: Path, trials: int) -> dict[str, int]:
    """A second process on the same folder is refused while the first lives, and let in when it was killed."""
    counts = {"tried": 0, "let_in": 0, "shut_out_after_a_kill": 0}
    for trial in range(trials):
        run = folder / str(trial)
        first = fork(train(run, 10**6))
        _warm(first, 1)

        def second(say: Say, run: Path = run) -> None:
            try:
                Checkpoints(run, CONFIG)
            except UsageError:
                say("refused 1")
                raise

        other = fork(second)
        counts["tried"] += 1
        counts["let_in"] += other.end() != FAILED or not other.last("refused")
        first.end(signal.SIGKILL)
        counts["shut_out_after_a_kill"] += fork(second).end() != 0
    return counts
