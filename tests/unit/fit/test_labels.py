"""Names find places that hide nothing, where there are any."""

import itertools
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.fit.labels import Box, place

FRAME = (0.0, 0.0, 1200.0, 700.0)


def overlap(one: Box, other: Box) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(width, 0.0) * max(height, 0.0)


@given(st.lists(st.tuples(st.floats(0, 1200), st.floats(0, 700)), min_size=1, max_size=12), st.floats(20, 300))
@settings(deadline=None, derandomize=True, max_examples=60)
def test_every_name_has_its_size_and_stays_inside(points, width):
    boxes = place(points, [(width, 18.0)] * len(points), [], FRAME, gap=16)
    for left, bottom, right, top in boxes:
        assert math.isclose(right - left, width)
        assert math.isclose(top - bottom, 18)
        assert min(left, bottom) >= -1e-9
        assert right <= 1200 + 1e-9
        assert top <= 700 + 1e-9


def test_twelve_crowded_names_hide_neither_each_other_nor_the_points():
    points = [(600.0 + 25 * column, 350.0 + 12 * row) for column in range(4) for row in range(3)]
    dots = [(x - 5, y - 5, x + 5, y + 5) for x, y in points]
    boxes = place(points, [(150.0, 18.0)] * 12, dots, FRAME, gap=16)
    assert sum(overlap(one, other) for one, other in itertools.combinations(boxes, 2)) == 0
    assert sum(overlap(box, dot) for box in boxes for dot in dots) == 0


def test_a_name_alone_stands_next_to_its_point_and_off_the_line():
    (box,) = place([(600.0, 350.0)], [(100.0, 18.0)], [(600.0, 349.0, 1200.0, 351.0)], FRAME, gap=16)
    assert overlap(box, (600.0, 349.0, 1200.0, 351.0)) == 0
    assert max(box[0] - 600, 600 - box[2], 0) + max(box[1] - 350, 350 - box[3], 0) <= 2 * 16


def test_a_name_wider_than_the_frame_is_still_placed():
    (box,) = place([(600.0, 350.0)], [(2000.0, 18.0)], [], FRAME, gap=16)
    assert box[0] == 0
