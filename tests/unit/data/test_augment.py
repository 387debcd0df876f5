"""Augmentation moves pictures by what it was told, and by nothing but the generator."""

import pytest
import torch

from anyformer.data.augment import Augmentation

STILL = {"shift": 0.0, "degrees": 0.0, "scale": 0.0}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images():
    return torch.rand(32, 2, 16, 16, generator=generator(1))


def test_nothing_asked_changes_nothing(images):
    torch.testing.assert_close(Augmentation(**STILL)(images, generator()), images)


def test_shifts_are_whole_pixels_with_zeros_behind(images):
    moved = Augmentation(**STILL | {"shift": 1 / 8})(images, generator())
    seen = set()
    for before, after in zip(images, moved, strict=True):
        padded = torch.nn.functional.pad(before, (2, 2, 2, 2))
        matches = [
            (down, right)
            for down in range(5)
            for right in range(5)
            if torch.allclose(padded[:, down : down + 16, right : right + 16], after, atol=1e-5)
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert {down for down, _ in seen} == {right for _, right in seen} == set(range(5))


def test_flip_mirrors_about_half(images):
    turned = Augmentation(**STILL, flip=True)(images, generator())
    mirrored = [torch.allclose(after, before.flip(-1), atol=1e-5) for before, after in zip(images, turned, strict=True)]
    kept = [torch.allclose(after, before, atol=1e-5) for before, after in zip(images, turned, strict=True)]
    assert all(one != other for one, other in zip(mirrored, kept, strict=True))
    assert 8 <= sum(mirrored) <= 24


def centre_and_spread(images):
    """Centre of mass (x, y) and mean squared distance from it, in pixels."""
    mass = images.sum((1, 2, 3))
    places = torch.arange(images.shape[-1], dtype=torch.float32)
    x = (images.sum((1, 2)) * places).sum(1) / mass
    y = (images.sum((1, 3)) * places).sum(1) / mass
    spread = (images.sum(1) * ((places - x[:, None, None]) ** 2 + (places[:, None] - y[:, None, None]) ** 2)).sum(
        (1, 2)
    )
    return x - places.mean(), y - places.mean(), spread / mass


def blob(x, y, side=32):
    places = torch.arange(side, dtype=torch.float32) - (side - 1) / 2
    return torch.exp(-((places - x) ** 2 + (places[:, None] - y) ** 2) / 8)[None, None]


def test_turn_is_within_its_bound_and_goes_both_ways():
    turned = Augmentation(**STILL | {"degrees": 20.0})(blob(8, 0).repeat(64, 1, 1, 1), generator())
    x, y, _ = centre_and_spread(turned)
    angles = torch.rad2deg(torch.atan2(y, x))
    assert angles.abs().max() <= 20.1
    assert angles.min() < -15
    assert angles.max() > 15
    torch.testing.assert_close(x.hypot(y), torch.full((64,), 8.0), atol=0.1, rtol=0)


def test_scale_is_within_its_bound_and_goes_both_ways():
    scaled = Augmentation(**STILL | {"scale": 0.2})(blob(8, 0).repeat(64, 1, 1, 1), generator())
    x, y, spread = centre_and_spread(scaled)
    assert y.abs().max() < 0.01
    assert 8 * 0.79 < x.min() < 8 * 0.85
    assert 8 * 1.15 < x.max() < 8 * 1.21
    assert torch.corrcoef(torch.stack([x, spread.sqrt()]))[0, 1] > 0.99


def test_the_generator_alone_decides(images):
    augmentation = Augmentation()
    first = augmentation(images, generator())
    torch.manual_seed(3)
    assert torch.equal(augmentation(images, generator()), first)
    assert not torch.equal(augmentation(images, generator(1)), first)
    before = torch.get_rng_state()
    augmentation(images, generator())
    assert torch.equal(torch.get_rng_state(), before)
