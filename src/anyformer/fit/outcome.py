"""What a fit leaves behind: the model in every form, the report, the pictures."""

import json
import platform
import shlex
import sys
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.core.files import write_atomic
from anyformer.core.model import Model
from anyformer.core.store import save_pretrained
from anyformer.data.batches import normalize
from anyformer.deploy.onnx import export_onnx
from anyformer.deploy.quantize import quantize_onnx
from anyformer.fit.baseline import baseline
from anyformer.fit.budget import BASE, Budget
from anyformer.fit.clock import Clock
from anyformer.fit.costs import Costs, time_model
from anyformer.fit.front import draw_front, on_front
from anyformer.fit.material import Data
from anyformer.fit.measuring import CALIBRATION
from anyformer.fit.memory import RunMemory
from anyformer.fit.report import write_report
from anyformer.fit.runtimes import RUNTIMES, Run, as_function, open_file
from anyformer.fit.scoring import Scored, imbalance, scored, summary
from anyformer.fit.study import Study
from anyformer.passes.reparameterize import reparameterize

FINAL_LATENCY_SECONDS = 1.5
UNSEEN = 20  # images that the export is compared on
BATCH = 64
INT8 = "model.int8.onnx"


class Finisher:
    """Chooses the winner of a study, exports it, reads the test part once, and writes the folder."""

    def __init__(
        self,
        folder: Path,
        data: Data,
        budget: Budget,
        costs: dict[str, Costs],
        study: Study,
        memory: RunMemory,
        source: str,
        clock: Clock,
    ) -> None:
        self.folder, self.data, self.budget, self.costs = folder, data, budget, costs
        self.study, self.memory, self.source, self.clock = study, memory, source, clock
        self.runtime: str = memory.asked["runtime"]

    def write(self, *, interrupted: bool) -> dict[str, Any]:
        """Write everything; an interrupted run leaves the test part unread, as it may go on."""
        standing = self.study.standing()
        summaries = {name: self._validated(name) for name in standing}
        scores = {name: found["score"] for name, found in summaries.items()}
        winner, export, measured, run = self._winner(sorted(standing, key=lambda name: -standing[name]))
        self.clock.say("Writing the report")
        found = self._score(run, self.data.split.validation if interrupted else self.data.split.test)
        data, asked = self.data, self.memory.asked
        report: dict[str, Any] = {
            "format": 2,
            "model": winner,
            "system": data.candidates[winner].system,
            "runtime": RUNTIMES[self.runtime],
            "kind": data.aim.kind,
            "metric": data.aim.metric,
            "finished": not interrupted,
            "interrupted": interrupted,
            "stopped_by_clock": self.study.stopped_by_clock,
            "test": None if interrupted else found.score,
            "validation": summaries[winner],
            "split": {
                "train": len(data.split.train),
                "validation": len(data.split.validation),
                "test": len(data.split.test),
                "seed": asked["seed"],
                "digest": data.split.digest(),
            },
            "budget": {
                "asked": self.budget.text,
                "limits": [
                    {"quantity": x.quantity, "most": x.most, "unit": BASE[x.quantity]} for x in self.budget.limits
                ],
                "measured": {key: getattr(measured, key) for key in _MEASURED},
                "met": not self.budget.exceeded(measured),
            },
            "baseline": None if interrupted else baseline(data),
            "candidates": self._candidates(winner, scores),
            "confusion": found.confusion,
            "columns": found.columns,
            "mistakes": [{key: getattr(mistake, key) for key in _MISTAKE} for mistake in found.mistakes],
            "export": export,
            "distillation": self._distillation(),
            "data": {
                "source": self.source,
                "images": len(data.pictures),
                "classes": list(data.pictures.classes),
                "channels": data.pictures.channels,
                "size": data.pictures.size,
                "digest": asked["data"],
                "notes": imbalance(data.pictures.notes, data.aim),
            },
            "environment": {**_environment(), "device": self.data.device or "cpu"},
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "minutes": asked["minutes"],
            "seed": asked["seed"],
            "trials": asked["trials"],
            "seconds": round(self.clock.seconds, 1),
        }
        draw_front(report, self.folder / "front.png")
        write_report(report, found.mistakes, self.folder)
        report["seconds"] = round(self.clock.seconds, 1)
        self.memory.save(self.clock.seconds)
        write_atomic(self.folder / "report.json", json.dumps(report, indent=1, allow_nan=False).encode())
        return report

    def _winner(self, ranked: list[str]) -> tuple[str, dict[str, Any], Costs, Run]:
        """The best candidate that keeps the budget when it is measured again, written into the folder."""
        for name in ranked:
            self.clock.say(f"Exporting {name}")
            model = self.study.model(name)
            file, export, measured, run = self._export(model, self.costs[name])
            if not self.budget.exceeded(measured) or name == ranked[-1]:
                break
        model.data_config = {**self.data.config, "runtime": self.runtime, "file": file}
        save_pretrained(model, self.folder, extra={file: (self.folder / file).read_bytes()})
        return name, export, measured, run

    def _export(self, model: Model, costs: Costs) -> tuple[str, dict[str, Any], Costs, Run]:
        """Export a model in the precision that its costs are of, and measure that in the runtime asked for."""
        images, _ = self.data.part(self.data.split.validation[:UNSEEN])
        path = self.folder / "model.onnx"
        for stale in (path, self.folder / INT8):
            stale.unlink(missing_ok=True)
        report = export_onnx(model, self.data.example(), path, unseen=normalize(images[:], self.data.config))
        export: dict[str, Any] = {"max_error": report.max_error, "inputs": report.checked, "int8": None}
        if costs.precision == "int8":
            chosen, _ = self.data.part(self.data.split.train[:CALIBRATION])
            quantize_onnx(path, self.folder / INT8, normalize(chosen[:], self.data.config))
            before = self._score(open_file(path, self.runtime), self.data.split.validation).score
            path.unlink()
            path = self.folder / INT8
        run = as_function(reparameterize(model)) if self.runtime == "eager" else open_file(path, self.runtime)
        if costs.precision == "int8":
            after = self._score(run, self.data.split.validation).score
            export["int8"] = {"before": before["score"], "after": after["score"], "inputs": after["n"]}
        timed = time_model(run, self.data.example(), FINAL_LATENCY_SECONDS)
        return path.name, export, replace(costs, latency_ms=timed, size_bytes=path.stat().st_size), run

    def _validated(self, name: str) -> dict[str, Any]:
        """The score of a candidate's best weights on the validation part."""
        outputs, targets = self.study.validated(self.study.model(name))
        return summary(self.data.aim, outputs, targets)

    def _score(self, run: Run, indices: Tensor) -> Scored:
        """The model in its runtime on a part."""
        images, targets = self.data.part(indices)
        outputs = [run(normalize(part, self.data.config).numpy()) for part in images.split(BATCH)]
        return scored(self.data.aim, torch.from_numpy(np.concatenate(outputs)), targets, self.data.pictures, indices)

    def _candidates(self, winner: str, scores: dict[str, float]) -> list[dict[str, Any]]:
        trained = [name for name in self.costs if name in scores]
        front = dict(zip(trained, on_front([(self.costs[n].of("latency"), scores[n]) for n in trained]), strict=True))
        last = max(self.study.reached.values(), default=0)

        def status(name: str) -> str:
            exceeded = self.budget.exceeded(self.costs[name])
            if exceeded:
                return f"over budget: {', '.join(limit.quantity for limit in exceeded)}"
            if name == winner:
                return "winner"
            rung = self.study.reached.get(name)
            if rung is None:
                return "interrupted"
            return "finished" if rung == last else f"stopped at rung {rung + 1}"

        return [
            {
                "name": name,
                "system": self.data.candidates[name].system,
                "score": scores.get(name),
                "latency_ms": cost.latency_ms,
                "params": cost.params,
                "macs": cost.macs,
                "size_bytes": cost.size_bytes,
                "precision": cost.precision,
                "steps": self.study.trainers[name].step if name in self.study.trainers else 0,
                "on_front": front.get(name, False),
                "status": status(name),
                "start": self._start(name),
            }
            for name, cost in self.costs.items()
        ]

    def _distillation(self) -> dict[str, Any] | None:
        """Who taught the finalists, or why nobody did; None where nobody was asked to."""
        if not self.memory.asked["distill"]:
            return None
        if self.study.teacher is None:
            return {
                "teacher": None,
                "reason": "no candidate beyond the budget could be trained in its share of the time",
            }
        name = self.study.teacher[0]
        trainer = self.study.trainers.get(name)
        if trainer is None or trainer.best is None:
            return {"teacher": None, "reason": f"{name} was not trained in time"}
        return {"teacher": name, **self._validated(name)}

    def _start(self, name: str) -> str:
        """What a candidate's weights were before training."""
        if self.data.weights is None:
            return "fresh"
        origin = self.data.origins.get(name)
        if origin is None:
            return "not started"
        return f"pretrained, {origin['from']}" if origin["pretrained"] else f"fresh: {origin['reason']}"


_MISTAKE = ("file", "label", "predicted", "score")
_MEASURED = ("latency_ms", "params", "macs", "size_bytes", "precision")


def _environment() -> dict[str, Any]:
    """What a result depends on beside its arguments."""
    names = {}
    for name in ("anyformer", "torch", "onnxruntime", "openvino", "numpy"):
        try:
            names[name] = version(name)
        except PackageNotFoundError:  # an extra that is not installed
            continue
    return {
        **names,
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }
