"""What a fit leaves behind: the model, the report, the pictures."""

import json
import platform
import shlex
import sys
from abc import ABC, abstractmethod
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from anyformer.core.files import write_atomic
from anyformer.core.model import Model
from anyformer.core.store import save_pretrained
from anyformer.fit.budget import BASE, Budget
from anyformer.fit.clock import Clock
from anyformer.fit.costs import Costs
from anyformer.fit.front import draw_front, on_front
from anyformer.fit.memory import RunMemory
from anyformer.fit.runtimes import RUNTIMES
from anyformer.fit.study import Study

MEASURED = ("latency_ms", "params", "macs", "size_bytes", "precision")


class Finisher(ABC):
    """Chooses the winner of a study, exports it, reads the test part once, and writes the folder.

    What depends on the kind of data is left to the methods of a subclass.
    """

    measured: tuple[str, ...] = MEASURED
    """The costs that the report tells of each candidate."""

    def __init__(
        self,
        folder: Path,
        data: Any,
        budget: Budget,
        costs: dict[str, Costs],
        study: Study,
        memory: RunMemory,
        source: str,
        clock: Clock,
    ) -> None:
        self.folder, self.material, self.budget, self.costs = folder, data, budget, costs
        self.study, self.memory, self.source, self.clock = study, memory, source, clock
        self.runtime: str = memory.asked["runtime"]

    @abstractmethod
    def validated(self, model: Model) -> dict[str, Any]:
        """What a model reaches on the validation part: its ``score``, an ``interval`` and ``n``, at least."""

    @abstractmethod
    def export(self, model: Model, costs: Costs) -> tuple[dict[str, bytes], dict[str, Any], Costs, Any]:
        """Make a model ready for use.

        Returns:
            Files for the folder, what the report says of them, the costs measured again, and the model as it is used.
        """

    @abstractmethod
    def told(self, used: Any, *, interrupted: bool) -> dict[str, Any]:
        """What the report says of data and winner: ``test``, ``split``, ``baseline``, ``data`` and the like.

        Args:
            used: the winner as it is used.
            interrupted: read the validation part, not the test part.
        """

    @abstractmethod
    def page(self, report: dict[str, Any]) -> None:
        """Write ``report.html``."""

    def quality(self, score: float) -> float:
        """A score turned so that more is better."""
        return score

    def write(self, *, interrupted: bool) -> dict[str, Any]:
        """Write everything; an interrupted run leaves the test part unread, as it may go on."""
        standing = self.study.standing()
        summaries = {name: self.validated(self.study.model(name)) for name in standing}
        scores = {name: found["score"] for name, found in summaries.items()}
        winner, export, measured, used = self._winner(sorted(standing, key=lambda name: -standing[name]))
        self.clock.say("Writing the report")
        asked = self.memory.asked
        report: dict[str, Any] = {
            "format": 2,
            "model": winner,
            "system": self.material.candidates[winner].system,
            "runtime": RUNTIMES[self.runtime],
            "finished": not interrupted,
            "interrupted": interrupted,
            "stopped_by_clock": self.study.stopped_by_clock,
            "validation": summaries[winner],
            "budget": {
                "asked": self.budget.text,
                "limits": [
                    {"quantity": x.quantity, "least" if x.least else "most": x.bound, "unit": BASE[x.quantity]}
                    for x in self.budget.limits
                ],
                "measured": {key: getattr(measured, key) for key in self.measured},
                "met": not self.budget.exceeded(measured),
            },
            "candidates": self._candidates(winner, scores),
            "export": export,
            **self.told(used, interrupted=interrupted),
            "distillation": self._distillation(),
            "environment": {**_environment(), "device": self.material.device or "cpu"},
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "minutes": asked["minutes"],
            "seed": asked["seed"],
            "trials": asked["trials"],
            "seconds": round(self.clock.seconds, 1),
        }
        draw_front(report, self.folder / "front.png")
        self.page(report)
        report["seconds"] = round(self.clock.seconds, 1)
        self.memory.save(self.clock.seconds)
        write_atomic(self.folder / "report.json", json.dumps(report, indent=1, allow_nan=False).encode())
        return report

    def _winner(self, ranked: list[str]) -> tuple[str, dict[str, Any], Costs, Any]:
        """The best candidate that keeps the budget when it is measured again, written into the folder."""
        for name in ranked:
            self.clock.say(f"Exporting {name}")
            model = self.study.model(name)
            files, export, measured, used = self.export(model, self.costs[name])
            if not self.budget.exceeded(measured) or name == ranked[-1]:
                break
        model.data_config = {
            **model.data_config,
            "runtime": self.runtime,
            **({"file": next(iter(files))} if files else {}),
        }
        save_pretrained(model, self.folder, extra=files)
        return name, export, measured, used

    def _candidates(self, winner: str, scores: dict[str, float]) -> list[dict[str, Any]]:
        trained = [name for name in self.costs if name in scores]
        front = dict(
            zip(
                trained,
                on_front([(self.costs[n].of("latency"), self.quality(scores[n])) for n in trained]),
                strict=True,
            )
        )
        last = max(self.study.reached.values(), default=0)

        def status(name: str) -> str:
            exceeded = self.budget.exceeded(self.costs[name])
            if exceeded:
                return f"over budget: {', '.join(limit.quantity for limit in exceeded)}"
            if name == winner:
                return "winner"
            if name in self.study.diverged:
                return "diverged"
            rung = self.study.reached.get(name)
            if rung is None:
                return "interrupted"
            return "finished" if rung == last else f"stopped at rung {rung + 1}"

        return [
            {
                "name": name,
                "system": self.material.candidates[name].system,
                "score": scores.get(name),
                **{key: getattr(cost, key) for key in self.measured},
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
        return {"teacher": name, **self.validated(self.study.model(name))}

    def _start(self, name: str) -> str:
        """What a candidate's weights were before training."""
        if self.material.weights is None:
            return "fresh"
        origin = self.material.origins.get(name)
        if origin is None:
            return "not started"
        return f"pretrained, {origin['from']}" if origin["pretrained"] else f"fresh: {origin['reason']}"


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
