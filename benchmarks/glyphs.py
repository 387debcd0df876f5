"""``anyformer fit`` on drawn characters against a support vector machine on histograms of oriented gradients.

``python benchmarks/glyphs.py --out benchmarks/results/glyphs.json`` draws 36 characters, 300 of each at 64 x 64, for each of
five seeds, fits each set for ten minutes as ``anyformer fit FOLDER --minutes 10 --seed N`` would, and compares the test
accuracy with that of the support vector machine on the same training and test parts. ``--small`` does so for 100 pictures
of ten characters to learn from, tested on 450 in other fonts, since the few that such a set could spare for a test would
tell nothing. The last line printed is the whole result as JSON.
"""

import argparse
import json
import math
import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "2000")  # as the command line sets it, before torch

import numpy as np
import torch
from scipy.stats import t as student
from skimage.feature import hog
from sklearn.svm import SVC
from torch import Tensor

import anyformer
from anyformer.core.files import write_atomic
from anyformer.data.glyphs import PARAMETERS, write
from anyformer.data.images import ImageSet, load

COSTS = (1.0, 10.0)  # of the support vector machine; the best on the validation part is taken
LARGE = {"classes": 36, "per_class": 300}
SMALL = {"classes": 10, "per_class": 300}
LEARNT = 10  # pictures a class that are left to learn from in the small set


def support_vector_machine(pictures: ImageSet, seed: int) -> dict[str, float]:
    """The test accuracy of the support vector machine, its penalty chosen on the validation part."""
    parts = pictures.split(seed)

    def features(positions: Tensor) -> tuple[np.ndarray, np.ndarray]:
        pixels, labels = pictures.part(positions)
        rows = [
            hog(image[0].numpy(), orientations=9, pixels_per_cell=(8, 8), cells_per_block=(2, 2), block_norm="L2-Hys")
            for chunk in pixels.chunks()
            for image in chunk
        ]
        return np.array(rows), labels.numpy()

    train, validation, test = (features(part) for part in (parts.train, parts.validation, parts.test))
    models = {cost: SVC(C=cost, gamma="scale").fit(*train) for cost in COSTS}
    cost = max(COSTS, key=lambda cost: models[cost].score(*validation))
    return {"accuracy": float(models[cost].score(*test)), "cost": cost}


def run(seed: int, minutes: float, small: bool) -> dict[str, Any]:
    """One set: both accuracies in per cent."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "glyphs"
        write(data, size=PARAMETERS.side, seed=seed, **(SMALL if small else LARGE))
        for character in (data / "train").iterdir() if small else ():
            for picture in sorted(character.iterdir())[LEARNT:]:
                picture.unlink()
        pictures = load(data)
        theirs = support_vector_machine(pictures, seed)
        report = anyformer.fit(str(data), minutes=minutes, seed=seed, out=Path(folder) / "run").report
    return {
        "seed": seed,
        "model": report["model"],
        "test": report["test"]["n"],
        "ours": 100 * report["test"]["accuracy"],
        "svc": 100 * theirs["accuracy"],
        "difference": 100 * (report["test"]["accuracy"] - theirs["accuracy"]),
        "svc_cost": theirs["cost"],
        "seconds": report["seconds"],
        "stopped_by_clock": report["stopped_by_clock"],
    }


def main() -> None:
    """Run all seeds, print a table, the interval of the difference and, last, everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="of each fit")
    parser.add_argument("--seeds", type=int, default=5, help="how many sets")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="100 pictures of ten characters to learn from")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    print(f"{'seed':>4}  {'ours':>6}  {'svc':>6}  {'differ':>6}  model", flush=True)
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        row = run(seed, arguments.minutes, arguments.small)
        rows.append(row)
        print(
            f"{seed:>4}  {row['ours']:6.2f}  {row['svc']:6.2f}  {row['difference']:+6.2f}  {row['model']}", flush=True
        )
    differences = [row["difference"] for row in rows]
    mean = statistics.mean(differences)
    interval = None
    if len(rows) > 1:
        half = student.ppf(0.975, len(rows) - 1) * statistics.stdev(differences) / math.sqrt(len(rows))
        interval = [float(mean - half), float(mean + half)]
        print(f"mean difference {mean:+.2f} points, 95 % interval {interval[0]:+.2f} to {interval[1]:+.2f}")
    summary = {
        "command": f"python benchmarks/glyphs.py --minutes {arguments.minutes:g} --first-seed {arguments.first_seed}"
        + (" --small" if arguments.small else ""),
        **(SMALL | {"learnt_per_class": LEARNT} if arguments.small else LARGE),
        "size": PARAMETERS.side,
        "generator": PARAMETERS.digest(),
        "minutes": arguments.minutes,
        "mean_difference": mean,
        "interval_95": interval,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "rows": rows,
    }
    print(json.dumps(summary))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(arguments.out, (json.dumps(summary, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
