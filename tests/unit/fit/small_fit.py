"""A fit that takes seconds: three classes of real digits in a folder, two candidates whose costs are given."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from anyformer.data.images import digits, load
from anyformer.fit.candidates import candidates
from anyformer.fit.costs import Costs, setting_of

NAMES = tuple(candidate.name for candidate in candidates(size=8, channels=1, classes=3, trials=2))
LATENCIES = dict(zip(NAMES, (0.5, 0.7), strict=True))


def write_folder(path: Path, classes: int = 3, each: int = 24) -> Path:
    """A folder of PNG files with a sub-folder a class."""
    pictures = digits()
    for label in range(classes):
        folder = path / f"class {label}"
        folder.mkdir(parents=True)
        for index in (pictures.labels == label).nonzero().flatten()[:each].tolist():
            Image.fromarray(np.asarray(pictures.images[index, 0])).save(folder / f"{index}.png")
    return path


def write_labels(path: Path) -> Path:
    """An archive of digits 0 to 7 by their bits: three labels, any number of which apply."""
    pictures = digits()
    chosen = (pictures.labels < 8).nonzero().flatten()[:160]
    bits = (pictures.labels[chosen, None] >> torch.arange(3)) & 1
    images = pictures.images[chosen, 0].numpy()
    np.savez(path, images=images, labels=bits.numpy(), classes=np.array(["one", "two", "four"]))
    return path


def write_numbers(path: Path) -> Path:
    """An archive of digits with two numbers each: their ink, and the height of its centre in pixels."""
    pictures = digits()
    ink = pictures.images[:160, 0].double()
    height = (ink.sum(2) * torch.arange(8)).sum(1) / ink.sum((1, 2))
    targets = torch.stack([1000 * ink.mean((1, 2)), height], dim=1)
    np.savez(path, images=pictures.images[:160, 0].numpy(), targets=targets.numpy())
    return path


def write_costs(
    out: Path, data: Path, latencies: dict[str, float] = LATENCIES, runtime: str = "onnx", step_seconds: float = 100.0
) -> None:
    """A ``costs.json`` that makes measuring unnecessary and training as short as it may be.

    Latencies under ``NAME int8`` are those of the int8 form.
    """
    pictures = load(data)
    out.mkdir(parents=True, exist_ok=True)
    batch = min(32, len(pictures.split(0).train))
    shape = (1, pictures.channels, pictures.size, pictures.size)
    setting = setting_of(pictures.images.new_zeros(shape), len(pictures.classes), batch, runtime)
    costs = {
        name: asdict(
            Costs(
                params=400_000,
                macs=4_000_000,
                size_bytes=1_600_000,
                latency_ms={"median": latency, "p10": latency, "p90": latency},
                step_seconds=step_seconds,
                export_seconds=5.0,
                measure_seconds=5.0,
                precision="int8" if name.endswith(" int8") else "float32",
            )
        )
        for name, latency in latencies.items()
    }
    (out / "costs.json").write_text(json.dumps({"setting": setting, "costs": costs}))
