"""A fit that takes seconds: three classes of real digits in a folder, two candidates whose costs are given."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from anyformer.data.images import digits, load
from anyformer.data.split import split
from anyformer.fit.costs import Costs, setting_of

NAMES = ("convnext_micro", "edgenext_micro")
LATENCIES = {"convnext_micro": 0.5, "edgenext_micro": 0.7}


def write_folder(path: Path, classes: int = 3, each: int = 24) -> Path:
    """A folder of PNG files with a sub-folder a class."""
    pictures = digits()
    for label in range(classes):
        folder = path / f"class {label}"
        folder.mkdir(parents=True)
        for index in (pictures.labels == label).nonzero().flatten()[:each].tolist():
            Image.fromarray(np.asarray(pictures.images[index, 0])).save(folder / f"{index}.png")
    return path


def write_costs(out: Path, data: Path, latencies: dict[str, float] = LATENCIES) -> None:
    """A ``costs.json`` that makes measuring unnecessary and training as short as it may be."""
    pictures = load(data)
    out.mkdir(parents=True, exist_ok=True)
    batch = min(32, len(split(pictures.labels, 0).train))
    shape = (1, pictures.channels, pictures.size, pictures.size)
    setting = setting_of(pictures.images.new_zeros(shape), len(pictures.classes), batch)
    costs = {
        name: asdict(
            Costs(
                params=400_000,
                macs=4_000_000,
                size_bytes=1_600_000,
                latency_ms={"median": latency, "p10": latency, "p90": latency},
                step_seconds=100.0,
                export_seconds=5.0,
                measure_seconds=5.0,
            )
        )
        for name, latency in latencies.items()
    }
    (out / "costs.json").write_text(json.dumps({"setting": setting, "costs": costs}))
