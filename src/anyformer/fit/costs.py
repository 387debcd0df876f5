"""What a candidate costs on this machine, measured once and kept in ``costs.json``."""

import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.core.files import write_atomic
from anyformer.core.model import Model
from anyformer.deploy.onnx import export_onnx
from anyformer.deploy.quantize import quantize_onnx
from anyformer.fit.runtimes import Run, as_function, open_file
from anyformer.measure.cost import cost
from anyformer.measure.latency import latency
from anyformer.passes.reparameterize import reparameterize

LATENCY_SECONDS = 0.5
MEASURE_SHARE = 0.4  # of the minutes may go to measuring; candidates beyond that are left out
STEPS = (2, 5)  # training steps run untimed, then timed


@dataclass(frozen=True)
class Costs:
    """One candidate's costs.

    Attributes:
        params: parameters of the deploy form.
        macs: its multiply-adds an image, a token of a text that is gone on with, or a text that is classified.
        size_bytes: bytes of the file that is deployed.
        latency_ms: median, 10th and 90th percentile of one image, one such token or one text, in the chosen runtime, all
            cores.
        step_seconds: one training step.
        export_seconds: one export with its check.
        measure_seconds: what measuring all this took.
        precision: of the form that latency and size are of, ``float32`` or ``int8``.
        state_bytes: of a stream's state after its context; of language models alone.
        context: the most tokens that the model takes; as many as there are when None.
    """

    params: int
    macs: int
    size_bytes: int
    latency_ms: dict[str, float]
    step_seconds: float
    export_seconds: float
    measure_seconds: float
    precision: str = "float32"
    state_bytes: int = 0
    context: int | None = None

    def of(self, quantity: str) -> float:
        """The cost that a budget names, in the units of ``budget.BASE``."""
        match quantity:
            case "latency":
                return self.latency_ms["median"]
            case "tokens_per_second":
                return 1000 / self.latency_ms["median"]
            case "size":
                return self.size_bytes
            case "state":
                return self.state_bytes
            case "context":
                return math.inf if self.context is None else self.context
            case _:
                return getattr(self, quantity)


def measure_candidate(
    model: Model, example: Tensor, train_step: Callable[[], None], path: Path, runtime: str = "onnx"
) -> Costs:
    """Measure a model with fresh weights: latency does not depend on them.

    Args:
        model: images to scores.
        example: images of the shape to come, ``(batch, channels, size, size)``, at least one.
        train_step: one step of the training to come, on the model.
        path: where the export may lie in between; removed again.
        runtime: what latency is measured in.
    """
    started = time.perf_counter()
    deployed = reparameterize(model)
    counted = cost(deployed, tuple(example[:1].shape))
    export_started = time.perf_counter()
    export_onnx(model, example[:1], path)
    export_seconds = time.perf_counter() - export_started
    run = as_function(deployed) if runtime == "eager" else open_file(path, runtime)
    timed = time_model(run, example, LATENCY_SECONDS)
    size = path.stat().st_size
    path.unlink()
    return Costs(
        params=counted.params,
        macs=counted.macs,
        size_bytes=size,
        latency_ms=timed,
        step_seconds=time_steps(train_step),
        export_seconds=export_seconds,
        measure_seconds=time.perf_counter() - started,
    )


def time_steps(train_step: Callable[[], None]) -> float:
    """The seconds of a training step: the median of some, after some that are not timed."""
    seconds: list[float] = []
    for index in range(sum(STEPS)):
        step_started = time.perf_counter()
        train_step()
        if index >= STEPS[0]:
            seconds.append(time.perf_counter() - step_started)
    return statistics.median(seconds)


def measure_int8(model: Model, example: Tensor, calibration: Tensor, costs: Costs, path: Path, runtime: str) -> Costs:
    """The costs of a candidate as they are in int8: its latency and size measured, the rest as in float32.

    Args:
        model: as for :func:`measure_candidate`.
        example: likewise.
        calibration: normalised images for the scales.
        costs: of the candidate in float32.
        path: where the export may lie in between; removed again.
        runtime: what latency is measured in, ``onnx`` or ``openvino``.
    """
    started = time.perf_counter()
    small = path.with_suffix(".int8.onnx")
    try:
        export_onnx(model, example[:1], path)
        quantize_onnx(path, small, calibration)
        timed = time_model(open_file(small, runtime), example, LATENCY_SECONDS)
        size = small.stat().st_size
    finally:
        path.unlink(missing_ok=True)
        small.unlink(missing_ok=True)
    seconds = time.perf_counter() - started
    return replace(
        costs,
        latency_ms=timed,
        size_bytes=size,
        export_seconds=max(seconds, costs.export_seconds),
        measure_seconds=costs.measure_seconds + seconds,
        precision="int8",
    )


def time_model(run: Run, example: Tensor, seconds: float) -> dict[str, float]:
    """Median, 10th and 90th percentile in milliseconds of one image through a model, timed for so many seconds."""
    image = np.ascontiguousarray(example[:1].numpy())
    timed = latency(lambda: run(image), seconds=seconds)
    return {"median": timed.median_ms, "p10": timed.p10_ms, "p90": timed.p90_ms}


class CostTable:
    """The costs of all candidates, in a file that grows as they are measured and is read again when it is there.

    Args:
        path: ``costs.json``.
        setting: what the costs hold for (image size, channels, classes, cores, torch version); another is refused.

    Raises:
        UsageError: the file is of another setting.
        AnyformerError: the file cannot be read.
    """

    def __init__(self, path: Path, setting: dict[str, Any]) -> None:
        self.path, self.setting = path, setting
        self.costs: dict[str, Costs] = {}
        if path.exists():
            try:
                data = json.loads(path.read_bytes())
                known = data["setting"]
                self.costs = {name: Costs(**values) for name, values in data["costs"].items()}
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise AnyformerError(f"{path} cannot be read as measured costs ({error}); delete it") from error
            if known != setting:
                differing = [key for key in {**known, **setting} if known.get(key) != setting.get(key)]
                raise UsageError(f"{path} was measured under another {', '.join(sorted(differing))}; delete it")

    def add(self, name: str, costs: Costs) -> None:
        """Enter a candidate and write the file."""
        self.costs[name] = costs
        table = {"setting": self.setting, "costs": {key: asdict(value) for key, value in self.costs.items()}}
        write_atomic(self.path, json.dumps(table, indent=1).encode())


def setting_of(example: Tensor, classes: int, batch: int, runtime: str = "onnx") -> dict[str, Any]:
    """What measured costs of models of pictures hold for."""
    _, channels, size, _ = example.shape
    return {
        "size": size,
        "channels": channels,
        "classes": classes,
        "batch": batch,
        "runtime": runtime,
        **machine(),
    }


def machine() -> dict[str, Any]:
    """What all measured costs hold for."""
    return {"cores": torch.get_num_threads(), "torch": torch.__version__}
