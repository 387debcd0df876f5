"""Crops, light and erased parts do what they were told, and nothing but the generator decides."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.data.augment import Augmentation
from anyformer.data.distort import Chain, Crop, Erase, Light

ALL = (Crop(flip=True), Light(), Erase(share=1.0), Chain((Augmentation(), Crop(), Light(), Erase())))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(ALL), st.integers(0, 2**32), st.integers(1, 6), st.sampled_from([1, 3]), st.sampled_from([1, 8, 31])
)
def test_form_range_and_determinism(change, seed, batch, channels, side):
    images = torch.rand(batch, channels, side, side, generator=generator(seed))
    before = images.clone()
    first = change(images, generator(seed))
    torch.rand(3)
    assert torch.equal(first, change(images, generator(seed)))
    assert torch.equal(images, before)
    assert first.shape == images.shape
    assert first.min() >= -1e-6
    assert first.max() <= 1 + 1e-6


@pytest.mark.parametrize("change", ALL)
def test_another_state_gives_another_picture(change):
    images = torch.rand(4, 3, 16, 16, generator=generator())
    assert not torch.equal(change(images, generator(1)), change(images, generator(2)))


def test_a_chain_is_its_steps_in_order():
    images = torch.rand(4, 3, 16, 16, generator=generator())
    together = generator(3)
    expected = Light()(Crop()(images, together), together)
    assert torch.equal(Chain((Crop(), Light()))(images, generator(3)), expected)
    assert torch.equal(Chain(())(images, generator()), images)


def ramps(batch, side=32):
    """Pictures whose channels are their own coordinates, from -1 to 1."""
    places = (torch.arange(side) + 0.5) * 2 / side - 1
    return torch.stack([places.expand(side, side), places[:, None].expand(side, side)]).expand(batch, -1, -1, -1)


def test_crops_have_the_area_and_the_sides_asked_for_and_lie_inside():
    crops = Crop(area=(0.2, 0.6), stretch=1.5)(ramps(400), generator())
    # The slope of a ramp in the crop is the share of the side that it shows.
    width = (crops[:, 0, 8, 20] - crops[:, 0, 8, 12]) / (2 * 8 / 32)
    height = (crops[:, 1, 20, 8] - crops[:, 1, 12, 8]) / (2 * 8 / 32)
    area, ratio = width * height, width / height
    assert 0.19 < area.min() < 0.25
    assert 0.55 < area.max() < 0.61
    assert 1 / 1.51 < ratio.min() < 1 / 1.4
    assert 1.4 < ratio.max() < 1.51
    for axis, part in ((0, width), (1, height)):
        middle = crops[:, axis, 15:17, 15:17].mean((1, 2))
        assert ((middle.abs() + part) <= 1.01).all()
        assert middle.min() < -0.2
        assert middle.max() > 0.2
    assert torch.equal(Crop(area=(1, 1), stretch=1.0)(ramps(2), generator()), ramps(2))


def test_a_crop_mirrors_about_half():
    turned = Crop(area=(1.0, 1.0), stretch=1.0, flip=True)(ramps(64), generator())
    mirrored = turned[:, 0, 8, 20] < 0
    assert 20 < mirrored.sum() < 44
    torch.testing.assert_close(turned[mirrored], ramps(64)[mirrored].flip(-1))


def test_light_changes_brightness_contrast_and_colour_apart():
    images = 0.3 + 0.2 * torch.rand(200, 3, 8, 8, generator=generator())

    def changed(**strength):
        return Light(**{"brightness": 0.0, "contrast": 0.0, "saturation": 0.0} | strength)(images, generator(1))

    torch.testing.assert_close(changed(), images)
    brightness = changed(brightness=0.3) / images
    torch.testing.assert_close(brightness, brightness[:, :1, :1, :1].expand_as(images))
    assert 0.7 < brightness.min() < 0.73
    assert 1.27 < brightness.max() < 1.3
    contrast = changed(contrast=0.3)
    torch.testing.assert_close(contrast.mean((1, 2, 3)), images.mean((1, 2, 3)))
    ratio = contrast.std((1, 2, 3)) / images.std((1, 2, 3))
    assert 0.7 < ratio.min() < 0.75
    assert 1.25 < ratio.max() < 1.3
    colour = changed(saturation=0.3)
    torch.testing.assert_close(colour.mean(1), images.mean(1))
    assert not torch.allclose(colour, images)
    grey = images[:, :1]
    torch.testing.assert_close(Light(brightness=0, contrast=0, saturation=0.9)(grey, generator()), grey)


def test_erased_parts_are_rectangles_of_the_area_asked_for():
    images = torch.rand(400, 3, 32, 32, generator=generator())
    erased = Erase(share=0.5, area=(0.1, 0.3), stretch=2.0)(images, generator(2))
    hidden = (erased != images).all(1)
    touched = hidden.any((1, 2))
    assert 160 < touched.sum() < 240
    assert torch.equal(erased[~touched], images[~touched])
    shares = hidden[touched].float().mean((1, 2))
    assert 0.08 < shares.min() < 0.13
    assert 0.27 < shares.max() < 0.33
    for picture, mask, source in zip(erased[touched], hidden[touched], images[touched], strict=True):
        rows, columns = mask.any(1), mask.any(0)
        assert torch.equal(mask, rows[:, None] & columns[None, :])
        assert 0.45 < rows.sum() / columns.sum() < 2.2
        torch.testing.assert_close(picture[:, mask].mean(), source.mean())
