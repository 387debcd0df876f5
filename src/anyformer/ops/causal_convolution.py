"""The causal depth-wise convolution: each channel's output is a weighted sum of its last few inputs.

The short convolution of Mamba and its relatives (Gu and Dao 2023, "Mamba", figure 3), with the last inputs as its state.
Many tokens go through torch's convolution of images of height 1, whose channels_last memory is that of the features:
6 ms for 8,192 tokens of 512 channels on one thread, where its convolution of sequences takes 57.
"""

import ctypes
import functools
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from anyformer.core.errors import UsageError, nearest
from anyformer.ops.matrix_vector import library, plain
from anyformer.ops.packed import check_row

Activation = Literal["silu"]

_FEW = 16  # tokens for which sums of a product each take less time than preparing a convolution
_SEGMENT = 128  # tokens whose products are summed at a time for the weight's gradient, to stay in cache


def causal_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    state: Tensor | None = None,
    offsets: Tensor | None = None,
    activation: Activation | None = None,
) -> tuple[Tensor, Tensor]:
    """``out_t = activation(bias + sum_j weight_j x_(t - kernel + 1 + j))``, from a state.

    Costs batch * tokens * channels * kernel multiply-adds and one copy of x. Its gradients have none.

    Args:
        x: (batch, tokens, channels).
        weight: (channels, kernel), the last column for the present token; used in x's dtype, as are bias and state.
        bias: (channels,).
        state: (batch, kernel - 1, channels), the inputs before the first; zeros when None.
        offsets: (sequences + 1,) int64, where sequences packed along the tokens of one row start, and the last ends;
            the states are then (sequences, kernel - 1, channels).
        activation: ``"silu"`` or None.

    Returns:
        Outputs like x, and the state after the last token.

    Raises:
        UsageError: The activation is not one of the above, or packed sequences do not stand in a batch of 1.
    """
    if activation not in (None, "silu"):
        raise UsageError(
            f"causal_convolution has no activation {activation!r}: use silu or None{nearest(str(activation), ['silu'])}"
        )
    batch, tokens, channels = x.shape
    before = weight.shape[1] - 1
    sequences = batch if offsets is None else offsets.shape[0] - 1
    if state is None:
        state = x.new_zeros(sequences, before, channels)
    weight, bias, state = weight.to(x.dtype), None if bias is None else bias.to(x.dtype), state.to(x.dtype)
    if offsets is None:
        x = torch.cat((state, x), dim=1)
        return _convolve(x, weight, bias, activation), x[:, tokens:].clone()
    check_row(batch)
    # each sequence after its state: what is computed at the places of the states is left out again
    token, sequence = torch.arange(tokens, device=x.device), torch.arange(sequences, device=x.device)
    places = token + before * torch.searchsorted(offsets[1:], token, right=True)  # of each token's first input
    first, last = (
        (ends + before * sequence)[:, None] + torch.arange(before, device=x.device)
        for ends in (offsets[:-1], offsets[1:])
    )
    x = x.new_zeros(1, tokens + sequences * before, channels).index_copy(1, places + before, x)
    x = x.index_copy(1, first.flatten(), state.reshape(1, -1, channels))
    if sequences == 0:
        return x, state
    return _convolve(x, weight, bias, activation)[:, places], x[0, last]


