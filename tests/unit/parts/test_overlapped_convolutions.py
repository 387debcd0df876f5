"""Patches and down-sampling whose windows overlap."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from anyformer import core
from anyformer.parts.embeds.patch_embed import adapt_channels

from .build_part import build, config, on_grid, random
from .test_costs import multiply_adds

engine = settings(deadline=None, derandomize=True, max_examples=25)


@engine
@given(
    st.sampled_from(((7, 4, 2), (3, 2, 1), (3, 1, 1))), st.integers(8, 15), st.integers(8, 15), st.sampled_from((1, 3))
)
def test_the_stem_is_a_convolution(numbers, height, width, channels):
    kernel, stride, padding = numbers
    part = build("overlapped_patch_embed", dim=5, kernel=kernel, stride=stride, padding=padding, channels=channels)
    image = random(2, channels, height, width)
    x, context = part(image)
    theirs = F.conv2d(image, part.weight, part.bias, stride=stride, padding=padding).movedim(1, -1)
    assert torch.allclose(x, theirs, rtol=1e-10, atol=1e-10)
    assert context.layout == core.Layout(grid=tuple(theirs.shape[1:3]))
    assert x.is_contiguous()


def test_the_padding_of_a_stem_is_half_its_stride_and_a_norm_follows():
    part = build("overlapped_patch_embed", dim=5, kernel=7, stride=4, norm=config("layer_norm"))
    image = random(1, 3, 8, 12)
    plain = F.conv2d(image, part.weight, part.bias, stride=4, padding=2).movedim(1, -1)
    assert torch.allclose(part(image)[0], part.norm(plain), rtol=1e-10)


def test_an_image_without_a_window_is_refused():
    with pytest.raises(core.UsageError, match=r"an image of \(2, 9\) is smaller than the filters of 7; give a smaller"):
        build("overlapped_patch_embed", dim=5, kernel=7, stride=4)(random(1, 3, 2, 9))


def test_the_filters_of_a_stem_are_adapted_to_channels_and_kernel():
    old, new = (build("overlapped_patch_embed", dim=5, kernel=k, stride=2, channels=c) for k, c in ((7, 3), (3, 6)))
    adapted = new.adapted("weight", old.weight, old.config)
    filters = F.interpolate(adapt_channels(old.weight, 6), (3, 3), mode="bicubic", antialias=True)
    assert torch.equal(adapted, filters)
    assert torch.equal(old.adapted("weight", old.weight, old.config), old.weight)


@engine
@given(st.sampled_from(((3, 2), (5, 2), (3, 3))), st.integers(1, 8), st.integers(1, 8), st.booleans())
def test_down_sampling_is_a_convolution_and_takes_any_grid(numbers, height, width, normed):
    kernel, stride = numbers
    norm = config("layer_norm") if normed else None
    part = build("overlapped_down", inputs=3, dim=5, kernel=kernel, stride=stride, norm=norm)
    x, before = random(2, height, width, 3), on_grid(height, width)
    y, context, trace = part(x, before)
    given_ = part.norm(x) if normed else x
    theirs = F.conv2d(given_.movedim(-1, 1), part.weight, part.bias, stride=stride, padding=kernel // 2).movedim(1, -1)
    assert torch.allclose(y, theirs, rtol=1e-10, atol=1e-10)
    assert context.layout == core.Layout(grid=(-(-height // stride), -(-width // stride)))
    assert (trace, before.layout) == (before.layout, core.Layout(grid=(height, width)))


def test_down_sampling_needs_a_grid():
    with pytest.raises(core.UsageError, match="OverlappedDown needs features on a grid without prefix tokens"):
        build("overlapped_down", inputs=3, dim=5)(random(1, 5, 3), on_grid(2, 2, prefix=1))


def test_the_costs_that_the_docstrings_state():
    embed = build("overlapped_patch_embed", dim=5, kernel=7, stride=4)
    assert multiply_adds(lambda: embed(torch.zeros(1, 3, 16, 8, dtype=torch.float64))) == (4 * 2) * 3 * 5 * 49
    down = build("overlapped_down", inputs=4, dim=5)
    assert (
        multiply_adds(lambda: down(torch.zeros(1, 6, 4, 4, dtype=torch.float64), on_grid(6, 4))) == (3 * 2) * 4 * 5 * 9
    )
