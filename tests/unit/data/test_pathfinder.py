"""Pictures of paths are the same for ever, and what they show is what their class says."""

import dataclasses

import numpy as np
import pytest
import torch

from anyformer.core.errors import UsageError
from anyformer.data import pathfinder
from anyformer.data.pathfinder import PARAMETERS, Pathfinder, digest, draw, scene

SCALE = 5  # of the picture in which the paths are followed
SIDES = tuple(PARAMETERS)
DIGEST = "94db22badb771f564bc48124407ed38cf1405364784e60285b04181922c4bda2"
BLOCKS = [
    [124.9, 10.6, 25.6, 30.5],
    [0.0, 26.5, 83.4, 12.2],
    [0.0, 0.0, 41.9, 21.9],
    [9.2, 36.8, 34.5, 0.0],
]  # the mean light of every block of 4 x 4 pixels


def test_parameters_are_frozen(monkeypatch):
    """Were this to change, figures of earlier models would no longer be comparable: give the new generator a new name."""
    assert digest() == DIGEST
    monkeypatch.setitem(PARAMETERS, 16, dataclasses.replace(PARAMETERS[16], bend=36.0))
    assert digest() != DIGEST


def test_the_drawing_is_frozen():
    blocks = draw(scene(16, 1, 0), 16).reshape(4, 4, 4, 4).mean((1, 3))
    assert abs(blocks - BLOCKS).max() < 1


def flooded(light, place):
    """Which pixels are joined to a place by light ones, sideways, upwards or across corners."""
    reached = np.zeros(light.shape, bool)
    reached[tuple((place * SCALE).astype(int))] = True
    while True:
        wider = np.pad(reached, 1)
        wider = sum(np.roll(wider, (i, j), (0, 1)) for i in (-1, 0, 1) for j in (-1, 0, 1))[1:-1, 1:-1] > 0
        wider &= light
        if (wider == reached).all():
            return reached
        reached = wider


def widened(light, radius):
    """Light pixels and all within a radius, in pixels of the model's picture: as wide as bridges the gaps of a path."""
    span = int(radius * SCALE)
    offsets = [(i, j) for i in range(-span, span + 1) for j in range(-span, span + 1) if i * i + j * j <= span * span]
    padded = np.pad(light, span)
    moved = [np.roll(padded, offset, (0, 1)) for offset in offsets]
    return np.logical_or.reduce(moved)[span : span + len(light), span : span + len(light)]


@pytest.mark.parametrize("side", SIDES)
def test_the_class_is_what_a_flood_along_the_paths_finds(side):
    """The flood sees the picture alone, drawn finely, and where the circles are."""
    parameters = PARAMETERS[side]
    bridge = 0.1 + (parameters.gap - parameters.thickness) / 2
    assert parameters.clearance - parameters.thickness / 2 - parameters.radius > 2 * bridge
    for number in range(6 if side == 16 else 2):
        shown = scene(side, number, seed=3)
        light = widened(draw(shown, side, SCALE) > 80, bridge)
        reached = flooded(light, shown.circles[0])
        assert reached[tuple((shown.circles[1] * SCALE).astype(int))] == shown.joined == (number % 2 == 1)


@pytest.mark.parametrize("side", SIDES)
def test_paths_keep_clear_of_each_other_and_of_the_edge(side):
    parameters = PARAMETERS[side]
    shown = scene(side, 4, seed=1)
    assert [len(path) for path in shown.paths] == [parameters.dashes] * 2 + [
        parameters.short_dashes
    ] * parameters.short_paths
    points = [np.linspace(path[:, 0], path[:, 1], 9).reshape(-1, 2) for path in shown.paths]
    for i, path in enumerate(points):
        assert parameters.margin <= path.min() <= path.max() <= side - parameters.margin
        for other in points[:i]:
            nearest = np.linalg.norm(path[:, None] - other, axis=-1).min()
            assert nearest > parameters.clearance - 0.2  # distances were taken at three points of a dash
    lengths = np.linalg.norm(shown.paths[0][:, 1] - shown.paths[0][:, 0], axis=-1)
    gaps = np.linalg.norm(shown.paths[0][1:, 0] - shown.paths[0][:-1, 1], axis=-1)
    np.testing.assert_allclose(lengths, parameters.dash)
    np.testing.assert_allclose(gaps, parameters.gap)


def test_circles_are_as_far_apart_in_either_class():
    parameters = PARAMETERS[16]
    distances = {}
    for number in range(80):
        shown = scene(16, number, seed=2)
        between = np.linalg.norm(shown.circles[0] - shown.circles[1])
        assert between >= parameters.apart
        distances.setdefault(shown.joined, []).append(between)
    joined, apart = (np.array(distances[kind]) for kind in (True, False))
    assert abs(joined.mean() - apart.mean()) < parameters.alike + 3 * np.hypot(joined.std(), apart.std()) / 40**0.5


def test_neither_ink_nor_circles_tell_the_class():
    """Both classes have the same paths' lengths and two circles, so that their brightness has the same mean."""
    batch = Pathfinder(side=16, size=60)(0)
    light = batch.images.ids.double().mean(1)
    joined, apart = light[batch.labels == 1], light[batch.labels == 0]
    error = (joined.var() / len(joined) + apart.var() / len(apart)).sqrt()
    assert abs(joined.mean() - apart.mean()) < 4 * error


def test_a_batch_is_balanced_and_a_function_of_seed_and_step():
    task = Pathfinder(side=16, size=8)
    batch = task(2)
    assert batch.images.ids.shape == (8, 256)
    assert batch.images.keep.all()
    assert batch.labels.tolist() == [0, 1] * 4
    assert batch.images.ids.dtype == torch.int64
    assert 0 == int(batch.images.ids.min()) < int(batch.images.ids.max()) == task.vocabulary - 1
    assert torch.equal(Pathfinder(side=16, size=4)(5).images.ids, batch.images.ids[4:])
    assert not torch.equal(Pathfinder(side=16, size=8, seed=1)(2).images.ids, batch.images.ids)
    assert task.classes == 2


def test_the_large_picture_is_a_sequence_of_1024_pixels():
    tokens, label = Pathfinder().sample(1)
    assert (tokens.shape, label) == ((1024,), 1)
    assert (tokens.reshape(32, 32) == draw(scene(32, 1, 0), 32)).all()


def test_a_scene_without_room_is_begun_anew(monkeypatch):
    given = scene(16, 0, seed=0)
    monkeypatch.setattr(pathfinder, "WALKS", 1)
    shown = scene(16, 0, seed=0)
    assert [len(path) for path in shown.paths] == [len(path) for path in given.paths]


def test_another_side_is_named():
    with pytest.raises(UsageError, match="a side of 16 or 32 pixels, not 20"):
        Pathfinder(side=20)
