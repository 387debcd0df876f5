"""The selective scan: every channel carries ``n`` numbers, and its input decides how fast they decay.

``h_t = exp(step_t a) h_{t-1} + step_t b_t x_t``, ``y_t = c_t h_t + d x_t``, for each channel by itself.
Source: Gu and Dao 2023, "Mamba", algorithm 2 and equation 2 (``b`` by Euler's rule, as its code has it).
"""

import ctypes
import functools
from collections.abc import Callable

import torch
from torch import Tensor

from anyformer.ops.diagonal_scan import check_shapes, scan
from anyformer.ops.matrix_vector import library, plain
from anyformer.ops.packed import check_row


def selective_scan(
    x: Tensor,
    step: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    *,
    d: Tensor | None = None,
    state: Tensor | None = None,
    offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Scan the tokens from a state, in float32 at least. Costs batch * tokens * channels * n exponentials.

    Args:
        x: (batch, tokens, channels).
        step: (batch, tokens, channels), not negative: how much of each token enters the state.
        a: (channels, n), not positive: the rates of decay.
        b: (batch, tokens, n), how a token enters each of the n numbers, shared by all channels.
        c: (batch, tokens, n), how they are read.
        d: (channels,), the share of the input that goes straight to the output.
        state: (batch, channels, n), zeros when None.
        offsets: (sequences + 1,) int64, where sequences packed along the tokens of one row start, and the last ends;
            the states are then (sequences, channels, n).

    Returns:
        Outputs like x, and the state after the last token, of float32 at least.

    Raises:
        UsageError: The shapes do not fit, packed sequences do not stand in a batch of 1, or their offsets do not rise
            from 0 to the number of tokens.
    """
    batch, tokens, channels = x.shape
    n = a.shape[-1]
    sequences = batch if offsets is None else offsets.shape[0] - 1
    dtype = functools.reduce(torch.promote_types, (t.dtype for t in (x, step, a, b, c)), torch.float32)
    if d is None:
        d = x.new_zeros(channels)
    if state is None:
        state = torch.zeros(sequences, n, channels, device=x.device, dtype=dtype).mT
    per_token = (batch, tokens, n)
    check_shapes(
        "selective_scan",
        {"step": step, "a": a, "b": b, "c": c, "d": d, "state": state},
        (tuple(x.shape), (channels, n), per_token, per_token, (channels,), (sequences, channels, n)),
    )
    if offsets is not None:
        check_row(batch)
    # the state's last axis is that of n outside, of channels inside: as the state of the next call it needs no copy
    x_, step_, a, b, c, d, state = (tensor.to(dtype) for tensor in (x, step, a, b, c, d, state))
    if tokens == 1 and offsets is None:
        y, last = _one_token(x_[:, 0], step_[:, 0], a.mT, b[:, 0], c[:, 0], d, state.mT)
        y = y[:, None]
    else:
        if offsets is None:
            offsets = torch.arange(batch + 1, device=x.device) * tokens
        b, c = b.flatten(0, 1)[:, None], c.flatten(0, 1)[:, None]
        y, last = scan(x_.flatten(0, 1), step_.flatten(0, 1), a.mT, b, c, d, state.mT, offsets)
    return y.view(x.shape).to(x.dtype), last.mT


def scan_token(
    x: Tensor, step: Tensor, log_rates: Tensor, b: Tensor, c: Tensor, d: Tensor, gate: Tensor, state: Tensor
) -> Tensor | None:
    """``silu(gate)`` times the scan of one token of one row, in C++ where a compiler is found; the state goes on.

    Args:
        x: (1, 1, channels).
        step: (1, 1, channels).
        log_rates: (channels, n), the logarithms of the negative rates.
        b: (1, 1, n).
        c: (1, 1, n).
        d: (channels,).
        gate: (1, 1, channels).
        state: (1, channels, n), of which the channels lie beside each other in memory; it is overwritten.

    Returns:
        Outputs like x; None where torch is to compute them: no compiler, other types, or gradients are wanted.
    """
    channels, n = log_rates.shape
    fits = x.shape == step.shape == gate.shape == (1, 1, channels) and b.shape == c.shape == (1, 1, n)
    if not fits or state.shape != (1, channels, n) or not plain(x, step, log_rates, b, c, d, gate, state.mT):
        return None
    kernels = library("diagonal_scan")
    if kernels is None:
        return None
    y = torch.empty_like(x)
    tensors = x, step, log_rates, b, c, d, gate, state, y
    _token_function(kernels)(channels, n, *(tensor.data_ptr() for tensor in tensors))
    return y


@functools.cache
def _token_function(kernels: ctypes.CDLL) -> Callable[..., None]:
    function = kernels.scan_token_float32
    function.argtypes, function.restype = [*(ctypes.c_int64,) * 2, *(ctypes.c_void_p,) * 9], None
    return function


def reference_selective_scan(
    x: Tensor,
    step: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    *,
    d: Tensor | None = None,
    state: Tensor | None = None,
    offsets: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same, token by token; see ``selective_scan`` for the shapes."""
    if offsets is not None:
        ends = offsets.tolist()
        outs, states = [x[:, :0]], []
        for i in range(len(ends) - 1):
            part = slice(ends[i], ends[i + 1])
            start = None if state is None else state[i : i + 1]
            out, last = reference_selective_scan(x[:, part], step[:, part], a, b[:, part], c[:, part], d=d, state=start)
            outs.append(out)
            states.append(last)
        return torch.cat(outs, dim=1), torch.cat(states)
    h = x.new_zeros(x.shape[0], *a.shape) if state is None else state
    y = []
    for t in range(x.shape[1]):
        decay = torch.exp(step[:, t, :, None] * a)
        h = decay * h + step[:, t, :, None] * b[:, t, None, :] * x[:, t, :, None]
        y.append(torch.einsum("bcn,bn->bc", h, c[:, t]))
    out = torch.stack(y, dim=1) if y else torch.zeros_like(x)
    return (out if d is None else out + d * x), h


def _one_token(
    x: Tensor, step: Tensor, rates: Tensor, b: Tensor, c: Tensor, d: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    decay = torch.exp(step[:, None] * rates)
    state = torch.addcmul(b[:, :, None] * (step * x)[:, None], decay, state)
    return torch.addcmul((c[:, :, None] * state).sum(1), d, x), state
