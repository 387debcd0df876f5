"""Convolutions on channels-last features: depth-wise ones, and those that are products in disguise.

A patch convolution and a pointwise one are matrix products of rearranged tokens. Which form is taken was measured (two
threads, batches of 1 and 16). Images: the product from patches of 8 pixels on (16 x 16 x 3 to 192: 0.7 of the time of
torch's convolution), torch's convolution below (4 x 4 x 3 to 96: half the time of the product at batch 16). Features:
always the product, at par in inference and up to three times faster in training.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer.ops.linear import linear


def depthwise_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: int | tuple[int, int] = 0
) -> Tensor:
    """Convolve each channel with its own kernel: the moved view is torch's channels_last memory, so nothing is copied.

    Costs height * width * kernel area multiply-adds a channel.

    Args:
        x: (batch, height, width, channels).
        weight: (channels, 1, kernel height, kernel width).
        bias: (channels,).
        stride: Of both axes.
        padding: Zeros around the grid, of both axes or each.

    Returns:
        (batch, new height, new width, channels).
    """
    y = F.conv2d(x.movedim(-1, 1), weight, bias, stride=stride, padding=padding, groups=weight.shape[0])
    return y.movedim(1, -1)


def reference_depthwise_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: int | tuple[int, int] = 0
) -> Tensor:
    """``depthwise_convolution`` as a sum over the kernel's cells of shifted, weighted features."""
    down, across = (padding, padding) if isinstance(padding, int) else padding
    x = F.pad(x, (0, 0, across, across, down, down))
    kernel_height, kernel_width = weight.shape[2:]
    height, width = x.shape[1] - kernel_height + 1, x.shape[2] - kernel_width + 1
    y = torch.zeros((), dtype=x.dtype) if bias is None else bias
    for i in range(kernel_height):
        for j in range(kernel_width):
            y = y + x[:, i : i + height : stride, j : j + width : stride] * weight[:, 0, i, j]
    return y


def patch_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Merge features: a convolution whose square kernel is its stride, one output for each patch that fits.

    Costs height * width * channels * out multiply-adds and one copy of the features.

    Args:
        x: (batch, height, width, channels).
        weight: (out, channels, patch, patch).
        bias: (out,).

    Returns:
        (batch, height // patch, width // patch, out).
    """
    batch, height, width, channels = x.shape
    out, patch = weight.shape[0], weight.shape[-1]
    rows, columns = height // patch, width // patch
    x = x[:, : rows * patch, : columns * patch].reshape(batch, rows, patch, columns, patch, channels)
    patches = x.transpose(2, 3).reshape(batch, rows, columns, patch * patch * channels)
    return linear(patches, weight.permute(0, 2, 3, 1).reshape(out, patch * patch * channels), bias)


def image_patch_convolution(images: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Embed images: as ``patch_convolution``, from channels-first images to channels-last features.

    Args:
        images: (batch, channels, height, width).
        weight: (out, channels, patch, patch).
        bias: (out,).

    Returns:
        (batch, height // patch, width // patch, out).
    """
    batch, channels, height, width = images.shape
    out, patch = weight.shape[0], weight.shape[-1]
    if patch < 8 and channels > 1:
        # from channels_last memory torch's convolution returns channels_last: contiguous features. With one channel both
        # memory formats are the same and it returns channels-first, slower here than the product
        images = images.contiguous(memory_format=torch.channels_last)
        return F.conv2d(images, weight, bias, stride=patch).movedim(1, -1)
    rows, columns = height // patch, width // patch
    images = images[:, :, : rows * patch, : columns * patch].reshape(batch, channels, rows, patch, columns, patch)
    patches = images.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows, columns, channels * patch * patch)
    return linear(patches, weight.reshape(out, channels * patch * patch), bias)


def reference_patch_convolution(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``patch_convolution`` patch by patch; images enter with their channels moved last."""
    patch = weight.shape[-1]
    patches = x.unfold(1, patch, patch).unfold(2, patch, patch)
    y = torch.einsum("brcxij,oxij->brco", patches, weight)
    return y if bias is None else y + bias


def strided_pointwise(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int) -> Tensor:
    """A 1 x 1 convolution with a stride, as a slice and a product.

    torch's own dies on channels_last memory in the gradient of the weight when there are 2 to 15 channels (oneDNN issue
    6035), so it is never called.

    Args:
        x: (batch, height, width, channels).
        weight: (out, channels).
        bias: (out,).
        stride: Of both axes.

    Returns:
        (batch, ceil(height / stride), ceil(width / stride), out).
    """
    return linear(x[:, ::stride, ::stride], weight, bias)
