"""Slopes against closed forms and a textbook's interval."""

import random

import pytest

from anyformer.measure.exponents import exponents, slope
from anyformer.measure.table import Row


def row(side, **values):
    return Row(name="m", runtime="eager", precision="float32", batch=1, height=side, width=side, **values)


def test_powers_of_the_number_of_pixels_are_found():
    rows = [row(side, macs=3 * side**2, median_ms=1e-6 * side**4, forward_mb=0.5 * side) for side in (16, 32, 64, 128)]
    found = {each.quantity: each for each in exponents(rows)}
    assert set(found) == {"macs", "median_ms", "forward_mb"}
    for quantity, power in (("macs", 1), ("median_ms", 2), ("forward_mb", 0.5)):
        assert found[quantity].value == pytest.approx(power)
        assert found[quantity].low == pytest.approx(power)
        assert found[quantity].high == pytest.approx(power)
        assert found[quantity].sizes == 4


def test_two_sizes_have_a_slope_without_an_interval_and_one_has_none():
    (found,) = exponents([row(10, macs=10), row(20, macs=160)])
    assert (found.value, found.low, found.high) == (pytest.approx(2), None, None)
    assert exponents([row(10, macs=10)]) == []
    assert exponents([row(10, macs=10), row(10, macs=10)]) == []


def test_the_aa_row_and_costs_of_nothing_take_no_part():
    rows = [row(10, macs=10, forward_mb=0.0), row(20, macs=40, forward_mb=0.0), row(20, macs=99, again=True)]
    (found,) = exponents(rows)
    assert found.value == pytest.approx(1)


def test_models_and_batches_are_kept_apart():
    rows = [
        Row(name=name, runtime="eager", precision="float32", batch=batch, height=side, width=1, macs=side**power)
        for name, batch, power in (("a", 1, 1), ("a", 4, 2), ("b", 1, 3))
        for side in (2, 4, 8)
    ]
    found = {(each.name, each.batch): each.value for each in exponents(rows)}
    assert found == {("a", 1): pytest.approx(1), ("a", 4): pytest.approx(2), ("b", 1): pytest.approx(3)}


def test_the_interval_is_students():
    # y = x + (1, -1, -1, 1) / 10 over x = 0 .. 3: slope 1, squares left 0.04, 2 degrees of freedom, squares of x 5
    value, half = slope([0, 1, 2, 3], [0.1, 0.9, 1.9, 3.1])
    assert value == pytest.approx(1)
    assert half == pytest.approx(4.303 * (0.04 / 2 / 5) ** 0.5)


def test_the_interval_holds_the_truth_19_times_in_20():
    chance, inside = random.Random(0), 0
    for _ in range(400):
        x = [0.0, 1.0, 2.0, 3.0, 4.0]
        value, half = slope(x, [1.5 * each + chance.gauss(0, 0.3) for each in x])
        inside += abs(value - 1.5) <= half
    assert 365 <= inside <= 393  # 380 expected, 4 standard deviations either way at most
