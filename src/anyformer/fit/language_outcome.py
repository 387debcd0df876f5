"""What a fit to a text leaves behind beside the model: bits a byte, the counts that it is held against, samples."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.core.model import Model
from anyformer.data.tokenizers import ByteTokenizer
from anyformer.fit.costs import Costs
from anyformer.fit.decoding import time_token
from anyformer.fit.language_material import LanguageMaterial, spread
from anyformer.fit.outcome import MEASURED, Finisher
from anyformer.fit.report import write_language_report
from anyformer.skeletons.generation import generate
from anyformer.train.ngram import ByteNGram

FINAL_SECONDS = 1.5  # of timing
ORDER = 4  # bytes of history
COUNTED = 2**24  # bytes of the training part, at most
SAMPLES = 3
PROMPT, SAMPLE = 96, 256  # bytes, where the context has room for them
TEMPERATURE = 0.8
RESAMPLES = 200


class LanguageFinisher(Finisher):
    """The outcome of a fit to a text."""

    material: LanguageMaterial
    measured = (*MEASURED, "state_bytes", "context")

    def quality(self, score: float) -> float:
        """Fewer bits are better."""
        return -score

    def validated(self, model: Model) -> dict[str, Any]:
        """The bits a byte on the validation part, or much of it."""
        return self._summary(self.material.bits(model, self.material.validation))

    def export(self, model: Model, costs: Costs) -> tuple[dict[str, bytes], dict[str, Any], Costs, Model]:
        """The model is used as it is; a token is timed again."""
        timed = time_token(model, self.material.before(model), FINAL_SECONDS)
        return {}, {}, replace(costs, latency_ms=timed), model

    def told(self, used: Model, *, interrupted: bool) -> dict[str, Any]:
        """Bits a byte on the test part and those of the counts, samples that go on from it, and how the text was read."""
        data = self.material
        rows = data.validation if interrupted else data.test
        return {
            "kind": "language",
            "metric": "bits per byte",
            "test": None if interrupted else self._summary(data.bits(used, rows)),
            "split": data.parts,
            "baseline": None if interrupted else self._baseline(),
            "samples": self._samples(used, rows),
            "data": {
                "source": self.source,
                "files": len(data.text.paths),
                "bytes": data.text.size,
                "trained_context": data.context,
                "digest": self.memory.asked["data"],
                "notes": list(data.notes),
            },
        }

    def page(self, report: dict[str, Any]) -> None:
        """See :func:`anyformer.fit.report.write_language_report`."""
        write_language_report(report, self.folder)

    def _baseline(self) -> dict[str, Any]:
        text = spread(self.material.train, COUNTED)
        counts = ByteNGram(text, ORDER)
        rows = self.material.test.numpy().astype(np.uint8)
        bits = torch.tensor([-np.log2(counts.probabilities(row)[1:]).mean() for row in rows], dtype=torch.float64)
        name = f"n-grams of {len(text):,} bytes, the next by the {ORDER} before it, interpolated (Witten-Bell)"
        return {"name": name, **self._summary(bits)}

    def _samples(self, model: Model, rows: Tensor) -> list[dict[str, str]]:
        """How the model goes on from the beginnings of windows that lie far apart."""
        words = ByteTokenizer()
        context = model.data_config["context"] or PROMPT + SAMPLE
        length = min(PROMPT, self.material.context // 2, context // 2)
        prompts = rows[torch.linspace(0, len(rows) - 1, min(SAMPLES, len(rows))).long(), :length]
        found = generate(model, prompts, max_new_tokens=min(SAMPLE, context - length), temperature=TEMPERATURE, seed=0)
        return [
            {"prompt": _readable(words, row[:length]), "continuation": _readable(words, row[length:])} for row in found
        ]

    def _summary(self, bits: Tensor) -> dict[str, Any]:
        """The mean over windows with its 95 % interval by resampling them (Efron 1979), the same each time."""
        generator = torch.Generator().manual_seed(0)
        draws = torch.randint(len(bits), (RESAMPLES, len(bits)), generator=generator)
        means = bits[draws].mean(1).sort().values
        interval = [means[int(0.025 * RESAMPLES)].item(), means[int(0.975 * RESAMPLES) - 1].item()]
        return {"score": bits.mean().item(), "interval": interval, "n": len(bits) * self.material.context}


def _readable(words: ByteTokenizer, ids: Tensor) -> str:
    """Bytes as text; those that are none, and what cannot be printed, as the sign for that."""
    text = words.to_bytes(ids.tolist()).decode(errors="replace")
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
