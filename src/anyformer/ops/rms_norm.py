"""Root mean square normalisation (Zhang and Sennrich 2019, arXiv:1910.07467, equation 4)."""

import ctypes
import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer.ops.matrix_vector import library, plain


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x / sqrt(mean(x ** 2) + eps) * weight`` over the last axis.

    A single row, as in decoding, goes through C++ where a compiler is found: 4 microseconds where torch's eight operators
    take 11.

    Args:
        x: (..., channels).
        weight: (channels,).
        eps: Added to the mean square.
    """
    width = weight.shape[0]
    if x.numel() == width and width and plain(x, weight):
        kernels = library("matrix_vector")
        if kernels is not None:
            y = torch.empty_like(x)
            _function(kernels)(width, eps, x.data_ptr(), weight.data_ptr(), y.data_ptr())
            return y
    return F.rms_norm(x, weight.shape, weight, eps)


@functools.cache
def _function(kernels: ctypes.CDLL) -> Callable[..., None]:
    function = kernels.root_mean_square
    function.argtypes = [ctypes.c_int64, ctypes.c_float, *(ctypes.c_void_p,) * 3]
    function.restype = None
    return function
