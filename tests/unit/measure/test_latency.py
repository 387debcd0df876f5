"""The timing protocol, by a clock that the test moves: no assertion waits for real time."""

import gc
import itertools
import math
import random

import pytest
import torch

from anyformer.core.errors import UsageError
from anyformer.measure import latency as module
from anyformer.measure.latency import Ratio, interleaved, latency, matrix_rate, ratio


class Clock:
    """Time that passes only while a call works."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def call(self, *seconds):
        """A call that takes these times, over and over."""
        times = itertools.cycle(seconds)

        def work():
            self.now += next(times)

        return work


def test_latency_gives_the_quantiles_of_single_calls():
    clock = Clock()
    times = [0.001 * n for n in range(1, 12)]
    result = latency(clock.call(*times), seconds=sum(times) * 10 - 0.0005, warmup=sum(times) - 0.0005, clock=clock)
    assert result.median_ms == pytest.approx(6)
    assert result.p10_ms == pytest.approx(2)
    assert result.p90_ms == pytest.approx(10)
    assert result.runs == 110


def test_latency_warms_up_and_runs_three_times_at_least():
    clock = Clock()
    result = latency(clock.call(100.0, 1.0, 2.0, 4.0), seconds=0.5, warmup=50.0, clock=clock)
    assert result == module.Latency(median_ms=2000, p10_ms=pytest.approx(1200), p90_ms=pytest.approx(3600), runs=3)


def test_a_steady_ratio_is_measured_exactly():
    clock = Clock()
    result = ratio(clock.call(0.002), clock.call(0.003), clock=clock)
    assert result == Ratio(
        value=pytest.approx(1.5),
        low=pytest.approx(1.5),
        high=pytest.approx(1.5),
        blocks=module.BLOCKS,
        measured=True,
    )


def test_blocks_fill_their_time_and_take_turns():
    clock, order = Clock(), []

    def side(name, seconds):
        def work():
            order.append(name)
            clock.now += seconds

        return work

    ratio(side("ours", 0.005), side("theirs", 0.5), clock=clock)
    runs = [(name, len(list(group))) for name, group in itertools.groupby(order)]
    # four calls each to warm up and to find the number of calls, then ours, theirs, theirs, ours, ...
    assert runs[:6] == [("ours", 4), ("theirs", 4), ("ours", 4), ("theirs", 2), ("ours", 8), ("theirs", 2)]


def noisy(clock, seconds, seed, stalls=0.1):
    chance = random.Random(seed)

    def work():
        clock.now += seconds * math.exp(chance.gauss(0, 0.05)) * (10 if chance.random() < stalls else 1)

    return work


def test_the_interval_holds_the_truth_through_noise_and_stalls():
    inside = 0
    for seed in range(40):
        clock = Clock()
        result = ratio(noisy(clock, 0.04, seed), noisy(clock, 0.05, seed + 1000), clock=clock, max_seconds=1000)
        assert result.measured
        assert result.high / result.low < 1.04
        assert result.low <= result.value <= result.high
        inside += result.low <= 1.25 <= result.high
    assert inside >= 36  # 95 % of 40 is 38; 35 or fewer happens once in a hundred


def test_the_same_call_twice_gives_one():
    clock = Clock()
    call = noisy(clock, 0.04, 3)
    result = ratio(call, call, clock=clock, max_seconds=1000)
    assert result.low <= 1 <= result.high


def test_what_does_not_settle_is_unmeasured():
    clock = Clock()
    result = ratio(noisy(clock, 0.04, 5, stalls=0.5), clock.call(0.05), clock=clock, max_seconds=5.0)
    assert result.blocks > module.BLOCKS
    assert result.high >= 1.04 * result.low > 0
    assert not result.measured
    hopeless = ratio(clock.call(10.0), clock.call(20.0), clock=clock, max_seconds=1.0)
    assert hopeless == Ratio(value=pytest.approx(2), low=0.0, high=math.inf, blocks=1, measured=False)


def test_several_calls_take_turns_and_are_compared_with_the_first():
    clock = Clock()
    calls = [clock.call(0.04), clock.call(0.05), clock.call(0.01, 0.03)]
    timings = interleaved([*calls, calls[0]], clock=clock)
    assert [timing.ratio.value for timing in timings] == pytest.approx([1, 1.25, 0.5, 1])
    assert all(timing.ratio.measured and timing.ratio.blocks == module.BLOCKS for timing in timings)
    assert [timing.latency.median_ms for timing in timings] == pytest.approx([40, 50, 20, 40])
    assert timings[2].latency.p90_ms == pytest.approx(30)
    assert timings[0].latency.runs == module.BLOCKS


def test_turns_are_taken_in_both_orders():
    clock, order = Clock(), []

    def side(name):
        def work():
            order.append(name)
            clock.now += 0.02

        return work

    interleaved([side(name) for name in "abc"], clock=clock)
    assert "".join(order[12:]) == "abccba" * (module.BLOCKS // 2)


def test_all_go_on_until_the_last_ratio_is_known():
    clock = Clock()
    first, steady, restless = clock.call(0.04), clock.call(0.05), noisy(clock, 0.04, 7)
    timings = interleaved([first, steady, restless], clock=clock, max_seconds=1000)
    assert timings[2].ratio.measured
    assert timings[1].ratio.blocks == timings[2].ratio.blocks > module.BLOCKS
    hopeless = interleaved([first, noisy(clock, 0.04, 8, stalls=0.5)], clock=clock, max_seconds=10)
    assert [timing.ratio.measured for timing in hopeless] == [True, False]


def test_a_width_must_be_positive():
    with pytest.raises(UsageError, match="must be positive, not 0"):
        ratio(int, int, width=0)


def test_order_statistics_of_the_median():
    assert module._median_interval(range(5)) == (-math.inf, math.inf)
    assert module._median_interval(range(6)) == (0, 5)
    assert module._median_interval(range(100)) == (39, 60)  # the 40th and the 61st, as in published tables


def test_the_garbage_collector_rests_and_wakes():
    clock, seen = Clock(), []

    def fail():
        seen.append(gc.isenabled())
        raise KeyError

    assert gc.isenabled()
    with pytest.raises(KeyError):
        latency(fail, clock=clock)
    assert seen == [False]
    assert gc.isenabled()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_matrix_rate_is_that_of_the_shortest_product(dtype):
    ticks = itertools.chain([0.0, 0.5], itertools.count(1.0, 1.0))
    assert matrix_rate(dtype, size=8, clock=lambda: next(ticks)) == pytest.approx(2 * 8**3 / 0.5 / 1e9)
