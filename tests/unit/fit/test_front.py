"""The front is the set of undominated candidates, and its picture shows them all."""

import io
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.fit.front import DARK, DPI, INCHES, LIGHT, draw_front, front_png, on_front

from .example_report import example

few = st.sampled_from([-0.0, 0.0, 0.5, 1.0, 2.0])  # so that ties are common
numbers = st.floats(allow_nan=False)


@given(st.lists(st.tuples(few, few) | st.tuples(numbers, numbers), max_size=12))
@settings(deadline=None, derandomize=True, max_examples=200)
def test_front_is_what_no_other_point_dominates(points):
    def dominates(one, other):
        return one[0] <= other[0] and one[1] >= other[1] and one != other

    assert on_front(points) == [not any(dominates(other, point) for other in points) for point in points]


def test_equal_points_share_their_lot_and_ties_in_one_number_are_lost():
    assert on_front([(1, 0.9), (1, 0.9), (2, 0.9), (1, 0.8), (3, 0.95), (3, 0.95)]) == [
        True,
        True,
        *[False] * 2,
        True,
        True,
    ]
    assert on_front([]) == []


def pixels(report, theme=LIGHT) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(front_png(report, theme))).convert("RGB")).astype(int)


def amount(picture: np.ndarray, color: str) -> int:
    """How many pixels have a colour, given a little for smooth edges."""
    wanted = [int(color[place : place + 2], 16) for place in (1, 3, 5)]
    return int((abs(picture - wanted).max(-1) <= 12).sum())


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_picture_shows_paper_front_names_and_budget(theme):
    picture = pixels(example(), theme)
    assert picture.shape == (round(INCHES[1] * DPI), round(INCHES[0] * DPI), 3)
    assert amount(picture, theme.paper) > 0.7 * picture[..., 0].size
    for color in (theme.front, theme.quiet, theme.ink, theme.budget):
        assert amount(picture, color) > 100


def test_budget_is_a_line_where_it_is_a_latency_in_sight():
    line = amount(pixels(example(limit=2.0)), LIGHT.budget)
    assert line > 4 * amount(pixels(example(limit=2000.0)), LIGHT.budget) > 0  # only the legend's sample of it
    assert amount(pixels(example(limit=None)), LIGHT.budget) == 0
    size = example(limit=None)
    size["budget"]["limits"] = [{"quantity": "size", "most": 4e6, "unit": "B"}]
    assert amount(pixels(size), LIGHT.budget) == 0


def test_untrained_candidates_stand_in_a_band_of_their_own():
    trained = pixels(example(("vit_micro", 0.9, 0.2, "winner"), ("swin_micro", 0.95, 0.4)))
    untrained = pixels(example(("vit_micro", 0.9, 0.2, "winner"), ("swin_micro", None, 0.4, "over budget: params 1M")))
    band = untrained[600:720, 300:1200].reshape(-1, 3)  # above the latencies, right of the accuracies
    assert np.unique(band, axis=0).shape[0] > 5
    assert (trained != untrained).any()
    assert amount(untrained, LIGHT.paper) < amount(trained, LIGHT.paper) - 50_000


LONG = "swin_large_patch4_window12_384.with_a_name_that_goes_on_and_on"


@pytest.mark.parametrize(
    "rows",
    [
        [("vit_micro", 0.953, 0.16, "winner")],
        [("vit_micro", 1.0, 0.16, "winner"), ("swin_micro", 0.0, 0.16)],
        [("vit_micro", 0.5, 0.16, "winner")] * 3,
        [("vit_micro", 1.0, 0.16, "winner"), ("swin_micro", 1.0, 0.2)],
        [(f"vit_{index}", 0.97 + 0.001 * index, 0.4 + 0.001 * index, "winner") for index in range(12)],
        [(f"{LONG}_{index}", 0.1 + 0.08 * index, 0.1 * 3**index, "winner") for index in range(12)],
        [("$x_1$ \\frac{1}", 0.9, 0.16, "winner"), ("swin_micro", None, 1e4, "over budget: latency 10 s")],
    ],
    ids=["one", "extremes", "equal", "all right", "crowded", "long names", "odd names"],
)
def test_any_number_and_spread_of_candidates_can_be_drawn(rows):
    assert amount(pixels(example(*rows)), LIGHT.front) > 50


def test_the_same_report_gives_the_same_file(tmp_path):
    draw_front(example(), tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes() == front_png(example(), LIGHT)
    assert [path.name for path in tmp_path.iterdir()] == ["front.png"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(AnyformerError, match=r"could not write .*lost/front\.png"):
        draw_front(example(), tmp_path / "lost" / "front.png")


def test_missing_matplotlib_tells_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UsageError, match=r"anyformer\[fit\]"):
        front_png(example(), LIGHT)
