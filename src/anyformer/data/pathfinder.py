"""Pathfinder: two circles in a picture of dashed paths, and the question whether one path joins them.

After Kim et al. 2020 (openreview.net, HJxrVA4FDS) in the form of Long Range Arena (arXiv:2011.04006), where a model reads the
pixels as one sequence. Every picture has two long paths and some short ones. The circles stand at both ends of one long path,
or at an end of each, as far from one another, so that neither the paths nor the circles by themselves tell the class. Drawn
here, by a generator of our own: the official pictures are files. No two paths come nearer than ``clearance``, which is more
than any gap between dashes.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from anyformer.core.errors import UsageError
from anyformer.data.labelled_sequences import LabelledSequences
from anyformer.data.seeds import derive_seed

LEVELS = 256
POINTS = np.linspace(0.0, 1.0, 3)  # of a dash, at which distances are taken
TRIES, WALKS = 12, 40  # for the next dash, and for a whole path


@dataclass(frozen=True)
class Parameters:
    """How pictures of one side are drawn; lengths are in pixels.

    Args:
        side: Of the picture.
        dashes: Of a long path.
        short_dashes: Of a short path.
        short_paths: How many there are.
        dash: Length of a dash.
        gap: Between the dashes of a path.
        bend: Largest turn from a dash to the next, in degrees.
        clearance: Least distance between two paths, and between parts of one that are not neighbours.
        thickness: Of a dash.
        radius: Of a circle.
        apart: Least distance between the circles.
        alike: Most by which the distance of the circles could differ if the picture had the other class.
        margin: Between the paths and the edge.
        ink: Brightness of dashes, of the range; circles have all of it.
        drawing: The version of the code that draws, which is to change with it.
    """

    side: int
    dashes: int
    short_dashes: int
    short_paths: int
    dash: float = 2.0
    gap: float = 1.0
    bend: float = 35.0
    clearance: float = 2.75
    thickness: float = 0.75
    radius: float = 1.5
    apart: float = 5.0
    alike: float = 1.0
    margin: float = 1.5
    ink: float = 0.75
    drawing: int = 1


PARAMETERS = {
    16: Parameters(side=16, dashes=4, short_dashes=2, short_paths=1),
    32: Parameters(side=32, dashes=10, short_dashes=3, short_paths=4),
}
"""By the side of the picture."""


def digest() -> str:
    """SHA-256 of all parameters: equal digests mean pictures drawn alike."""
    text = json.dumps({side: asdict(parameters) for side, parameters in PARAMETERS.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class Scene:
    """What a picture shows.

    Attributes:
        paths: Dashes ``(dashes, 2 ends, 2 coordinates)`` in order, the two long paths first.
        circles: ``(2, 2)``, the centres.
        joined: Whether one path joins the circles.
    """

    paths: tuple[np.ndarray, ...]
    circles: np.ndarray
    joined: bool


@dataclass(frozen=True, kw_only=True)
class Pathfinder(LabelledSequences):
    """Pixels of 256 levels, row after row, as ``side * side`` tokens; class 1 where a path joins the circles.

    Every other picture is of class 1.

    Args:
        side: Of the pictures, one of ``PARAMETERS``.
    """

    side: int = 32

    def check(self) -> None:
        """See :class:`~anyformer.data.labelled_sequences.LabelledSequences`."""
        if self.side not in PARAMETERS:
            known = " or ".join(map(str, PARAMETERS))
            raise UsageError(f"pictures of paths have a side of {known} pixels, not {self.side}")

    @property
    def vocabulary(self) -> int:
        """The levels of a pixel."""
        return LEVELS

    @property
    def classes(self) -> int:
        """Apart, joined."""
        return 2

    def sample(self, number: int) -> tuple[np.ndarray, int]:
        """See :class:`~anyformer.data.labelled_sequences.LabelledSequences`."""
        drawn = scene(self.side, number, self.seed)
        return draw(drawn, self.side).reshape(-1), int(drawn.joined)


def scene(side: int, number: int, seed: int) -> Scene:
    """The paths and circles of a picture; joined where the number is odd."""
    parameters = PARAMETERS[side]
    chance = np.random.Generator(np.random.PCG64(derive_seed(seed, "pathfinder", side, number)))
    while True:  # begun anew where what there is leaves no room, or no choice of circles
        paths = _paths(chance, parameters)
        circles = None if paths is None else _circles(chance, parameters, paths)
        if paths is not None and circles is not None:
            return Scene(paths, circles[number % 2], number % 2 == 1)


def draw(drawn: Scene, side: int, scale: int = 1) -> np.ndarray:
    """The picture ``(side * scale, side * scale)`` of uint8, white on black, edges smoothed over one pixel."""
    parameters = PARAMETERS[side]
    places = (np.arange(side * scale) + 0.5) / scale
    pixels = np.stack(np.meshgrid(places, places, indexing="ij"), axis=-1).reshape(-1, 2)
    dashes = np.concatenate(drawn.paths)
    light = parameters.ink * _inside(_distances(pixels, dashes).min(1), parameters.thickness / 2, scale)
    from_circles = np.linalg.norm(pixels[:, None] - drawn.circles, axis=-1).min(1)
    light = np.maximum(light, _inside(from_circles, parameters.radius, scale))
    return np.round(light * (LEVELS - 1)).astype(np.uint8).reshape(side * scale, side * scale)


def _paths(chance: np.random.Generator, parameters: Parameters) -> tuple[np.ndarray, ...] | None:
    paths: list[np.ndarray] = []
    for length in (parameters.dashes,) * 2 + (parameters.short_dashes,) * parameters.short_paths:
        path = _path(chance, parameters, length, paths)
        if path is None:
            return None
        paths.append(path)
    return tuple(paths)


def _circles(chance: np.random.Generator, parameters: Parameters, paths: tuple[np.ndarray, ...]) -> np.ndarray | None:
    """``(2, 2, 2)``, two circles apart and two joined, as far from one another; None where there are no such ends."""
    ends = np.array([[path[0, 0], path[-1, 1]] for path in paths[:2]])
    apart = np.array([(first, second) for first in ends[0] for second in ends[1]])
    for joined in ends[chance.permutation(2)]:
        wanted = np.linalg.norm(joined[0] - joined[1])
        for other in apart[chance.permutation(4)]:
            distance = np.linalg.norm(other[0] - other[1])
            if min(wanted, distance) >= parameters.apart and abs(wanted - distance) <= parameters.alike:
                return np.stack((other, joined))
    return None


def _path(
    chance: np.random.Generator, parameters: Parameters, length: int, others: Sequence[np.ndarray]
) -> np.ndarray | None:
    """A path that keeps clear of the others; None where none was found."""
    taken = _points(np.concatenate(others)) if others else np.empty((0, 2))
    for _ in range(WALKS):
        dashes: list[np.ndarray] = []
        low, high = parameters.margin, parameters.side - parameters.margin
        place, turn = low + (high - low) * chance.random(2), 2 * math.pi * chance.random()
        while len(dashes) < length:
            found = _dash(chance, parameters, place, turn, dashes, taken)
            if found is None:
                break
            dash, turn = found
            dashes.append(dash)
            place = dash[1] + parameters.gap * _towards(turn)
        if len(dashes) == length:
            return np.stack(dashes)
    return None


def _dash(
    chance: np.random.Generator,
    parameters: Parameters,
    place: np.ndarray,
    turn: float,
    dashes: list[np.ndarray],
    taken: np.ndarray,
) -> tuple[np.ndarray, float] | None:
    """The next dash of a path and its direction; None where none was found."""
    # what lies just behind is a neighbour: three dashes of the sharpest bend are no nearer than they may be
    everything = np.concatenate((taken, _points(np.stack(dashes[:-2])))) if len(dashes) > 2 else taken
    bends = math.radians(parameters.bend) * (2 * chance.random(TRIES) - 1) if dashes else np.zeros(1)
    ends = place + parameters.dash * np.stack((np.sin(turn + bends), np.cos(turn + bends)), axis=-1)
    points = place + (ends - place)[:, None] * POINTS[:, None]
    good = (points >= parameters.margin).all((1, 2)) & (points <= parameters.side - parameters.margin).all((1, 2))
    if len(everything):
        apart = points.reshape(-1, 1, 2) - everything
        good &= ((apart**2).sum(-1) >= parameters.clearance**2).all(1).reshape(len(points), -1).all(1)
    if not good.any():
        return None
    first = int(good.argmax())
    return np.stack((place, ends[first])), turn + float(bends[first])


def _towards(turn: float) -> np.ndarray:
    return np.array([math.sin(turn), math.cos(turn)])


def _points(dashes: np.ndarray) -> np.ndarray:
    """Points along dashes, ``(dashes, 2, 2)`` to ``(3 dashes, 2)``."""
    begin, end = dashes[:, :1], dashes[:, 1:]
    return (begin + (end - begin) * POINTS[:, None]).reshape(-1, 2)


def _distances(pixels: np.ndarray, dashes: np.ndarray) -> np.ndarray:
    """Of every pixel from every dash, ``(pixels, dashes)``."""
    begin, along = dashes[:, 0], dashes[:, 1] - dashes[:, 0]
    share = ((pixels[:, None] - begin) * along).sum(-1) / (along**2).sum(-1)
    nearest = begin + share.clip(0, 1)[..., None] * along
    return np.linalg.norm(pixels[:, None] - nearest, axis=-1)


def _inside(distances: np.ndarray, radius: float, scale: int) -> np.ndarray:
    """The share of light, which falls over one pixel about the edge."""
    return (0.5 + (radius - distances) * scale).clip(0, 1)
