"""Names beside points: each goes where it hides least of what is already there."""

from collections.abc import Sequence

import numpy as np

Box = tuple[float, float, float, float]  # left, bottom, right, top

DIRECTIONS = ((0, 1), (0, -1), (-0.7, 0.7), (0.7, -0.7), (0.7, 0.7), (-0.7, -0.7), (1, 0), (-1, 0))
RINGS = (1.0, 2.0, 3.2, 4.6, 6.2, 8.0)
ROUNDS = 3
HIDDEN = 12.0  # line heights that a name goes further away to uncover a square of one line height


def place(
    points: Sequence[tuple[float, float]],
    sizes: Sequence[tuple[float, float]],
    taken: Sequence[Box],
    frame: Box,
    *,
    gap: float,
) -> list[Box]:
    """A box for each name: near its point, inside the frame, over as little of the others and of ``taken`` as can be had.

    Greedy, then twice more with all others in place: good, not best. Takes O(n (n + m)) for m boxes taken.

    Args:
        points: Where the points lie.
        sizes: Width and height of each name.
        taken: What should stay visible.
        frame: What no name may leave, where it fits.
        gap: Least distance of a name from its point.
    """
    choices = [_choices(point, size, frame, gap) for point, size in zip(points, sizes, strict=True)]
    far = [_distance(boxes, np.array(point)) for boxes, point in zip(choices, points, strict=True)]
    boxes: dict[int, np.ndarray] = {}
    fixed = np.array(taken, float).reshape(-1, 4)
    for _ in range(ROUNDS):
        for index, (possible, distance) in enumerate(zip(choices, far, strict=True)):
            others = np.array([box for other, box in boxes.items() if other != index]).reshape(-1, 4)
            height = sizes[index][1]
            hidden = (4 * _overlap(possible, others) + _overlap(possible, fixed)) / height**2
            boxes[index] = possible[np.argmin(HIDDEN * hidden + distance / height)]
    return [tuple(map(float, boxes[index])) for index in range(len(points))]  # type: ignore[misc]


def _choices(point: tuple[float, float], size: tuple[float, float], frame: Box, gap: float) -> np.ndarray:
    """Boxes ``(k, 4)`` around a point, pushed into the frame."""
    width, height = size
    corners = [
        (
            point[0] + x * gap * ring + (np.sign(x) - 1) * width / 2,
            point[1] + y * gap * ring + (np.sign(y) - 1) * height / 2,
        )
        for ring in RINGS
        for x, y in DIRECTIONS
    ]
    left, bottom = np.array(corners).T
    left = np.maximum(np.minimum(left, frame[2] - width), frame[0])
    bottom = np.maximum(np.minimum(bottom, frame[3] - height), frame[1])
    return np.stack([left, bottom, left + width, bottom + height], axis=1)


def _distance(boxes: np.ndarray, point: np.ndarray) -> np.ndarray:
    """From a point to the nearest edge of each box ``(k, 4)``."""
    return np.linalg.norm(np.maximum(np.maximum(boxes[:, :2] - point, point - boxes[:, 2:]), 0), axis=1)


def _overlap(boxes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The area of each box ``(k, 4)`` that lies under the others ``(m, 4)``, counted once for each."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.clip(high - low, 0, None).prod(-1).sum(-1)
