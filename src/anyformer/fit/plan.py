"""The plan of a fit: which candidates train for how many steps, by successive halving (Jamieson and Talwalkar 2016).

A pure function of the measured costs, the minutes and the number of candidates, so that the same costs give the same
weights. The clock only ever cuts a run short.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from statistics import median

from anyformer.fit.costs import Costs

FINALISTS = 2  # train to the end: what is ahead early on is often not what is best in the end
LAST_SHARE = 0.65  # of the training time goes to them
SURVIVORS = 3  # one in this many goes on to the next rung
REPORT_SECONDS = 12.0  # for the baseline, the pictures and the page
MARGIN = 0.92  # training steps on a busy machine take longer than those that were timed
LEAST_SHARE = 0.3  # of the minutes goes to training, whatever measuring took
FEW_EPOCHS = 20  # for a finalist; below, one is better trained alone than two by halves
FEW_STEPS = 800  # likewise, of few pictures, which are soon seen twenty times and not yet learnt
SEMIFINAL_SHARE = 0.15  # of the training time, where one is left alone in the end
LEAST_STEPS = 20
TEACHER_SHARE = 0.25  # of the training time goes to a teacher, where one is wanted
LEAST_LESSONS = 200  # steps, without which a teacher knows too little
FORWARD = 1 / 3  # of a training step is the pass that a teacher makes in the steps of its students


@dataclass(frozen=True)
class Rung:
    """How many candidates train in it, and for how long together."""

    candidates: int
    seconds: float


def reserve(costs: Mapping[str, Costs]) -> float:
    """The seconds to keep for what follows training: the export, its check, and the report."""
    return 2 * max(cost.export_seconds for cost in costs.values()) + REPORT_SECONDS


def training_seconds(minutes: float, costs: Mapping[str, Costs]) -> float:
    """The seconds for training: what measuring has left, less what comes after."""
    total = 60.0 * minutes
    spent = sum(cost.measure_seconds for cost in costs.values()) + reserve(costs)
    return max(MARGIN * (total - spent), LEAST_SHARE * total)


def rungs(
    count: int, minutes: float, costs: Mapping[str, Costs], *, epoch: int = 0, taught: bool = False
) -> tuple[Rung, ...]:
    """The rungs for ``count`` candidates: time shared by fewer from rung to rung, most of it by the finalists.

    Where the finalists would see the pictures only a few times, or take few steps, one of them is left alone in the end.

    Args:
        count: candidates within the budget.
        minutes: of the whole run.
        costs: of all that were measured.
        epoch: steps in which every picture is seen once.
        taught: whether a teacher takes its share first.
    """
    training = training_seconds(minutes, costs) * (1 - TEACHER_SHARE * taught)
    sizes = [count]
    while sizes[-1] > FINALISTS:
        sizes.append(max(FINALISTS, ceil(sizes[-1] / SURVIVORS)))
    if len(sizes) == 1:
        return (Rung(count, training),)
    early = (1 - LAST_SHARE) * training / (len(sizes) - 1)
    plan = (*(Rung(size, early) for size in sizes[:-1]), Rung(sizes[-1], LAST_SHARE * training))
    typical = median(cost.step_seconds for cost in costs.values())
    if plan[-1].seconds / plan[-1].candidates >= max(FEW_EPOCHS * epoch, FEW_STEPS * (epoch > 0)) * typical:
        return plan
    semifinal = SEMIFINAL_SHARE * training
    return (*plan[:-1], Rung(sizes[-1], semifinal), Rung(1, LAST_SHARE * training - semifinal))


def steps(rung: Rung, costs: Costs, teacher: Costs | None = None) -> int:
    """The steps of one candidate in a rung, beside a teacher's share of each where there is one."""
    seconds = costs.step_seconds + (FORWARD * teacher.step_seconds if teacher else 0.0)
    return max(LEAST_STEPS, int(rung.seconds / rung.candidates / seconds))


def lessons(minutes: float, costs: Mapping[str, Costs], teacher: str) -> int:
    """The steps that a teacher is trained for."""
    return max(LEAST_STEPS, int(TEACHER_SHARE * training_seconds(minutes, costs) / costs[teacher].step_seconds))