def convolve_token(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> Tensor | None:
    """``causal_convolution`` of one token of one row, with SiLU, in C++ where a compiler is found; the state goes on.

    Args:
        x: (1, 1, channels).
        weight: (channels, kernel) or (channels, 1, kernel).
        bias: (channels,).
        state: (1, kernel - 1, channels); it is overwritten.

    Returns:
        Outputs like x; None where torch is to compute them: no compiler, other types, or gradients are wanted.
    """
    tensors = (x, weight, state) if bias is None else (x, weight, state, bias)
    channels, kernel = weight.shape[0], weight.shape[-1]
    fits = x.shape == (1, 1, channels) and state.shape == (1, kernel - 1, channels)
    if not fits or not plain(*tensors):
        return None
    kernels = library("diagonal_scan")
    if kernels is None:
        return None
    y = torch.empty_like(x)
    function = _token_function(kernels)
    address = None if bias is None else bias.data_ptr()
    function(channels, kernel, x.data_ptr(), weight.data_ptr(), address, state.data_ptr(), y.data_ptr())
    return y


@functools.cache
def _token_function(kernels: ctypes.CDLL) -> Callable[..., None]:
    function = kernels.convolve_token_float32
    function.argtypes, function.restype = [*(ctypes.c_int64,) * 2, *(ctypes.c_void_p,) * 5], None
    return function


def reference_causal_convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    state: Tensor | None = None,
    offsets: Tensor | None = None,
    activation: Activation | None = None,
) -> tuple[Tensor, Tensor]:
    """The same, token by token; see ``causal_convolution`` for the shapes."""
    batch, tokens, channels = x.shape
    before = weight.shape[1] - 1
    ends = [0, tokens] if offsets is None else offsets.tolist()
    rows = batch if offsets is None else len(ends) - 1
    states = torch.zeros(rows, before, channels, dtype=x.dtype) if state is None else state
    out, after = [x[:, :0]], []
    for i in range(len(ends) - 1):
        window = states if offsets is None else states[i : i + 1]
        for t in range(ends[i], ends[i + 1]):
            window = torch.cat((window, x[:, t : t + 1]), dim=1)
            y = torch.einsum("bkc,ck->bc", window, weight)
            y = y if bias is None else y + bias
            out.append((y * torch.sigmoid(y) if activation == "silu" else y)[:, None])
            window = window[:, 1:]
        after.append(window)
    return torch.cat(out, dim=1), torch.cat(after) if after else states


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation | None) -> Tensor:
    """Over all places that have their inputs: (batch, tokens + kernel - 1, channels) to (batch, tokens, channels)."""
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, weight, bias))
    if wanted and not torch.compiler.is_compiling():  # which fuses the gradients in its own way
        return _Convolution.apply(x, weight, bias, activation)
    y = _sums(x, weight, bias)
    return F.silu(y, inplace=True) if activation else y


def _sums(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    tokens = x.shape[1] - weight.shape[1] + 1
    if tokens > _FEW and x.dtype != torch.float64:  # in float64 torch convolves one channel after the other
        y = F.conv2d(x.mT[:, :, None], weight[:, None, None], bias, groups=weight.shape[0])
        return y[:, :, 0].mT
    dtype = torch.promote_types(x.dtype, torch.float32)
    if tokens == 1:
        y = (x.to(dtype) * weight.to(dtype).mT).sum(1, keepdim=True)
        return (y if bias is None else y + bias).to(x.dtype)
    y = torch.zeros((), device=x.device, dtype=dtype) if bias is None else bias.to(dtype)
    for j in range(weight.shape[1]):
        y = torch.addcmul(y, x[:, j : j + tokens].to(dtype), weight[:, j].to(dtype))
    return y.to(x.dtype)


class _Convolution(torch.autograd.Function):
    """Its gradients are a convolution from the other side and a few sums: a fifth of the time of torch's own."""

    @staticmethod
    def forward(ctx, x, weight, bias, activation):
        ctx.save_for_backward(x, weight, bias)
        ctx.activation = activation
        y = _sums(x, weight, bias)
        return F.silu(y, inplace=True) if activation else y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight, bias = ctx.saved_tensors
        tokens, kernel = grad.shape[1], weight.shape[1]
        if ctx.activation:
            grad = torch.ops.aten.silu_backward(grad, _sums(x, weight, bias))
        grad_x = _sums(F.pad(grad, (0, 0, kernel - 1, kernel - 1)), weight.flip(1), None)
        grad_weight = torch.zeros_like(weight, dtype=torch.promote_types(x.dtype, torch.float32))
        for start in range(0, tokens, _SEGMENT):
            of_segment = grad[:, start : start + _SEGMENT].to(grad_weight.dtype)
            for j in range(kernel):
                inputs = x[:, start + j : start + j + of_segment.shape[1]]
                grad_weight[:, j] += (of_segment * inputs).sum((0, 1))
        return grad_x, grad_weight.to(weight.dtype), None if bias is None else grad.sum((0, 1)), None
