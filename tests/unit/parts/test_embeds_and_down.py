"""From images and words to features, and from many tokens to fewer."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from anyformer import core
from anyformer.parts.embeds.patch_embed import adapt_channels

from .build_part import build, config, on_grid, random

engine = settings(deadline=None, derandomize=True, max_examples=25)


@engine
@given(st.integers(1, 4), st.integers(4, 11), st.integers(4, 11), st.sampled_from((1, 3)))
def test_patches_are_a_strided_convolution(patch, height, width, channels):
    part = build("patch_embed", dim=5, patch=patch, channels=channels)
    image = random(2, channels, height, width)
    x, context = part(image)
    theirs = F.conv2d(image, part.weight, part.bias, stride=patch).movedim(1, -1)
    assert torch.allclose(x, theirs, rtol=1e-10, atol=1e-10), "what fills no patch is cut off"
    assert context.layout == core.Layout(grid=(height // patch, width // patch))


def test_a_norm_follows_the_patches():
    part = build("patch_embed", dim=5, patch=2, norm=config("layer_norm"))
    image = random(1, 3, 4, 4)
    plain = F.conv2d(image, part.weight, part.bias, stride=2).movedim(1, -1)
    assert torch.allclose(part(image)[0], part.norm(plain), rtol=1e-10)


def prefixed(**settings):
    return build(
        "prefixed_patch_embed", dim=5, patch=config("patch_embed", patch=2), **{"rows": 2, "columns": 3, **settings}
    )


@pytest.mark.parametrize("prefix", [1, 3])
def test_prefix_tokens_stand_first_and_every_token_has_its_position(prefix):
    part = prefixed(prefix=prefix)
    image = random(2, 3, 4, 6)
    x, context = part(image)
    assert context.layout == core.Layout(grid=(2, 3), prefix=prefix)
    before, grid = context.layout.split(x)
    assert torch.equal(before, (part.prefix + part.positions[:, :prefix]).expand(2, -1, -1))
    patches = part.patch(image)[0]
    assert torch.equal(grid, patches + part.positions[:, prefix:].view(1, 2, 3, 5))


def test_another_grid_is_refused_with_the_remedy():
    with pytest.raises(core.UsageError) as caught:
        prefixed()(random(1, 3, 8, 6))
    assert str(caught.value) == (
        "the image gives a grid of (4, 3), this model's positions are for (2, 3); create it with img_size=(8, 6) or adapt it"
    )


def test_spreading_filters_keeps_the_response_to_grey():
    weight = random(4, 3, 2, 2)
    assert torch.equal(adapt_channels(weight, 1), weight.sum(1, keepdim=True))
    for channels in (2, 3, 5, 7):
        spread = adapt_channels(weight, channels)
        assert spread.shape == (4, channels, 2, 2)
        assert torch.equal(spread, torch.stack([weight[:, i % 3] for i in range(channels)], 1) * (3 / channels))
    assert torch.allclose(adapt_channels(weight, 6).sum(1), weight.sum(1), rtol=1e-12)


def test_words_are_looked_up():
    part = build("token_table", vocabulary=7, dim=4)
    words = torch.tensor([[0, 6, 3], [3, 3, 1]])
    x, context = part(words)
    assert torch.equal(x, part.table.weight[words])
    assert context.layout == core.Layout(grid=(3,))


@engine
@given(st.integers(1, 3), st.integers(3, 8), st.integers(3, 8))
def test_down_sampling_normalises_and_then_convolves(patch, height, width):
    part = build("patch_down", inputs=3, dim=5, patch=patch, norm=config("layer_norm"))
    x, before = random(2, height, width, 3), on_grid(height, width)
    y, context, trace = part(x, before)
    theirs = F.conv2d(part.norm(x).movedim(-1, 1), part.weight, part.bias, stride=patch).movedim(1, -1)
    assert torch.allclose(y, theirs, rtol=1e-10, atol=1e-10)
    assert context.layout == core.Layout(grid=(height // patch, width // patch))
    assert (trace, before.layout) == (before.layout, core.Layout(grid=(height, width)))


def test_down_sampling_needs_a_grid():
    part = build("patch_down", inputs=3, dim=5, norm=config("layer_norm"))
    with pytest.raises(core.UsageError, match="PatchDown needs features on a grid without prefix tokens"):
        part(random(1, 5, 3), on_grid(2, 2, prefix=1))
