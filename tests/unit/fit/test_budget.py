from dataclasses import replace

import pytest

from anyformer.core.errors import UsageError
from anyformer.fit.budget import Limit, parse_budget, readable
from anyformer.fit.costs import Costs

COSTS = Costs(
    params=1_000_000,
    macs=50_000_000,
    size_bytes=4_000_000,
    latency_ms={"median": 2.0, "p10": 1.9, "p90": 2.5},
    step_seconds=0.01,
    export_seconds=1.0,
    measure_seconds=2.0,
)


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("", ()),
        ("latency<=2ms", (Limit("latency", 2.0),)),
        ("latency <= 500us", (Limit("latency", 0.5),)),
        ("latency<1s", (Limit("latency", 1000.0),)),
        ("params<=1M,size<=4MB", (Limit("params", 1e6), Limit("size", 4e6))),
        ("PARAMS<=2.5k and macs<=1G", (Limit("params", 2500.0), Limit("macs", 1e9))),
        ("size<=1MiB", (Limit("size", 2.0**20),)),
    ],
)
def test_reads_what_people_write(text: str, limits: tuple[Limit, ...]) -> None:
    assert parse_budget(text).limits == limits


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fast", "cannot read 'fast'"),
        ("latency<=2", "needs a unit of ms"),
        ("latncy<=2ms", "did you mean latency"),
        ("params<=1ms", "needs a unit"),
        ("latency<=0ms", "leaves nothing"),
        ("latency<=1ms, latency<=2ms", "stands twice"),
        ("latency>=1ms", "of latency less is better; write latency<=1ms"),
        ("tokens_per_second<=5k", "more is better; write tokens_per_second>=5k"),
        ("state<=2", "needs a unit of b, kb"),
        ("context=8", "cannot read"),
    ],
)
def test_says_what_it_cannot_read(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        parse_budget(text)


def test_a_limit_is_kept_up_to_its_very_value() -> None:
    assert parse_budget("latency<=2ms, params<=1M, size<=4MB, macs<=50M").exceeded(COSTS) == ()
    broken = parse_budget("latency<=1.99ms, params<=999k").exceeded(COSTS)
    assert [limit.quantity for limit in broken] == ["latency", "params"]


@pytest.mark.parametrize(
    ("quantity", "value", "text"),
    [("latency", 0.1234, "0.123ms"), ("params", 999_900, "1M"), ("size", 1536.0, "1.54kB"), ("macs", 12, "12")],
)
def test_readable_costs_read_back(quantity: str, value: float, text: str) -> None:
    assert readable(quantity, value) == text
    assert parse_budget(f"{quantity}<={text}").limits[0].bound == pytest.approx(value, rel=0.01)


def test_limits_of_text_hold_from_below_where_more_is_better() -> None:
    costs = replace(COSTS, state_bytes=2_000_000, context=1024)
    assert parse_budget("tokens_per_second>=500, state<=2MB, context>=1024, params<=1e6").exceeded(costs) == ()
    broken = parse_budget("tokens_per_second>=501, state<=1.9MB, context>=1025").exceeded(costs)
    assert [limit.quantity for limit in broken] == ["tokens_per_second", "state", "context"]
    assert [limit.excess(costs.of(limit.quantity)) > 1 for limit in broken] == [True] * 3
    assert str(broken[0]) == "tokens_per_second>=501"
    assert not parse_budget("context>=1000000").exceeded(replace(costs, context=None))


def test_a_limit_of_other_data_is_refused() -> None:
    with pytest.raises(UsageError, match="latency means nothing for language models; their limits are state, context"):
        parse_budget("latency<=1ms").check(("state", "context"), "language models")
