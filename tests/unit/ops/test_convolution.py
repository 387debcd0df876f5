"""Channels-last convolutions equal their references, outputs and gradients, over odd and empty grids."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given
from torch.nn import functional as F

from anyformer.ops import convolution

pytestmark = pytest.mark.usefixtures("poisoned_memory")

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}
DTYPES = st.sampled_from(list(TOLERANCES))


def draw_tensors(seed, dtype, *sizes):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator, dtype=dtype).requires_grad_() for size in sizes]


def equal_with_gradients(ours, theirs, tensors):
    direction = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1), dtype=theirs.dtype)
    pairs = [(ours, theirs)]
    pairs += zip(
        torch.autograd.grad(ours, tensors, direction), torch.autograd.grad(theirs, tensors, direction), strict=True
    )
    for mine, expected in pairs:
        assert mine.shape == expected.shape
        assert mine.dtype == expected.dtype
        assert not mine.isnan().any()
        if mine.numel():
            assert (mine - expected).abs().max() <= TOLERANCES[mine.dtype] * expected.abs().max().clamp(min=1)


@given(
    dtype=DTYPES,
    grid=st.sampled_from([(1, 1), (7, 7), (8, 5), (13, 1)]),
    channels=st.sampled_from([1, 3, 16]),
    kernel=st.sampled_from([(1, 1), (3, 3), (5, 5), (3, 1)]),
    stride=st.sampled_from([1, 2]),
    batch=st.sampled_from([0, 1, 3]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_depthwise(dtype, grid, channels, kernel, stride, batch, bias, seed):
    tensors = draw_tensors(seed, dtype, (batch, *grid, channels), (channels, 1, *kernel), (channels,))[: 2 + bias]
    padding = kernel[0] // 2, kernel[1] // 2
    ours = convolution.depthwise_convolution(*tensors, stride=stride, padding=padding)
    theirs = convolution.reference_depthwise_convolution(*tensors, stride=stride, padding=padding)
    equal_with_gradients(ours, theirs, tensors)


def test_depthwise_copies_nothing():
    x = torch.randn(2, 6, 6, 8)
    y = convolution.depthwise_convolution(x, torch.randn(8, 1, 3, 3), padding=1)
    assert y.is_contiguous()
    assert x.movedim(-1, 1).is_contiguous(memory_format=torch.channels_last)


@given(
    dtype=DTYPES,
    patch=st.sampled_from([1, 2, 3, 4]),
    grid=st.sampled_from([(4, 4), (7, 12), (13, 5)]),
    channels=st.sampled_from([1, 3, 24]),
    batch=st.sampled_from([0, 1, 3]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_patches_of_features(dtype, patch, grid, channels, batch, bias, seed):
    tensors = draw_tensors(seed, dtype, (batch, *grid, channels), (6, channels, patch, patch), (6,))[: 2 + bias]
    ours = convolution.patch_convolution(*tensors)
    equal_with_gradients(ours, convolution.reference_patch_convolution(*tensors), tensors)


@given(
    dtype=DTYPES,
    patch=st.sampled_from([2, 4, 8, 16]),
    size=st.sampled_from([(16, 16), (32, 48), (35, 17)]),
    channels=st.sampled_from([1, 3]),
    batch=st.sampled_from([1, 2]),
    bias=st.booleans(),
    channels_last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_patches_of_images(dtype, patch, size, channels, batch, bias, channels_last, seed):
    tensors = draw_tensors(seed, dtype, (batch, channels, *size), (6, channels, patch, patch), (6,))[: 2 + bias]
    images, *others = tensors
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    ours = convolution.image_patch_convolution(images, *others)
    theirs = convolution.reference_patch_convolution(tensors[0].movedim(1, -1), *others)
    assert ours.is_contiguous()
    equal_with_gradients(ours, theirs, tensors)


@given(
    dtype=DTYPES,
    channels=st.integers(1, 17),
    stride=st.sampled_from([1, 2, 3]),
    grid=st.sampled_from([(1, 1), (8, 8), (7, 5), (64, 64)]),
    batch=st.sampled_from([0, 1, 2]),
    seed=st.integers(0, 99),
)
def test_strided_pointwise(dtype, channels, stride, grid, batch, seed):
    tensors = draw_tensors(seed, dtype, (batch, *grid, channels), (6, channels), (6,))
    x, weight, bias = tensors
    ours = convolution.strided_pointwise(x, weight, bias, stride=stride)
    # channels-first memory, where torch's convolution is sound
    theirs = F.conv2d(x.movedim(-1, 1).contiguous(), weight[:, :, None, None], bias, stride=stride).movedim(1, -1)
    assume(channels > 1)  # with one channel both memory formats are one
    equal_with_gradients(ours, theirs, tensors)


@pytest.mark.parametrize("channels", [2, 3, 8, 15])
def test_strided_pointwise_survives_where_onednn_crashes(channels):
    """The gradient of a 1 x 1 convolution's weight, stride 2, channels_last, 128 x 128 and above: oneDNN issue 6035."""
    x, weight = draw_tensors(0, torch.float32, (2, 128, 128, channels), (24, channels))
    ours = convolution.strided_pointwise(x, weight, stride=2)
    theirs = torch.einsum("bhwc,oc->bhwo", x.double()[:, ::2, ::2], weight.double())
    assert (ours - theirs).abs().max() < 1e-5
    gradient = torch.autograd.grad(ours.sum(), weight)[0]
    assert (gradient - torch.autograd.grad(theirs.sum(), weight)[0]).abs().max() < 1e-3
