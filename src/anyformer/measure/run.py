"""From names and settings to a table: every model counted, timed in turns with its rivals, and weighed in a process apart."""

from __future__ import annotations

import math
import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.core.machine import processor
from anyformer.measure.cost import cost
from anyformer.measure.energy import Meter
from anyformer.measure.exported import Exported, is_export
from anyformer.measure.forms import RANDOM_SCALES, check, form
from anyformer.measure.latency import Call, Clock, interleaved, matrix_rate
from anyformer.measure.memory import peak, sentence
from anyformer.measure.subject import AtHand, Subject, images, size_of
from anyformer.measure.table import Row, Table

Source = nn.Module | str | Path
Size = tuple[int, int]
EQUAL = 1e-3  # of the largest score: a float32 form that is further off computes something else, and is not timed


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is varied, and how long a group of rivals is timed.

    Attributes:
        runtimes: Of ``anyformer.deploy.runtime.RUNTIMES``.
        precisions: Of ``anyformer.deploy.forms.PRECISIONS``.
        batches: Images a call.
        sizes: Height and width of the images; None for what each model is made for.
        threads: Threads that a call may use; as many as torch uses when None.
        memory: Whether peak memory is measured, which takes some seconds a row.
        width: How narrow a ratio's interval has to become, as a share.
        seconds: After which a group whose ratios are not that narrow is given up.
    """

    runtimes: Sequence[str] = ("eager",)
    precisions: Sequence[str] = ("float32",)
    batches: Sequence[int] = (1,)
    sizes: Sequence[Size | None] = (None,)
    threads: int | None = None
    memory: bool = True
    width: float = 0.04
    seconds: float = 20.0

    def check(self) -> None:
        """Raise UsageError for what cannot be."""
        for runtime, precision in product(self.runtimes, self.precisions):
            check(runtime, precision)
        edges = [edge for size in self.sizes if size is not None for edge in size]
        for what, numbers in (("batch", self.batches), ("size", edges), ("number of threads", [self.threads or 1])):
            if any(number < 1 for number in numbers):
                raise UsageError(f"a {what} must be at least 1, not {min(numbers)}")
        if not (self.runtimes and self.precisions and self.batches and self.sizes):
            raise UsageError("nothing to measure: give at least one runtime, precision, batch and size")
        for what, number in (("width of the interval", self.width), ("number of seconds", self.seconds)):
            if not 0 < number < math.inf:
                raise UsageError(f"the {what} must be positive, not {number}")


@dataclass(frozen=True)
class Rival:
    """One cell of the plan: a row to be."""

    subject: Subject | Exported
    runtime: str
    precision: str
    batch: int
    size: Size | None


def measure(models: Source | Sequence[Source], example: Tensor | None = None, **options: Any) -> Table:
    """Measure models, each by itself: its runtimes and precisions take turns, and are compared with the first of them.

    Args:
        models: One or more of: a name of the catalogue, a folder that was saved, fitted or exported, a model. What was
            exported has a runtime, a precision and a size of its own, whatever the plan says of the first two.
        example: Images whose batch and size stand for those of the plan.
        options: What ``run`` and ``Plan`` take.

    Raises:
        UsageError: A name is unknown, or the plan is not possible.
        AnyformerError: Nothing at all could be measured.
    """
    if example is not None:
        if example.ndim != 4:
            raise UsageError(f"the example must be images (batch, channels, height, width), not {tuple(example.shape)}")
        options = {"batches": [len(example)], "sizes": [tuple(example.shape[2:])], **options}
    return run(models, together=False, **options)


def compare(models: Sequence[Source], **options: Any) -> Table:
    """Compare models: at equal runtime, precision, batch and size they take turns, and are compared with the first.

    Args:
        models: Two or more of what ``measure`` takes.
        options: What ``run`` and ``Plan`` take.

    Raises:
        UsageError: There are fewer than two, a name is unknown, or the plan is not possible.
        AnyformerError: Nothing at all could be measured.
    """
    if isinstance(models, str | Path | nn.Module) or len(models) < 2:
        raise UsageError("compare takes at least two models; `measure` takes one")
    return run(models, together=True, **options)


def run(
    models: Source | Sequence[Source],
    *,
    together: bool,
    after: Callable[[Table], None] = lambda table: None,
    notify: Callable[[str, float], None] = lambda what, share: None,
    clock: Clock = time.perf_counter,
    **plan: Any,
) -> Table:
    """What ``measure`` and ``compare`` share.

    Args:
        models: As there.
        together: Whether the models of a setting take turns, or the settings of a model.
        after: Called with the table whenever it has grown, to keep it.
        notify: Told what is being done, and which share of all is done.
        clock: Tells the time in seconds.
        plan: What ``Plan`` takes.
    """
    settings = Plan(**plan)
    settings.check()
    sources = [models] if isinstance(models, str | Path | nn.Module) else list(models)
    if not sources:
        raise UsageError("nothing to measure: name at least one model")
    with ExitStack() as stack, _threads(settings.threads) as threads:
        subjects = _named([stack.enter_context(AtHand(s)) if isinstance(s, nn.Module) else _found(s) for s in sources])
        meter = Meter()
        notify("how fast this machine multiplies", 0.0)
        table = Table(about=_about(settings, threads, meter))
        groups = list(_groups(subjects, settings, together))
        for index, rivals in enumerate(groups):

            def tell(what: str, index: int = index) -> None:
                notify(what, index / len(groups))

            table.rows += _measured(rivals, settings, threads, meter, clock, tell)
            after(table)
    if all(row.median_ms is None for row in table.rows):
        raise AnyformerError(f"nothing was measured: {table.rows[0].name}: {table.rows[0].note}")
    return table


def _found(source: str | Path) -> Subject | Exported:
    """The subject of a name or a folder; a file stands for the folder that it was exported into."""
    folder = Path(source).parent if Path(source).is_file() else source
    return Exported.of(folder) if is_export(folder) else Subject.of(source)


def _named(subjects: list[Subject | Exported]) -> list[Subject | Exported]:
    """With a number behind a name that came before, so that rows can be told apart."""
    seen: Counter[str] = Counter()
    named: list[Subject | Exported] = []
    for subject in subjects:
        seen[subject.name] += 1
        count = seen[subject.name]
        named.append(subject if count == 1 else replace(subject, name=f"{subject.name} ({count})"))
    return named


def _groups(subjects: list[Subject | Exported], plan: Plan, together: bool) -> Iterator[list[Rival]]:
    """Those who take turns; what was exported takes one turn in its own form."""
    forms = list(product(plan.runtimes, plan.precisions))
    for size, batch in product(plan.sizes, plan.batches):
        if together:
            yield from ([Rival(each, *_own(each, [form])[0], batch, size) for each in subjects] for form in forms)
        else:
            yield from ([Rival(each, *form, batch, size) for form in _own(each, forms)] for each in subjects)


def _own(subject: Subject | Exported, forms: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The forms, as (runtime, precision), that a subject is measured in where these are asked for."""
    return [(subject.runtime, subject.precision)] if isinstance(subject, Exported) else forms


