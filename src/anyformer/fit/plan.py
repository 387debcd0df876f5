"""The plan of a fit: which candidates train for how many steps, by successive halving (Jamieson and Talwalkar 2016).

A pure function of the measured costs, the minutes and the number of candidates, so that the same costs give the same
weights. The clock only ever cuts a run short.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from anyformer.fit.costs import Costs

FINALISTS = 2  # train to the end: what is ahead early on is often not what is best in the end
LAST_SHARE = 0.65  # of the training time goes to them
SURVIVORS = 3  # one in this many goes on to the next rung
REPORT_SECONDS = 12.0  # for the baseline, the pictures and the page
MARGIN = 0.92  # training steps on a busy machine take longer than those that were timed
LEAST_SHARE = 0.3  # of the minutes goes to training, whatever measuring took
LEAST_STEPS = 20


@dataclass(frozen=True)
class Rung:
    """How many candidates train in it, and for how long together."""

    candidates: int
    seconds: float


def reserve(costs: Mapping[str, Costs]) -> float:
    """The seconds to keep for what follows training: the export, its check, and the report."""
    return 2 * max(cost.export_seconds for cost in costs.values()) + REPORT_SECONDS


def rungs(count: int, minutes: float, costs: Mapping[str, Costs]) -> tuple[Rung, ...]:
    """The rungs for ``count`` candidates: time shared by fewer from rung to rung, most of it by the finalists."""
    total = 60.0 * minutes
    spent = sum(cost.measure_seconds for cost in costs.values()) + reserve(costs)
    training = max(MARGIN * (total - spent), LEAST_SHARE * total)
    sizes = [count]
    while sizes[-1] > FINALISTS:
        sizes.append(max(FINALISTS, ceil(sizes[-1] / SURVIVORS)))
    if len(sizes) == 1:
        return (Rung(count, training),)
    early = (1 - LAST_SHARE) * training / (len(sizes) - 1)
    return (*(Rung(size, early) for size in sizes[:-1]), Rung(sizes[-1], LAST_SHARE * training))


def steps(rung: Rung, costs: Costs) -> int:
    """The steps of one candidate in a rung."""
    return max(LEAST_STEPS, int(rung.seconds / rung.candidates / costs.step_seconds))
