from dataclasses import replace

import pytest
import torch

from anyformer.core import registry
from anyformer.fit.augmenting import augmentation
from anyformer.fit.candidates import candidates, patch_for
from anyformer.fit.plan import (
    LEAST_SHARE,
    LEAST_STEPS,
    MARGIN,
    TEACHER_SHARE,
    lessons,
    reserve,
    rungs,
    steps,
    training_seconds,
)
from anyformer.fit.study import Restarts

from .test_budget import COSTS


@pytest.mark.parametrize(
    ("count", "sizes"), [(1, [1]), (2, [2]), (3, [3, 2]), (6, [6, 2]), (8, [8, 3, 2]), (12, [12, 4, 2])]
)
def test_fewer_and_fewer_go_on_until_the_finalists_are_left(count: int, sizes: list[int]) -> None:
    table = {str(i): COSTS for i in range(count)}
    plan = rungs(count, 10.0, table)
    assert [rung.candidates for rung in plan] == sizes
    spent = count * COSTS.measure_seconds + reserve(table)
    assert sum(rung.seconds for rung in plan) == pytest.approx(MARGIN * (600.0 - spent))
    assert plan[-1].seconds >= sum(rung.seconds for rung in plan[:-1]) - 1e-9


def test_where_pictures_are_seen_a_few_times_one_is_trained_alone_in_the_end() -> None:
    table = {str(i): COSTS for i in range(6)}
    plenty, scarce = (rungs(6, 10.0, table, epoch=epoch) for epoch in (1, 10**6))
    assert [rung.candidates for rung in plenty] == [6, 2]
    assert [rung.candidates for rung in scarce] == [6, 2, 1]
    assert sum(rung.seconds for rung in scarce) == pytest.approx(sum(rung.seconds for rung in plenty))
    assert scarce[-1].seconds > plenty[-1].seconds / 2


def test_a_teachers_share_is_taken_from_the_students_and_from_each_of_their_steps() -> None:
    table = {"a": COSTS, "b": COSTS}
    alone, taught = (rungs(2, 10.0, table, taught=taught) for taught in (False, True))
    assert taught[0].seconds == pytest.approx((1 - TEACHER_SHARE) * alone[0].seconds)
    slow = replace(COSTS, step_seconds=3 * COSTS.step_seconds)
    assert steps(alone[0], COSTS, slow) == pytest.approx(steps(alone[0], COSTS) / 2, abs=1)
    given = TEACHER_SHARE * training_seconds(10.0, table)
    assert lessons(10.0, table, "a") == int(given / COSTS.step_seconds)


def test_what_lies_beyond_a_picture_is_its_ground() -> None:
    light = torch.full((4, 1, 32, 32), 0.75)
    shifted = augmentation(32)(light, torch.Generator().manual_seed(0))
    assert (shifted.amax((1, 2, 3)) - shifted.amin((1, 2, 3))).max() < 1e-6
    assert (shifted[:, 0, 0, 0] - 0.75).abs().min() > 0.01  # in another light
    assert augmentation(8)(light, torch.Generator().manual_seed(0)).min() < 0.5


def test_training_keeps_a_share_however_long_measuring_took() -> None:
    table = {"a": replace(COSTS, measure_seconds=1e6)}
    assert sum(rung.seconds for rung in rungs(1, 1.0, table)) == pytest.approx(LEAST_SHARE * 60)


def test_steps_fill_the_time_of_a_rung() -> None:
    first = rungs(8, 10.0, {"a": COSTS})[0]
    assert steps(first, COSTS) == int(first.seconds / 8 / COSTS.step_seconds)
    assert steps(first, replace(COSTS, step_seconds=1e9)) == LEAST_STEPS


@pytest.mark.parametrize(
    ("size", "stages", "smallest", "largest", "patch"),
    [
        (4, 3, 1, 4, 1),
        (8, 1, 2, 16, 2),
        (8, 3, 2, 4, 2),
        (8, 3, 1, 4, 1),
        (8, 4, 2, 4, 1),
        (15, 3, 1, 4, 1),
        (16, 3, 1, 4, 2),
        (28, 3, 2, 4, 4),
        (28, 1, 2, 16, 4),
        (64, 3, 1, 4, 4),
        (64, 1, 2, 16, 8),
        (224, 4, 1, 4, 4),
        (224, 1, 2, 16, 16),
    ],
)
def test_a_stem_leaves_enough_tokens(size: int, stages: int, smallest: int, largest: int, patch: int) -> None:
    assert patch_for(size, stages=stages, smallest=smallest, largest=largest) == patch


def test_the_first_candidates_are_of_all_systems() -> None:
    vision = [slug for slug, system in registry.systems().items() if system.field == "vision"]
    chosen = candidates(size=8, channels=1, classes=10, trials=2 * len(vision))
    assert {candidate.system for candidate in chosen[: len(vision)]} == set(vision)
    assert len({candidate.name for candidate in chosen}) == 2 * len(vision)


def test_small_pyramids_read_coarse_patches_of_larger_pictures_and_the_published_ones_do_not() -> None:
    chosen = {c.name: c.options["patch_size"] for c in candidates(size=64, channels=1, classes=10, trials=100)}
    assert chosen["convnext_micro"] == chosen["poolformer_mini"] == 8
    assert chosen["convnext_tiny"] == chosen["poolformer_s12"] == 4


def test_each_rung_warms_up_and_cools_down() -> None:
    factor = Restarts((100, 300))
    values = [factor(step) for step in range(300)]
    assert values[0] == pytest.approx(0.1)
    assert values[9] == values[10] == 1.0
    assert values[99] < 0.02
    assert values[100] == pytest.approx(0.05)
    assert max(values[100:]) == 1.0
    assert values[299] < 0.02