def _measured(
    rivals: list[Rival], plan: Plan, threads: int, meter: Meter, clock: Clock, tell: Callable[[str], None]
) -> list[Row]:
    """The rows of a group, and its A/A row at the end."""
    rows: list[Row] = []
    calls: list[tuple[int, Call]] = []
    for rival in rivals:
        tell(f"{rival.subject.name} in {rival.runtime}, {rival.precision}")
        row, call = _prepared(rival, threads)
        if call is not None:
            calls.append((len(rows), call))
        rows.append(row)
    if calls:
        tell(f"{len(calls)} taking turns" if len(calls) > 1 else "taking turns with itself")
        rows = _timed(rows, calls, plan, meter, clock)
    calls.clear()  # frees the models before others are made in processes apart
    if plan.memory:
        for index, (rival, row) in enumerate(zip(rivals, rows, strict=False)):
            if row.median_ms is not None:
                tell(f"{row.name} in {row.runtime}, {row.precision}: peak memory")
                rows[index] = _weighed(rival, row, threads)
    return rows


def _timed(rows: list[Row], calls: list[tuple[int, Call]], plan: Plan, meter: Meter, clock: Clock) -> list[Row]:
    """The rows with their times, and the A/A row; ``calls`` says which row each belongs to."""
    turns = [*calls, calls[0]]
    timings = interleaved([call for _, call in turns], width=plan.width, max_seconds=plan.seconds, clock=clock)
    first = rows[calls[0][0]]
    timed = list(rows)
    for turn, ((index, call), timing) in enumerate(zip(turns, timings, strict=True)):
        again, ratio = turn == len(calls), timing.ratio
        low, high = (None, None) if math.isinf(ratio.high) else (ratio.low, ratio.high)
        if turn == 0:  # by definition, however few the blocks
            ratio, low, high = replace(ratio, measured=True), 1.0, 1.0
        row = replace(
            rows[index],
            **vars(timing.latency),
            against=f"{first.name} {first.runtime} {first.precision}",
            ratio=ratio.value,
            ratio_low=low,
            ratio_high=high,
            blocks=ratio.blocks,
            measured=ratio.measured,
            again=again,
            energy_mj=None if again else meter.millijoules(call, clock=clock),
        )
        if again:
            timed.append(row)
        else:
            timed[index] = row
    return timed


