"""The candidates with their costs on this machine, and which of them a budget allows."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyformer.core.errors import UsageError
from anyformer.fit.budget import Budget
from anyformer.fit.clock import Clock
from anyformer.fit.costs import MEASURE_SHARE, Costs, CostTable
from anyformer.fit.material import Material

ROOM = 1.1  # a budget that is proposed leaves a tenth above what was measured


def measure(folder: Path, data: Material, runtime: str, clock: Clock, budget: Budget, trials: int) -> dict[str, Costs]:
    """The costs of candidates, from ``costs.json`` as far as it has them, until so many keep the budget."""
    found: dict[str, Costs] = {}
    table = CostTable(folder / "costs.json", data.setting(runtime))
    (folder / "work").mkdir(exist_ok=True)
    for name in data.candidates:
        if sum(not budget.exceeded(cost) for cost in found.values()) == trials:
            break
        if name not in table.costs:
            if table.costs and clock.seconds > MEASURE_SHARE * clock.total:
                continue
            clock.say(f"Measuring {name}")
            table.add(name, data.measure(name, folder / "work", runtime))
        found[name] = table.costs[name]
    return found


def within(costs: Mapping[str, Costs], budget: Budget) -> list[str]:
    """The candidates within the budget. Raises UsageError naming the nearest when there is none."""
    found = [name for name, cost in costs.items() if not budget.exceeded(cost)]
    if found:
        return found

    def excess(name: str) -> float:
        return max(limit.excess(costs[name].of(limit.quantity)) for limit in budget.limits)

    nearest = min(costs, key=excess)
    over = [(limit, costs[nearest].of(limit.quantity)) for limit in budget.exceeded(costs[nearest])]
    need = ", ".join(limit.at(value / ROOM if limit.least else ROOM * value) for limit, value in over)
    raise UsageError(f"no candidate is within the budget {budget.text!r}; the nearest, {nearest}, would be with {need}")


@dataclass(frozen=True)
class DryRun:
    """What a fit would work with: one row a candidate, with its measured costs and whether the budget allows it."""

    folder: Path
    runtime: str
    rows: list[dict[str, Any]]


def rows(data: Material, costs: Mapping[str, Costs], budget: Budget) -> list[dict[str, Any]]:
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
