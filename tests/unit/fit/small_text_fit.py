"""A fit to a text that takes seconds: two candidates whose costs are given, small batches of short windows."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from anyformer.data.corpus import read_text
from anyformer.fit import language_material
from anyformer.fit.candidates import text_candidates
from anyformer.fit.costs import Costs
from anyformer.fit.language_material import LanguageMaterial

NAMES = ("mamba_micro", "llama_micro")
BUDGET = "tokens_per_second>=100, context>=32"
WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "the",
    "dog",
    "run",
    "to",
    "the",
    "end",
    "of",
    "a",
    "road",
]


def hurry(patch: pytest.MonkeyPatch) -> None:
    """Batches of eight windows of 32 bytes, two candidates, few windows to look at, and little timing."""
    chosen = [next(c for c in text_candidates() if c.name == name) for name in NAMES]
    patch.setattr(language_material, "text_candidates", lambda: chosen)
    patch.setattr(language_material, "BATCH_TOKENS", 256)
    patch.setattr(language_material, "VALIDATED", 512)
    patch.setattr(language_material, "TESTED", 1024)
    patch.setattr("anyformer.fit.language_outcome.FINAL_SECONDS", 0.01)
    patch.setattr("anyformer.fit.language_outcome.SAMPLE", 8)


def write_texts(path: Path, files: int = 4, words: int = 1500) -> Path:
    """A folder of files of words at random, and some bytes that are no text."""
    path.mkdir(parents=True)
    for number in range(files):
        chance = np.random.default_rng(number)
        text = " ".join(WORDS[place] for place in chance.integers(0, len(WORDS), words))
        (path / f"{number}.txt").write_bytes(text.replace(" dog ", "\n").encode() + b"\xff\xfe")
    return path


def write_costs(out: Path, data: Path, times: dict[str, float], context: int = 32, step_seconds: float = 100.0) -> None:
    """A ``costs.json`` that makes measuring unnecessary and training as short as it may be; times of a token in ms."""
    out.mkdir(parents=True, exist_ok=True)
    setting = LanguageMaterial.of(read_text(data), 0, context).setting("eager")
    costs = {
        name: asdict(
            Costs(
                params=80_000,
                macs=80_000,
                size_bytes=320_000,
                latency_ms={"median": time, "p10": time, "p90": time},
                step_seconds=step_seconds,
                export_seconds=0.1,
                measure_seconds=1.0,
                state_bytes=10_000,
            )
        )
        for name, time in times.items()
    }
    (out / "costs.json").write_text(json.dumps({"setting": setting, "costs": costs}))