def _prepared(rival: Rival, threads: int) -> tuple[Row, Call | None]:
    """The row with all that is counted, and the call to time, unless the note says why there is none."""
    height, width = rival.size or (0, 0)
    row = Row(
        name=rival.subject.name,
        runtime=rival.runtime,
        precision=rival.precision,
        batch=rival.batch,
        height=height,
        width=width,
    )
    try:
        if isinstance(rival.subject, Exported):
            return _opened(rival.subject, row, rival.size, threads)
        model = rival.subject.model(rival.size)
        height, width = rival.size or size_of(model)
        example = images(model, rival.batch, (height, width))
        counted = cost(model, (1, *example.shape[1:]))
        row = replace(row, height=height, width=width, **vars(counted))
        with torch.no_grad():
            expected = model(example)
        call = form(model, rival.runtime, example, rival.precision, threads)
        error = _difference(call(example), expected)
    except Exception as error:  # whatever one model or runtime raises, the others are measured
        return replace(row, note=sentence(error)), None
    row = replace(row, error=error, note=RANDOM_SCALES if rival.precision == "int8" else "")
    if rival.precision == "float32" and not error <= EQUAL:
        return replace(row, note=f"its scores differ from the model's by {error:.1e} of the largest; not timed"), None
    return row, lambda: call(example)


def _opened(subject: Exported, row: Row, size: Size | None, threads: int) -> tuple[Row, Call]:
    """As ``_prepared``, where there is a file and no model: nothing is counted, and its error stands in its record."""
    example, call = subject.images(row.batch, size), subject.form(threads)
    call(example)
    return replace(row, height=example.shape[2], width=example.shape[3]), lambda: call(example)


def _difference(actual: Tensor, expected: Tensor) -> float:
    """The largest error over the largest score."""
    scale = expected.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return ((actual - expected).abs().max() / scale).item()


def _weighed(rival: Rival, row: Row, threads: int) -> Row:
    asked = {
        "source": rival.subject.source,
        "runtime": rival.runtime,
        "precision": rival.precision,
        "batch": rival.batch,
        "size": rival.size,
        "threads": threads,
        "training": (rival.runtime, rival.precision) == ("eager", "float32"),
    }
    found = peak(asked)
    note = "; ".join(filter(None, (row.note, found.note)))
    return replace(row, forward_mb=found.forward_mb, training_mb=found.training_mb, note=note)


@contextmanager
def _threads(count: int | None) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield torch.get_num_threads()
    finally:
        torch.set_num_threads(before)


def _about(plan: Plan, threads: int, meter: Meter) -> dict[str, Any]:
    """What the figures hold for."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gb": round(memory / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{name: _version(name) for name in ("anyformer", "torch", "onnxruntime", "openvino")},
        "limit_gflops": round(matrix_rate(), 1),
        "protocol": f"paired interleaved blocks until every ratio's 95 % interval is narrower than {plan.width:.3g}, "
        f"or {plan.seconds:g} s; the A/A row is the first once more; from tensor to scores",
        "energy": meter.reason or "all processor packages, whatever else ran included",
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
