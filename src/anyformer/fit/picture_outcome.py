"""What a fit to pictures leaves behind beside the model: its export, compared and timed, its score and its mistakes."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.core.model import Model
from anyformer.data.batches import normalize
from anyformer.deploy.onnx import export_onnx
from anyformer.deploy.quantize import quantize_onnx
from anyformer.fit.baseline import baseline
from anyformer.fit.costs import Costs, time_model
from anyformer.fit.int8 import CALIBRATION
from anyformer.fit.outcome import Finisher
from anyformer.fit.picture_material import PictureMaterial
from anyformer.fit.report import Mistake, write_report
from anyformer.fit.runtimes import Run, as_function, open_file
from anyformer.fit.scoring import Scored, imbalance, scored, summary
from anyformer.passes.reparameterize import reparameterize

FINAL_LATENCY_SECONDS = 1.5
UNSEEN = 20  # images that the export is compared on
BATCH = 64
INT8 = "model.int8.onnx"
MISTAKE = ("file", "label", "predicted", "score")


class PictureFinisher(Finisher):
    """The outcome of a fit to pictures."""

    material: PictureMaterial
    mistakes: list[Mistake]

    def validated(self, model: Model) -> dict[str, Any]:
        """The score of a model on the validation part."""
        outputs, targets = self.material.validated(model)
        return summary(self.material.aim, outputs, targets)

    def export(self, model: Model, costs: Costs) -> tuple[dict[str, bytes], dict[str, Any], Costs, Run]:
        """Export a model in the precision that its costs are of, and measure that in the runtime asked for."""
        data = self.material
        images, _ = data.part(data.split.validation[:UNSEEN])
        path = self.folder / "model.onnx"
        for stale in (path, self.folder / INT8):
            stale.unlink(missing_ok=True)
        report = export_onnx(model, data.example(), path, unseen=normalize(images[:], data.config))
        export: dict[str, Any] = {"max_error": report.max_error, "inputs": report.checked, "int8": None}
        if costs.precision == "int8":
            chosen, _ = data.part(data.split.train[:CALIBRATION])
            quantize_onnx(path, self.folder / INT8, normalize(chosen[:], data.config))
            before = self._score(open_file(path, self.runtime), data.split.validation).score
            path.unlink()
            path = self.folder / INT8
        run = as_function(reparameterize(model)) if self.runtime == "eager" else open_file(path, self.runtime)
        if costs.precision == "int8":
            after = self._score(run, data.split.validation).score
            export["int8"] = {"before": before["score"], "after": after["score"], "inputs": after["n"]}
        timed = time_model(run, data.example(), FINAL_LATENCY_SECONDS)
        content = path.read_bytes()
        return {path.name: content}, export, replace(costs, latency_ms=timed, size_bytes=len(content)), run

    def told(self, used: Run, *, interrupted: bool) -> dict[str, Any]:
        """Score, confusion and mistakes on the test part, the baseline there, and how the pictures were read."""
        data = self.material
        found = self._score(used, data.split.validation if interrupted else data.split.test)
        self.mistakes = found.mistakes
        return {
            "kind": data.aim.kind,
            "metric": data.aim.metric,
            "test": None if interrupted else found.score,
            "split": {
                "train": len(data.split.train),
                "validation": len(data.split.validation),
                "test": len(data.split.test),
                "seed": self.memory.asked["seed"],
                "digest": data.split.digest(),
            },
            "baseline": None if interrupted else baseline(data),
            "confusion": found.confusion,
            "columns": found.columns,
            "mistakes": [{key: getattr(mistake, key) for key in MISTAKE} for mistake in found.mistakes],
            "data": {
                "source": self.source,
                "images": len(data.pictures),
                "classes": list(data.pictures.classes),
                "channels": data.pictures.channels,
                "size": data.pictures.size,
                "digest": self.memory.asked["data"],
                "notes": imbalance(data.pictures.notes, data.aim),
            },
        }

    def page(self, report: dict[str, Any]) -> None:
        """See :func:`anyformer.fit.report.write_report`."""
        write_report(report, self.mistakes, self.folder)

    def _score(self, run: Run, indices: Tensor) -> Scored:
        """The model in its runtime on a part."""
        data = self.material
        images, targets = data.part(indices)
        outputs = [run(normalize(part, data.config).numpy()) for part in images.split(BATCH)]
        return scored(data.aim, torch.from_numpy(np.concatenate(outputs)), targets, data.pictures, indices)
