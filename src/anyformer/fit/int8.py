"""Candidates in int8, for budgets that none keeps in float32."""

from pathlib import Path
from typing import TYPE_CHECKING

from anyformer.data.batches import normalize
from anyformer.fit.budget import Budget
from anyformer.fit.clock import Clock
from anyformer.fit.costs import MEASURE_SHARE, Costs, CostTable, measure_int8

if TYPE_CHECKING:
    from anyformer.fit.picture_material import PictureMaterial

CALIBRATION = 128  # training pictures that set the scales of int8


def in_int8(
    folder: Path, data: "PictureMaterial", runtime: str, clock: Clock, costs: dict[str, Costs], budget: Budget
) -> dict[str, Costs]:
    """The costs, with those of int8 for candidates that keep the budget only so, where no candidate keeps it in float32.

    What int8 makes smaller are latency and size: candidates that exceed anything else stay as they are.
    """
    exceeded = {name: budget.exceeded(cost) for name, cost in costs.items()}
    if runtime == "eager" or not all(exceeded.values()):
        return costs
    example = data.example()
    images, _ = data.part(data.split.train[:CALIBRATION])
    table = CostTable(folder / "costs.json", data.setting(runtime))
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
