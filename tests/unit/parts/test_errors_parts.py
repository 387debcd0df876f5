"""What a part cannot take it refuses in a sentence with a remedy."""

import pytest
import torch

import anyformer as af
from anyformer import core

from .build_part import build, config, on_grid, random

IMAGES = torch.zeros(1, 3, 3, 9, dtype=torch.float64)


def test_a_grid_smaller_than_the_patch_to_merge():
    part = build("patch_down", inputs=4, dim=8, norm=config("layer_norm"))
    with pytest.raises(core.UsageError, match=r"a grid of \(1, 6\) cannot be made smaller by 2; give a larger image"):
        part(random(1, 1, 6, 4), on_grid(1, 6))
    assert part(random(1, 2, 6, 4), on_grid(2, 6))[0].shape == (1, 1, 3, 8)


def test_an_image_smaller_than_a_patch():
    part = build("patch_embed", dim=4, patch=4)
    with pytest.raises(core.UsageError, match=r"an image of \(3, 9\) holds no patch of 4"):
        part(IMAGES)


@pytest.mark.parametrize("name", ["vit_micro", "vit_base_patch16_224"])
def test_an_image_that_holds_no_patch_of_a_model(name):
    with (
        torch.device("meta"),
        pytest.raises(core.UsageError, match=r"3 x 40 holds no patch of .*; give a smaller patch_size"),
    ):
        af.create_model(name, img_size=(3, 40))
