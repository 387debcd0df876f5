"""Matrices times single vectors, as decoding has them: they take as long as reading the matrices from memory.

In C++ where a compiler is found (``matrix_vector.cpp``), which reads from eight places at once and with all threads: 1.3
times the rate of MKL's product and 1.6 times that of torch's attention to 8,192 keys on one processor; else in plain torch.
Whoever calls asks ``plain`` first whether anything watches, such as autograd or a tracer: a raw kernel gives results alone.
"""

import ctypes
import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch._C import (
    _is_any_autocast_enabled,
    _is_torch_function_mode_enabled,
    _is_tracing,
    _len_torch_dispatch_stack,
)
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.nn import Parameter
from torch.nn import functional as F

from anyformer.ops import extension

LANES = 16  # widths are multiples of it
_WORTH_THREADS = 65_536  # numbers of all matrices; fewer are read before another thread has begun
_PLAIN = (Tensor, Parameter)


class _Here(threading.local):
    """What is known of this thread: the libraries by name while nothing watches, else None."""

    libraries: dict[str, ctypes.CDLL | None] | None = None


_here = _Here()


@contextmanager
def unwatched() -> Iterator[None]:
    """Ask once for all calls inside whether anything watches: the caches of a step of decoding are cold, and asking costs.

    Inside, nothing may begin to record, trace or intercept.
    """
    before = _here.libraries
    if before is None and not torch.is_grad_enabled() and not _watched():
        _here.libraries = {name: extension.library(name) for name in ("matrix_vector", "diagonal_scan")}
    try:
        yield
    finally:
        _here.libraries = before


def asked() -> bool:
    """Whether this is a step of decoding that nothing watches."""
    return _here.libraries is not None


def library(name: str) -> ctypes.CDLL | None:
    """The functions of ``name.cpp``, as ``extension.library``."""
    return extension.library(name) if _here.libraries is None else _here.libraries[name]


def _watched() -> bool:
    return bool(
        is_compiling()
        or _is_tracing()
        or _is_torch_function_mode_enabled()
        or _len_torch_dispatch_stack()
        or peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or _is_any_autocast_enabled()
    )


def plain(*tensors: Tensor) -> bool:
    """Whether these are contiguous float32 tensors of the processor, and nothing but the result is wanted of a call.

    Nothing records gradients, traces, compiles, casts or intercepts calls; a raw kernel may read and write the numbers.
    """
    recorded = False
    if _here.libraries is None:
        if _watched():
            return False
        recorded = torch.is_grad_enabled()
    for x in tensors:
        if (
            type(x) not in _PLAIN
            or x.dtype is not torch.float32
            or not x.is_cpu
            or x.layout is not torch.strided
            or (recorded and x.requires_grad)
            or not x.is_contiguous()
        ):
            return False
    return True


def compiled() -> bool:
    """Whether the kernels run in C++ here."""
    return library("matrix_vector") is not None


def matrix_vector(weight: Tensor, x: Tensor, bias: Tensor | None = None, add: Tensor | None = None) -> Tensor:
    """``W x + bias + add`` for ``plain`` tensors.

    Args:
        weight: (out, in).
        x: (*ones, in), a single vector.
        bias: (out,).
        add: (*ones, out).

    Returns:
        (*ones, out).
    """
    kernels = library("matrix_vector")
    out, width = weight.shape
    if kernels is None or width % LANES or not out:
        y = F.linear(x, weight, bias)
        return y if add is None else y + add
    y = x.new_empty(*x.shape[:-1], out)
    _rows_of(kernels)(
        _sizes(1, 1, out, width, 0),
        weight.data_ptr(),
        x.data_ptr(),
        None if bias is None else bias.data_ptr(),
        None if add is None else add.data_ptr(),
        y.data_ptr(),
    )
    return y


