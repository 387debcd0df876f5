"""The candidates with their costs on this machine, and which of them a budget allows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyformer.core.errors import UsageError
from anyformer.data.batches import normalize
from anyformer.fit.budget import Budget, readable
from anyformer.fit.candidates import candidates
from anyformer.fit.clock import Clock
from anyformer.fit.costs import Costs, CostTable, measure_candidate, measure_int8, setting_of
from anyformer.fit.material import Data

ROOM = 1.1  # a budget that is proposed leaves a tenth above what was measured
CALIBRATION = 128  # training pictures that set the scales of int8
MEASURE_SHARE = 0.4  # of the minutes may go to measuring; candidates beyond that are left out


def choose(data: Data, trials: int) -> None:
    """Enter the candidates into the data."""
    wanted = candidates(
        size=data.pictures.size,
        channels=data.pictures.channels,
        classes=data.outputs,
        trials=trials,
        weights=data.weights.names if data.weights else (),
    )
    data.candidates = {candidate.name: candidate for candidate in wanted}


def measure(folder: Path, data: Data, runtime: str, clock: Clock) -> dict[str, Costs]:
    """The costs of all candidates, from ``costs.json`` as far as it has them."""
    example = data.example()
    table = CostTable(folder / "costs.json", setting_of(example, data.outputs, data.batch, runtime))
    (folder / "work").mkdir(exist_ok=True)
    for name in data.candidates:
        if name in table.costs:
            continue
        if table.costs and clock.seconds > MEASURE_SHARE * clock.total:
            break
        clock.say(f"Measuring {name}")
        model = data.create(name, seed=0)
        exported = folder / "work" / f"{name}.onnx"
        table.add(name, measure_candidate(model, example, data.train_step(model), exported, runtime))
    return {name: table.costs[name] for name in data.candidates if name in table.costs}


def in_int8(
    folder: Path, data: Data, runtime: str, clock: Clock, costs: dict[str, Costs], budget: Budget
) -> dict[str, Costs]:
    """The costs, with those of int8 for candidates that keep the budget only so, where no candidate keeps it in float32.

    What int8 makes smaller are latency and size: candidates that exceed anything else stay as they are.
    """
    exceeded = {name: budget.exceeded(cost) for name, cost in costs.items()}
    if runtime == "eager" or not all(exceeded.values()):
        return costs
    example = data.example()
    images, _ = data.part(data.split.train[:CALIBRATION])
    table = CostTable(folder / "costs.json", setting_of(example, data.outputs, data.batch, runtime))
    found = dict(costs)
    for name, limits in exceeded.items():
        if {limit.quantity for limit in limits} - {"latency", "size"}:
            continue
        key = f"{name} int8"
        if key not in table.costs:
            if clock.seconds > MEASURE_SHARE * clock.total:
                break
            clock.say(f"Measuring {name} in int8")
            exported = folder / "work" / f"{name}.onnx"
            calibration = normalize(images[:], data.config)
            table.add(
                key, measure_int8(data.create(name, seed=0), example, calibration, costs[name], exported, runtime)
            )
        if not budget.exceeded(table.costs[key]):
            found[name] = table.costs[key]
    return found


def within(costs: Mapping[str, Costs], budget: Budget) -> list[str]:
    """The candidates within the budget. Raises UsageError naming the nearest when there is none."""
    found = [name for name, cost in costs.items() if not budget.exceeded(cost)]
    if found:
        return found

    def excess(name: str) -> float:
        return max(costs[name].of(limit.quantity) / limit.most for limit in budget.limits)

    nearest = min(costs, key=excess)
    need = ", ".join(
        f"{limit.quantity}<={readable(limit.quantity, ROOM * costs[nearest].of(limit.quantity))}"
        for limit in budget.limits
        if costs[nearest].of(limit.quantity) > limit.most
    )
    raise UsageError(f"no candidate is within the budget {budget.text!r}; the nearest, {nearest}, would be with {need}")


@dataclass(frozen=True)
class DryRun:
    """What a fit would work with: one row a candidate, with its measured costs and whether the budget allows it."""

    folder: Path
    runtime: str
    rows: list[dict[str, Any]]


def rows(data: Data, costs: Mapping[str, Costs], budget: Budget) -> list[dict[str, Any]]:
    """The candidates as JSON values."""
    found: list[dict[str, Any]] = []
    for name, cost in costs.items():
        over = [str(limit) for limit in budget.exceeded(cost)]
        row = {
            "name": name,
            "system": data.candidates[name].system,
            "precision": cost.precision,
            "latency_ms": cost.latency_ms,
            "params": cost.params,
            "macs": cost.macs,
            "size_bytes": cost.size_bytes,
            "step_seconds": cost.step_seconds,
            "within": not over,
            "exceeds": over,
        }
        if data.weights is not None:
            there = name in data.weights.names
            row["weights"] = data.weights.source if there else f"none: {data.weights.reason(name)}"
        found.append(row)
    return found
