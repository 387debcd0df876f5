"""``fit``: from a user's pictures and a budget to a trained, exported, checked model in one folder."""

import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyformer.core.errors import UsageError
from anyformer.core.model import Model
from anyformer.core.store import from_pretrained
from anyformer.data import images as image_data
from anyformer.data.batches import data_config
from anyformer.data.split import split
from anyformer.fit.budget import Budget, parse_budget, readable
from anyformer.fit.candidates import candidates
from anyformer.fit.costs import Costs, CostTable, measure_candidate, setting_of
from anyformer.fit.memory import RunMemory
from anyformer.fit.outcome import Finisher
from anyformer.fit.plan import reserve, rungs
from anyformer.fit.study import Data, Study
from anyformer.ops import kernels
from anyformer.train.files import locked

Notify = Callable[[str, float], None]
ROOM = 1.1  # a budget that is proposed leaves a tenth above what was measured
MEASURE_SHARE = 0.4  # of the minutes may go to measuring; candidates beyond that are left out


@dataclass(frozen=True)
class Fitted:
    """The outcome of :func:`fit`: its folder and what ``report.json`` says."""

    folder: Path
    report: dict[str, Any]

    @property
    def model(self) -> Model:
        """The trained model, read from the folder."""
        return from_pretrained(self.folder)


def fit(
    data: str | Path,
    *,
    budget: str = "",
    minutes: float = 10.0,
    out: str | Path | None = None,
    seed: int = 0,
    trials: int = 6,
    size: int | None = None,
    bf16: bool = False,
    notify: Notify = lambda what, share: None,
) -> Fitted:
    """Train, choose, export and check an image classifier.

    The data are split once into training, validation and test parts. Candidates of several systems are measured here
    against the budget; those within it are trained by successive halving, compared on the validation part; the winner
    is exported, compared with the export, and alone reads the test part. A second call with the same arguments goes on
    where the first one stopped.

    Args:
        data: a folder with one sub-folder a class, or "digits".
        budget: limits such as ``"latency<=2ms, params<=1M"``; none when empty.
        minutes: wall clock for everything.
        out: the folder to write, ``anyformer-<data>`` when absent.
        seed: of the split, the weights, the order of the pictures and their augmentation.
        trials: how many candidates are measured.
        size: side that pictures are brought to; chosen from the data when absent.
        bf16: train under bfloat16 autocast.
        notify: told what is being done and which share of the time is used.

    Raises:
        UsageError: the data, the budget or another argument cannot be used, with what to do.
        AnyformerError: something failed on the way; the folder holds what was done.
        KeyboardInterrupt: after Ctrl-C; the best model so far is in the folder.
    """
    limits = parse_budget(budget)
    if minutes <= 0 or trials < 1:
        raise UsageError(f"minutes and trials must be positive, got minutes={minutes:g} and trials={trials}")
    folder = Path(out) if out is not None else Path(f"anyformer-{Path(data).name}")
    notify("Reading the data", 0.0)
    pictures = image_data.load(data, size)
    parts = split(pictures.labels, seed)
    train = pictures.images[parts.train]
    material = Data(pictures, parts, {**data_config(train), "classes": list(pictures.classes)})
    asked = {
        "data": pictures.digest(),
        "budget": [str(limit) for limit in limits.limits],
        "minutes": minutes,
        "seed": seed,
        "trials": trials,
        "bf16": bf16,
    }
    with ExitStack() as held:
        held.enter_context(locked(folder))
        held.enter_context(kernels.force("mkl"))  # a kernel chosen by the clock would move scores in the last digit
        memory = RunMemory(folder, asked)
        finished = memory.finished()
        if finished is not None:
            return Fitted(folder, finished)
        clock = _Clock(memory, minutes, notify)
        costs = _measure(folder, material, trials, clock)
        within = _within(costs, limits)
        study = Study(folder, material, {name: costs[name] for name in within}, memory, seed, bf16, clock)
        ladder = rungs(len(within), minutes, costs)
        held.callback(study.close)
        finisher = Finisher(folder, material, limits, costs, study, memory, str(data), clock)
        try:
            study.run(ladder, reserve=reserve(costs))
        except KeyboardInterrupt:
            if study.standing():
                finisher.write(interrupted=True)
            raise
        report = finisher.write(interrupted=False)
        study.close()
        shutil.rmtree(folder / "work", ignore_errors=True)
    return Fitted(folder, report)


class _Clock:
    """The minutes of a run, those before an interruption included."""

    def __init__(self, memory: RunMemory, minutes: float, notify: Notify) -> None:
        self.memory, self.total, self.notify = memory, 60.0 * minutes, notify
        self.started = time.monotonic() - memory.seconds

    @property
    def seconds(self) -> float:
        """Seconds used so far."""
        return time.monotonic() - self.started

    def say(self, what: str) -> None:
        """Tell the caller what is going on."""
        self.notify(what, min(1.0, self.seconds / self.total))


def _measure(folder: Path, data: Data, trials: int, clock: _Clock) -> dict[str, Costs]:
    """The costs of all candidates, from ``costs.json`` as far as it has them."""
    example, step = data.example(), data.train_step
    wanted = candidates(
        size=data.pictures.size, channels=data.pictures.channels, classes=len(data.pictures.classes), trials=trials
    )
    data.candidates = {candidate.name: candidate for candidate in wanted}
    table = CostTable(folder / "costs.json", setting_of(example, len(data.pictures.classes), data.batch))
    (folder / "work").mkdir(exist_ok=True)
    for candidate in wanted:
        if candidate.name in table.costs:
            continue
        if table.costs and clock.seconds > MEASURE_SHARE * clock.total:
            break
        clock.say(f"Measuring {candidate.name}")
        model = data.create(candidate.name, seed=0)
        exported = folder / "work" / f"{candidate.name}.onnx"
        table.add(candidate.name, measure_candidate(model, example, step(model), exported))
    return {c.name: table.costs[c.name] for c in wanted if c.name in table.costs}


def _within(costs: dict[str, Costs], budget: Budget) -> list[str]:
    """The candidates within the budget. Raises UsageError naming the nearest when there is none."""
    within = [name for name, cost in costs.items() if not budget.exceeded(cost)]
    if within:
        return within

    def excess(name: str) -> float:
        return max(costs[name].of(limit.quantity) / limit.most for limit in budget.limits)

    nearest = min(costs, key=excess)
    need = ", ".join(
        f"{limit.quantity}<={readable(limit.quantity, ROOM * costs[nearest].of(limit.quantity))}"
        for limit in budget.limits
        if costs[nearest].of(limit.quantity) > limit.most
    )
    raise UsageError(f"no candidate is within the budget {budget.text!r}; the nearest, {nearest}, would be with {need}")
