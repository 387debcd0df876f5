"""How cost grows with the size of the input: the slope of its logarithm over the logarithm of the number of pixels."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anyformer.measure.table import Row

QUANTITIES = ("macs", "median_ms", "forward_mb", "training_mb")
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
"""The 97.5 % point of Student's distribution, from one degree of freedom on; the last stands for more."""


@dataclass(frozen=True, kw_only=True)
class Exponent:
    """Cost grows as pixels to this power: 1 is linear in the number of tokens, 2 quadratic.

    Attributes:
        name: The model.
        runtime: Its runtime.
        precision: Its precision.
        batch: Images a call.
        quantity: One of ``QUANTITIES``.
        value: The least-squares slope of log cost over log pixels.
        low: Lower end of its 95 % interval, from the scatter about the line; None with two sizes, which have none.
        high: Upper end.
        sizes: How many sizes it rests on.
    """

    name: str
    runtime: str
    precision: str
    batch: int
    quantity: str
    value: float
    low: float | None
    high: float | None
    sizes: int


def exponents(rows: Iterable[Row]) -> list[Exponent]:
    """The exponents of every model that was measured at two sizes or more; costs of 0 have none."""
    points: defaultdict[tuple[str, str, str, int, str], list[tuple[float, float]]] = defaultdict(list)
    for row in rows:
        for quantity in QUANTITIES:
            value = getattr(row, quantity)
            if value and not row.again:
                key = (row.name, row.runtime, row.precision, row.batch, quantity)
                points[key].append((math.log(row.height * row.width), math.log(value)))
    found: list[Exponent] = []
    for (name, runtime, precision, batch, quantity), some in points.items():
        if len({x for x, _ in some}) >= 2:
            value, half = slope([x for x, _ in some], [y for _, y in some])
            low, high = (None, None) if half is None else (value - half, value + half)
            found.append(
                Exponent(
                    name=name,
                    runtime=runtime,
                    precision=precision,
                    batch=batch,
                    quantity=quantity,
                    value=value,
                    low=low,
                    high=high,
                    sizes=len(some),
                )
            )
    return found


def slope(x: Sequence[float], y: Sequence[float]) -> tuple[float, float | None]:
    """The least-squares slope, and half its 95 % interval, None of two points.

    Args:
        x: Two different values or more.
        y: As many.
    """
    value, constant = statistics.linear_regression(x, y)
    freedom = len(x) - 2
    if freedom < 1:
        return value, None
    left = sum((b - constant - value * a) ** 2 for a, b in zip(x, y, strict=True))
    mean = statistics.fmean(x)
    spread = sum((a - mean) ** 2 for a in x)
    return value, STUDENT[min(freedom, len(STUDENT)) - 1] * math.sqrt(left / freedom / spread)