def fits(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether ``attend_token`` takes these."""
    return (
        q.shape[0] == q.shape[2] == 1
        and not (q.shape[3] % LANES or v.shape[3] % LANES)
        and k.shape[:2] == keys.shape[:2]
        and compiled()
        and plain(q, k, v, keys, values)
    )


def attend_token(
    q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, slot: int, length: int, scale: float
) -> Tensor:
    """Put one token into a cache, and give its softmax attention to the first slots; ask ``fits`` before.

    Args:
        q: (1, heads, 1, head_dim).
        k: (1, kv_heads, 1, head_dim); kv_heads divides heads.
        v: (1, kv_heads, 1, width).
        keys: (1, kv_heads, slots, head_dim), of a cache; overwritten at the slot.
        values: (1, kv_heads, slots, width); likewise.
        slot: Where the token goes.
        length: How many slots are read.
        scale: Factor of the products.

    Returns:
        (1, heads, 1, width).
    """
    kernels = library("matrix_vector")
    (_, heads, _, head_dim), (_, kv_heads, slots, width) = q.shape, values.shape
    out = q.new_empty(1, heads, 1, width)
    sizes = _sizes(kv_heads, heads // kv_heads, length, head_dim, slots * head_dim)
    addresses = (tensor.data_ptr() for tensor in (q, k, v, keys, values, out))
    _attend_token(kernels)(sizes, width, slot, scale, *addresses)
    return out


def turn_token(x: Tensor, position: Tensor, pair: Tensor, step: float) -> Tensor | None:
    """Rotary embedding of one token: pairs (i, i + half) of channels turned by ``position * exp(pair_i * step)``.

    Args:
        x: (1, heads, 1, 2 * half).
        position: (1,), int64.
        pair: (half,), int64.
        step: Logarithm of the ratio of a frequency to the one before.

    Returns:
        Like x; None where torch is to compute it.
    """
    kernels = library("matrix_vector")
    whole = position.dtype is pair.dtype is torch.int64 and position.is_cpu and position.numel() == 1
    if kernels is None or x.shape[0] != 1 or x.shape[2] != 1 or not whole or not plain(x):
        return None
    y = torch.empty_like(x)
    addresses = (tensor.data_ptr() for tensor in (position, pair, x, y))
    _turn_token(kernels)(x.shape[1], pair.shape[0], step, *addresses)
    return y


def gate_token(x: Tensor) -> Tensor | None:
    """``silu(gate) * up`` of one token, where ``x``, (1, 1, 2 * width), has both; None where torch is to compute it."""
    kernels = library("matrix_vector")
    width = x.shape[-1] // 2
    if kernels is None or x.numel() != 2 * width or not plain(x):
        return None
    y = x.new_empty(1, 1, width)
    _gate_token(kernels)(width, x.data_ptr(), y.data_ptr())
    return y


class _Sizes(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int64) for name in ["heads", "group", "rows", "width", "head_stride", "parts", "threads"]
    ]


@functools.lru_cache(maxsize=64)
def _sizes_of(threads: int, heads: int, group: int, rows: int, width: int, head_stride: int) -> _Sizes:
    return _Sizes(heads, group, rows, width, head_stride, 1 if heads % threads == 0 else threads, threads)


def _sizes(heads: int, group: int, rows: int, width: int, head_stride: int) -> _Sizes:
    threads = torch.get_num_threads() if heads * rows * width >= _WORTH_THREADS else 1
    return _sizes_of(threads, heads, group, rows, width, head_stride)


def _declared(name: str, *arguments: type) -> Callable[[ctypes.CDLL | None], Callable[..., None]]:
    @functools.cache
    def declared(kernels: ctypes.CDLL | None) -> Callable[..., None]:
        function = getattr(kernels, name)
        function.argtypes, function.restype = arguments, None
        return function

    return declared


_ADDRESS, _WHOLE = ctypes.c_void_p, ctypes.c_int64
_rows_of = _declared("rows_of", _Sizes, *(_ADDRESS,) * 5)
_attend_token = _declared("attend_token", _Sizes, _WHOLE, _WHOLE, ctypes.c_float, *(_ADDRESS,) * 6)
_gate_token = _declared("gate_token", _WHOLE, _ADDRESS, _ADDRESS)
_turn_token = _declared("turn_token", _WHOLE, _WHOLE, ctypes.c_double, *(_ADDRESS,) * 4)
