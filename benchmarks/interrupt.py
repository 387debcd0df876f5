"""A fit interrupted at random moments and resumed gives the model of a fit that was left alone, to the bit.

``python benchmarks/interrupt.py --out benchmarks/results/interrupt.json`` fits the digits once undisturbed, then ten times
with an interruption at a random moment of that time: Ctrl-C and a kill in turn. Each is resumed by the same command, and
its winner, weights, scores and steps are compared. Candidates are measured once, for all of them, and steps are taken to
be slower than measured, so that no run is cut short by the clock, on which the outcome would depend.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line sets it, before torch

from anyformer.core.files import write_atomic
from anyformer.fit.run import dry_run

TRIALS = 3
SLOWER = 6.0  # times the measured seconds of a step, for the plan
COMPARED = ("name", "score", "steps", "on_front", "status")


def command(folder: Path, minutes: float) -> list[str]:
    """The fit, as anybody would call it."""
    words = ["digits", "--minutes", str(minutes), "--trials", str(TRIALS), "--out", str(folder)]
    return [sys.executable, "-m", "anyformer.app.cli", "fit", *words]


def run(folder: Path, minutes: float) -> None:
    """The fit to its end."""
    subprocess.run(command(folder, minutes), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # noqa: S603


def outcome(folder: Path) -> dict[str, Any]:
    """What must be equal: the winner, its weights, its test score, and what every candidate reached."""
    report = json.loads((folder / "report.json").read_bytes())
    return {
        "stopped_by_clock": report["stopped_by_clock"],
        "model": report["model"],
        "test": report["test"],
        "candidates": [{key: row[key] for key in COMPARED} for row in report["candidates"]],
        "weights": hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
    }


def interrupted(folder: Path, minutes: float, after: float, sent: signal.Signals) -> bool:
    """Start the fit and interrupt it after so many seconds; whether it was still running then."""
    process = subprocess.Popen(  # noqa: S603 - our own command
        command(folder, minutes), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        process.wait(timeout=after)
        return False
    except subprocess.TimeoutExpired:
        process.send_signal(sent)
        process.wait(timeout=120)
        return True


def main() -> None:
    """Run all and print one line a moment."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=1.5)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        measured = root / "measured"
        dry_run("digits", minutes=arguments.minutes, trials=TRIALS, out=measured)
        table = json.loads((measured / "costs.json").read_bytes())
        for cost in table["costs"].values():
            cost["step_seconds"] *= SLOWER

        def prepared(name: str) -> Path:
            folder = root / name
            folder.mkdir()
            (folder / "costs.json").write_text(json.dumps(table))
            return folder

        whole = prepared("whole")
        began = time.monotonic()
        run(whole, arguments.minutes)
        seconds = time.monotonic() - began
        expected = outcome(whole)
        for moment in range(arguments.moments):
            folder = prepared(f"moment-{moment}")
            after = chance.uniform(0, seconds)
            sent = (signal.SIGINT, signal.SIGKILL)[moment % 2]
            running = interrupted(folder, arguments.minutes, after, sent)
            run(folder, arguments.minutes)
            row = {
                "after": round(after, 2),
                "signal": sent.name,
                "was_running": running,
                "equal": outcome(folder) == expected,
            }
            print(json.dumps(row), flush=True)
            rows.append(row)
            shutil.rmtree(folder)
    summary = {
        "command": "python benchmarks/interrupt.py",
        "seconds_alone": round(seconds, 1),
        "cores": os.cpu_count(),
        "equal": sum(row["equal"] for row in rows),
        "of": len(rows),
        "outcome": expected,
        "rows": rows,
    }
    print(json.dumps(summary))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(arguments.out, (json.dumps(summary, indent=1) + "\n").encode())
    if expected["stopped_by_clock"] or not all(row["equal"] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
