"""How long a call takes here, how two calls compare, and how fast this machine multiplies.

Absolute times move by a third with what else the machine does; the ratio of two calls that take turns in one process does
not. Hence ``ratio`` for every comparison, and ``latency`` for what a user is told and a budget is held against.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from anyformer.core.errors import UsageError
from anyformer.ops import kernels
from anyformer.ops.linear import linear

Clock = Callable[[], float]
Call = Callable[[], object]

BLOCKS = 10  # pairs at least: fewer intervals are narrow by luck
BLOCK_SECONDS = 0.02  # long against the clock's resolution and a stray interrupt, short against the machine's moods


@dataclass(frozen=True, kw_only=True)
class Latency:
    """The distribution of single calls, in milliseconds."""

    median_ms: float
    p10_ms: float
    p90_ms: float
    runs: int


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """Time of theirs over time of ours: above 1, ours is faster.

    Attributes:
        value: The median over pairs of blocks.
        low: Lower end of its 95 % interval.
        high: Upper end.
        blocks: How many pairs were measured.
        measured: Whether the interval became as narrow as was asked; otherwise the value is not to be quoted.
    """

    value: float
    low: float
    high: float
    blocks: int
    measured: bool


@dataclass(frozen=True, kw_only=True)
class Timing:
    """One of several calls that took turns: its own times, and their ratio to those of the first."""

    latency: Latency
    ratio: Ratio


def latency(call: Call, *, seconds: float = 1.0, warmup: float = 0.2, clock: Clock = time.perf_counter) -> Latency:
    """Time single calls, one after another.

    Args:
        call: What is timed, such as ``lambda: model(images)``; in whatever gradient mode and thread count it is called.
        seconds: How long to measure; three runs at least.
        warmup: How long to run untimed before; once at least.
        clock: Tells the time in seconds.
    """
    with _undisturbed():
        start = clock()
        call()
        while clock() - start < warmup:
            call()
        times: list[float] = []
        start = clock()
        while len(times) < 3 or clock() - start < seconds:
            times.append(_time(call, 1, clock))
    return _latency(times)


def ratio(
    ours: Call, theirs: Call, *, width: float = 0.04, max_seconds: float = 60.0, clock: Clock = time.perf_counter
) -> Ratio:
    """Compare two calls in blocks that take turns, until the ratio is known.

    The interval is that of the sign test on the median, which supposes nothing about the noise: other work on the machine
    lengthens some blocks tenfold.

    Args:
        ours: One call.
        theirs: The other; the same as ``ours`` for the A/A row that shows what the method resolves.
        width: Stop when the interval's upper end is less than this share above its lower end.
        max_seconds: Give up after this time; the result then says that it is not measured.
        clock: Tells the time in seconds.

    Raises:
        UsageError: The width is not positive.
    """
    return interleaved((ours, theirs), width=width, max_seconds=max_seconds, clock=clock)[1].ratio


def interleaved(
    calls: Sequence[Call], *, width: float = 0.04, max_seconds: float = 60.0, clock: Clock = time.perf_counter
) -> list[Timing]:
    """Time several calls in blocks that take turns, until the ratio of each to the first is known.

    Give the first call once more at the end for the A/A row, whose interval should hold 1.

    Args:
        calls: One or more.
        width: Stop when every ratio's interval has its upper end less than this share above its lower end.
        max_seconds: Give up after this time; ratios that are not known by then say so.
        clock: Tells the time in seconds.

    Raises:
        UsageError: The width is not positive.
    """
    if width <= 0:
        raise UsageError(f"the width of a ratio's interval must be positive, not {width}")
    times: list[list[float]] = [[] for _ in calls]
    logs: list[list[float]] = [[] for _ in calls]
    with _undisturbed():
        begun = clock()
        counts = [_calls_per_block(call, clock) for call in calls]
        while True:
            order = range(len(calls))
            # Whoever goes second finds the caches warmer: take turns in that, too.
            for index in reversed(order) if len(logs[0]) % 2 else order:
                times[index] += [_time(calls[index], 1, clock) for _ in range(counts[index])]
            means = [statistics.fmean(some[-count:]) for some, count in zip(times, counts, strict=True)]
            for log, mean in zip(logs, means, strict=True):
                log.append(math.log(mean / means[0]))
            ratios = [_ratio(log, width) for log in logs]
            if all(ratio.measured for ratio in ratios) or clock() - begun >= max_seconds:
                break
    return [Timing(latency=_latency(some), ratio=ratio) for some, ratio in zip(times, ratios, strict=True)]


def _ratio(logs: Sequence[float], width: float) -> Ratio:
    low, high = _median_interval(logs)
    return Ratio(
        value=math.exp(statistics.median(logs)),
        low=math.exp(low),
        high=math.exp(high),
        blocks=len(logs),
        measured=len(logs) >= BLOCKS and math.expm1(high - low) < width,
    )


def _latency(times: Sequence[float]) -> Latency:
    p10, median, p90 = (1000 * _quantile(times, share) for share in (0.1, 0.5, 0.9))
    return Latency(median_ms=median, p10_ms=p10, p90_ms=p90, runs=len(times))


def matrix_rate(dtype: torch.dtype = torch.float32, *, size: int = 1024, clock: Clock = time.perf_counter) -> float:
    """The highest rate of matrix products this machine reaches through torch, in GFLOP/s: the limit beside every figure.

    Args:
        dtype: Of the matrices.
        size: Their rows and columns.
        clock: Tells the time in seconds.
    """
    x, weight = torch.full((size, size), 0.5, dtype=dtype), torch.full((size, size), 0.01, dtype=dtype)
    shortest = math.inf
    with torch.no_grad(), _undisturbed():
        for kernel in kernels.KERNELS:
            with kernels.force(kernel):
                linear(x, weight)
                shortest = min(shortest, *(_time(lambda: linear(x, weight), 1, clock) for _ in range(10)))
    return 2 * size**3 / shortest / 1e9


def _time(call: Call, count: int, clock: Clock) -> float:
    start = clock()
    for _ in range(count):
        call()
    return clock() - start


def _calls_per_block(call: Call, clock: Clock) -> int:
    """So many calls that a block takes ``BLOCK_SECONDS``; the first, which warms up, does not count."""
    call()
    return max(1, round(BLOCK_SECONDS / max(min(_time(call, 1, clock) for _ in range(3)), 1e-9)))


def _median_interval(values: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the median by order statistics: (-inf, inf) below six values, which cannot tell."""
    n, below, rank = len(values), 0.0, 0
    while below + math.comb(n, rank) / 2**n <= 0.025:
        below += math.comb(n, rank) / 2**n
        rank += 1
    if rank == 0:
        return -math.inf, math.inf
    ordered = sorted(values)
    return ordered[rank - 1], ordered[n - rank]


def _quantile(values: Sequence[float], share: float) -> float:
    """Linear between the two nearest order statistics."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    lower = int(place)
    upper = min(lower + 1, len(ordered) - 1)
    return ordered[lower] + (place - lower) * (ordered[upper] - ordered[lower])


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Without the garbage collector, whose pauses would fall on some call or other."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
