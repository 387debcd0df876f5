"""What a fit leaves behind: the model in every form, the report, the pictures."""

import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.core.files import write_atomic
from anyformer.core.model import Model
from anyformer.core.store import save_pretrained
from anyformer.data.batches import normalize
from anyformer.deploy.onnx import OnnxReport, export_onnx
from anyformer.deploy.runtime import OnnxModel
from anyformer.fit.budget import BASE, Budget
from anyformer.fit.costs import Costs
from anyformer.fit.front import draw_front, on_front
from anyformer.fit.memory import RunMemory
from anyformer.fit.report import Mistake, write_report
from anyformer.fit.study import Clock, Data, Study
from anyformer.measure.latency import latency

FINAL_LATENCY_SECONDS = 1.5
UNSEEN = 20  # images that the export is compared on
WORST = 24  # mistakes that are shown
BASELINE_IMAGES = 5000
BASELINE_SIDE = 32
BATCH = 64


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

    def write(self, *, interrupted: bool) -> dict[str, Any]:
        """Write everything; an interrupted run leaves the test part unread, as it may go on."""
        standing = self.study.standing()
        accuracies = {name: self.study.accuracy(name) for name in standing}
        winner, export, measured = self._winner(sorted(standing, key=lambda name: -standing[name]))
        self.clock.say("Writing the report")
        runtime = OnnxModel(self.folder / "model.onnx")
        part = self.data.split.validation if interrupted else self.data.split.test
        scored = self._score(runtime, part)
        report: dict[str, Any] = {
            "format": 1,
            "model": winner,
            "system": self.data.candidates[winner].system,
            "runtime": "onnxruntime",
            "finished": not interrupted,
            "interrupted": interrupted,
            "stopped_by_clock": self.study.stopped_by_clock,
            "test": None if interrupted else scored["score"],
            "validation": {"accuracy": accuracies[winner], "n": len(self.data.split.validation)},
            "split": {
                "train": len(self.data.split.train),
                "validation": len(self.data.split.validation),
                "test": len(self.data.split.test),
                "seed": self.memory.asked["seed"],
                "digest": self.data.split.digest(),
            },
            "budget": {
                "asked": self.budget.text,
                "limits": [
                    {"quantity": x.quantity, "most": x.most, "unit": BASE[x.quantity]} for x in self.budget.limits
                ],
                "measured": {key: getattr(measured, key) for key in ("latency_ms", "params", "macs", "size_bytes")},
                "met": not self.budget.exceeded(measured),
            },
            "baseline": None if interrupted else self._baseline(),
            "candidates": self._candidates(winner, accuracies),
            "confusion": scored["confusion"],
            "mistakes": [{key: getattr(mistake, key) for key in _MISTAKE} for mistake in scored["mistakes"]],
            "export": {"max_error": export.max_error, "inputs": export.checked},
            "data": {
                "source": self.source,
                "images": len(self.data.pictures),
                "classes": list(self.data.pictures.classes),
                "channels": self.data.pictures.channels,
                "size": self.data.pictures.size,
                "digest": self.memory.asked["data"],
            },
            "environment": _environment(),
            "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "minutes": self.memory.asked["minutes"],
            "seed": self.memory.asked["seed"],
            "trials": self.memory.asked["trials"],
            "seconds": round(self.clock.seconds, 1),
        }
        draw_front(report, self.folder / "front.png")
        write_report(report, scored["mistakes"], self.folder)
        report["seconds"] = round(self.clock.seconds, 1)
        self.memory.save(self.clock.seconds)
        write_atomic(self.folder / "report.json", json.dumps(report, indent=1, allow_nan=False).encode())
        return report

    def _winner(self, ranked: list[str]) -> tuple[str, OnnxReport, Costs]:
        """The best candidate that keeps the budget when it is measured again, written into the folder."""
        for name in ranked:
            self.clock.say(f"Exporting {name}")
            model = self.study.model(name)
            export, measured = self._export(model, self.costs[name])
            if not self.budget.exceeded(measured) or name == ranked[-1]:
                break
        save_pretrained(model, self.folder, extra={"model.onnx": (self.folder / "model.onnx").read_bytes()})
        return name, export, measured

    def _export(self, model: Model, costs: Costs) -> tuple[OnnxReport, Costs]:
        images, _ = self.data.part(self.data.split.validation[:UNSEEN])
        path = self.folder / "model.onnx"
        path.unlink(missing_ok=True)
        report = export_onnx(model, self.data.example(), path, unseen=normalize(images, self.data.config))
        runtime, image = OnnxModel(path), np.ascontiguousarray(self.data.example().numpy())
        timed = latency(lambda: runtime(image), seconds=FINAL_LATENCY_SECONDS)
        again = {"median": timed.median_ms, "p10": timed.p10_ms, "p90": timed.p90_ms}
        return report, Costs(**{**vars(costs), "latency_ms": again, "size_bytes": path.stat().st_size})

    def _score(self, runtime: OnnxModel, indices: Tensor) -> dict[str, Any]:
        """The exported model on a part: accuracy, confusions, the worst mistakes."""
        images, labels = self.data.part(indices)
        logits = [runtime(normalize(part, self.data.config).numpy()) for part in images.split(BATCH)]
        scores = torch.from_numpy(np.concatenate(logits)).softmax(dim=1)
        best, predicted = scores.max(dim=1)
        classes = self.data.pictures.classes
        matrix = torch.zeros(len(classes), len(classes), dtype=torch.int64)
        matrix.index_put_((labels, predicted), torch.ones_like(labels), accumulate=True)
        wrong = (predicted != labels).nonzero().flatten()
        mistakes = [
            Mistake(
                file=self.data.pictures.names[int(indices[i])],
                label=classes[int(labels[i])],
                predicted=classes[int(predicted[i])],
                score=float(best[i]),
                image=images[i].numpy(),
            )
            for i in wrong[best[wrong].argsort(descending=True)][:WORST].tolist()
        ]
        return {
            "score": {"accuracy": float((predicted == labels).double().mean()), "n": len(labels)},
            "confusion": {"classes": list(classes), "matrix": matrix.tolist()},
            "mistakes": mistakes,
        }

    def _baseline(self) -> dict[str, Any]:
        """A support vector machine on the same pixels and split, at most 32 x 32 of them."""
        from sklearn.svm import SVC

        def pixels(part: Tensor) -> tuple[np.ndarray, np.ndarray]:
            images, labels = self.data.part(part)
            images = images.float()
            if images.shape[-1] > BASELINE_SIDE:
                images = torch.nn.functional.interpolate(images, (BASELINE_SIDE, BASELINE_SIDE), mode="area")
            return images.flatten(1).numpy(), labels.numpy()

        chosen = self.data.split.train
        if len(chosen) > BASELINE_IMAGES:
            order = torch.randperm(len(chosen), generator=torch.Generator().manual_seed(0))
            chosen = chosen[order[:BASELINE_IMAGES]]
        model = SVC(gamma="scale").fit(*pixels(chosen))
        score = float(model.score(*pixels(self.data.split.test)))
        return {"name": "SVC(gamma='scale') on the pixels", "accuracy": score, "n": len(self.data.split.test)}

    def _candidates(self, winner: str, accuracies: dict[str, float]) -> list[dict[str, Any]]:
        trained = [name for name in self.costs if name in accuracies]
        front = dict(
            zip(trained, on_front([(self.costs[n].of("latency"), accuracies[n]) for n in trained]), strict=True)
        )
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
                "accuracy": accuracies.get(name),
                "latency_ms": cost.latency_ms,
                "params": cost.params,
                "macs": cost.macs,
                "size_bytes": cost.size_bytes,
                "steps": self.study.trainers[name].step if name in self.study.trainers else 0,
                "on_front": front.get(name, False),
                "status": status(name),
            }
            for name, cost in self.costs.items()
        ]


_MISTAKE = ("file", "label", "predicted", "score")


def _environment() -> dict[str, Any]:
    """What a result depends on beside its arguments."""
    names = ("anyformer", "torch", "onnxruntime", "numpy")
    return {
        **{name: version(name) for name in names},
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "cores": torch.get_num_threads(),
    }
