"""``anyformer fit digits`` against a support vector machine, over five fixed splits.

``python benchmarks/digits.py --out benchmarks/results/digits.json`` fits five times, each as
``anyformer fit digits --budget "latency<=2ms" --minutes 3 --seed N`` would, and compares its test accuracy with that of
``SVC(gamma=0.001)`` on the same training and test parts of the same split, pixels from 0 to 16 as scikit-learn gives them.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line sets it, before torch

import torch

from anyformer.core.files import write_atomic
from anyformer.data.images import DIGITS_STEP, digits
from anyformer.data.split import split
from anyformer.deploy.runtime import available_cores
from anyformer.fit.run import fit

SEEDS = (0, 1, 2, 3, 4)
STUDENT_T = 2.776  # 97.5 % quantile with four degrees of freedom


def support_vector_machine(seed: int) -> float:
    """The test accuracy of the support vector machine on a split."""
    from sklearn.svm import SVC

    pictures = digits()
    parts = split(pictures.labels, seed)
    pixels = (pictures.images.float() / DIGITS_STEP).flatten(1).numpy()
    labels = pictures.labels.numpy()
    model = SVC(gamma=0.001).fit(pixels[parts.train], labels[parts.train])
    return float(model.score(pixels[parts.test], labels[parts.test]))


def run(seed: int, minutes: float, budget: str, threads: int) -> dict[str, Any]:
    """One split: both accuracies in per cent."""
    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        report = fit("digits", budget=budget, minutes=minutes, seed=seed, out=Path(folder) / "run").report
    theirs = support_vector_machine(seed)
    row = {
        "seed": seed,
        "model": report["model"],
        "ours": 100 * report["test"]["accuracy"],
        "svc": 100 * theirs,
        "difference": 100 * (report["test"]["accuracy"] - theirs),
        "candidates": sum(c["score"] is not None for c in report["candidates"]),
        "systems": len({c["system"] for c in report["candidates"] if c["score"] is not None}),
        "latency_ms": report["budget"]["measured"]["latency_ms"]["median"],
        "seconds": report["seconds"],
        "stopped_by_clock": report["stopped_by_clock"],
    }
    print(json.dumps(row), flush=True)
    return row


def main() -> None:
    """Run all splits and print the interval of the difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--budget", default="latency<=2ms")
    parser.add_argument("--workers", type=int, default=1, help="splits at a time; each gets its share of the cores")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    threads = max(1, available_cores() // arguments.workers)
    with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(run, seed, arguments.minutes, arguments.budget, threads) for seed in SEEDS]
        rows = [job.result() for job in jobs]
    differences = [row["difference"] for row in rows]
    mean = statistics.mean(differences)
    half = STUDENT_T * statistics.stdev(differences) / math.sqrt(len(differences))
    summary = {
        "command": "python benchmarks/digits.py",
        "budget": arguments.budget,
        "minutes": arguments.minutes,
        "mean_difference": mean,
        "interval_95": [mean - half, mean + half],
        "workers": arguments.workers,
        "threads": threads,
        "torch": torch.__version__,
        "rows": rows,
    }
    print(json.dumps(summary))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(arguments.out, (json.dumps(summary, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
