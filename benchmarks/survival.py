"""What a training run survives: kills, failing calls, damage, signals; with the controls that must not survive.

``python benchmarks/survival.py --out benchmarks/results/survival.json`` runs the full form, some minutes on a quiet
machine; ``--share 0.05`` a twentieth of it. The run under test (``tests/unit/train/small_run.py``) has convolution, batch
norm, dropout, a moving average, shuffling and augmentation. Every harness is in ``tests/reliability``. Exit code 1 where a
figure is missed. What needs ptrace or mounts says so where they are barred.
"""

import argparse
import json
import os
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # children are forked: there must be no other threads

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "reliability"), str(ROOT / "tests" / "unit" / "train")]

import children  # noqa: E402
import damage  # noqa: E402
import ends  # noqa: E402
import faults  # noqa: E402
import kills  # noqa: E402
import torch  # noqa: E402
from small_run import make_trainer  # noqa: E402

from anyformer.core.files import write_atomic  # noqa: E402

Check = tuple[Callable[[Path], Any], Callable[[Any], bool]]


def none(*names: str) -> Callable[[dict[str, Any]], bool]:
    """A verdict: these counts are zero."""
    return lambda counts: not any(counts[name] for name in names)


def checks(share: float) -> dict[str, Check]:
    """Every check by name: what it runs, and whether what comes of it is good enough."""

    def of(count: int) -> int:
        return max(2, round(count * share))

    calls = None if share >= 1 else of(430)
    unharmed = none("unreadable", "lost", "other_bits")
    found = {
        "kills inside saves": (lambda at: kills.kill_inside_saves(at, of(200)), unharmed),
        "kills over the run": (lambda at: kills.kill_over_runs(at, of(200)), unharmed),
        "control: kills inside plain torch.save": (
            lambda at: kills.kill_plain_saves(at, max(12, of(200))),
            lambda counts: 2 * (counts["unreadable"] + counts["lost"]) >= counts["kills"],
        ),
        "damage": (
            lambda at: damage.damage_newest(at, of(1000)),
            lambda kinds: all(count == 0 for kind in kinds.values() for name, count in kind.items() if name != "tried"),
        ),
        "control: damage to plain files": (
            lambda at: damage.damage_plain_files(at, of(1000)),
            lambda kinds: all(
                2 * counts["accepted"] > counts["tried"] for kind, counts in kinds.items() if "flip" in kind
            ),
        ),
        "other configurations": (
            lambda at: damage.other_configurations(at, of(200)),
            lambda counts: none("accepted", "keys_missing")(counts) and counts["longest_seconds"] <= 2,
        ),
        "resumes": (lambda at: ends.resume_at_each_step(at, of(40)), _all_same),
        "resumes, accumulated in bfloat16": (
            lambda at: ends.resume_at_each_step(at, of(10), accumulate=2, bf16=True),
            _all_same,
        ),
        "signals": (
            lambda at: ends.send_signals(at, of(50)),
            lambda counts: none("other_code", "not_saved", "other_bits")(counts) and counts["longest_seconds"] <= 10,
        ),
        "second interrupts": (
            lambda at: ends.send_two_interrupts(at, of(20)),
            none("other_code", "harmed", "other_bits"),
        ),
        "two writers": (lambda at: ends.two_writers(at, of(20)), none("let_in", "shut_out_after_a_kill")),
        "limits": (
            faults.meet_limits,
            lambda found: all(text in ("refused", "cannot be mounted here") for text in found.values()),
        ),
    }
    barred = children.traceable()
    traced = {
        "kills at each call": (lambda at: kills.kill_at_each_call(at, calls), unharmed),
        "failing calls": (
            lambda at: faults.fail_each_call(at, calls),
            none("failures", "without_sentence", "other_bits"),
        ),
        "order of calls": (
            faults.order_in_the_log,
            lambda counts: counts["saves"] > 0 and not counts["out_of_order"] and counts["control"]["out_of_order"] > 0,
        ),
    }
    if barred:
        traced = {name: (lambda _: {"barred": barred}, bool) for name in traced}
    return found | traced


def _all_same(counts: dict[str, int]) -> bool:
    return counts["same"] == counts["tried"] > 0


def warm_up(folder: Path) -> None:
    """Imports, in the parent, what a first step, save and load import."""
    for steps in (6, 7):
        trainer = make_trainer(folder)
        trainer.run(steps)
        trainer.store.close()


def main() -> int:
    """Run all checks, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=1.0, help="of the counts of the full form")
    parser.add_argument("--only", nargs="*", default=[], help="checks whose names begin so; --out keeps the others")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the runs under test lie; the system's temporary folder")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    report: dict[str, Any] = {"command": "python benchmarks/survival.py", "share": arguments.share}
    report |= {"cores": os.cpu_count(), "load": os.getloadavg()[0], "torch": torch.__version__}
    report |= {"workers": "none: a batch is a pure function of the step", "checks": {}}
    if arguments.only and arguments.out and arguments.out.exists():
        report["checks"] = json.loads(arguments.out.read_bytes())["checks"]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        warm_up(Path(name) / "warm")
        for number, (title, (run, good)) in enumerate(checks(arguments.share).items()):
            if arguments.only and not title.startswith(tuple(arguments.only)):
                continue
            started = time.monotonic()
            found = run(Path(name) / str(number))
            seconds = round(time.monotonic() - started, 1)
            report["checks"][title] = {"good": good(found), "seconds": seconds, "found": found}
            print(json.dumps({title: report["checks"][title]}), flush=True)
    report["seconds"] = round(sum(check["seconds"] for check in report["checks"].values()), 1)
    report["good"] = all(check["good"] for check in report["checks"].values())
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(arguments.out, (json.dumps(report, indent=1) + "\n").encode())
    return 0 if report["good"] else 1


if __name__ == "__main__":
    sys.exit(main())
