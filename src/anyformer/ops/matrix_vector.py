"""Matrices times single vectors, as decoding has them: they take as long as reading the matrices from memory.

In C++ where a compiler is found (``matrix_vector.cpp``), which reads from eight places at once and with all threads: 1.3
times the rate of MKL's and twice that of torch's attention to 8,192 keys on one processor; else in plain torch. Inside,
only results are wanted: whoever calls asks ``plain`` first whether anything watches.
"""

import ctypes
import functools
from collections.abc import Callable

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


def plain(*tensors: Tensor) -> bool:
    """Whether these are contiguous float32 tensors of the processor, and nothing but the result is wanted of a call.

    Nothing records gradients, traces, compiles, casts or intercepts calls; a raw kernel may read and write the numbers.
    """
    if (
        is_compiling()
        or _is_tracing()
        or _is_torch_function_mode_enabled()
        or _len_torch_dispatch_stack()
        or peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or _is_any_autocast_enabled()
    ):
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
    return extension.library("matrix_vector") is not None


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
    library = extension.library("matrix_vector")
    out, width = weight.shape
    if library is None or width % LANES or not out:
        y = F.linear(x, weight, bias)
        return y if add is None else y + add
    y = x.new_empty(*x.shape[:-1], out)
    _function(library, "rows_of", 5)(
        _sizes(1, 1, out, width, 0),
        weight.data_ptr(),
        x.data_ptr(),
        None if bias is None else bias.data_ptr(),
        None if add is None else add.data_ptr(),
        y.data_ptr(),
    )
    return y


def fits(q: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether ``one_query`` takes these: each head's keys and values beside each other, of lanes in number."""
    return (
        q.shape[0] == q.shape[2] == 1
        and not (q.shape[3] % LANES or values.shape[3] % LANES)
        and compiled()
        and plain(q, keys, values)
    )


def one_query(q: Tensor, keys: Tensor, values: Tensor, length: int, scale: float) -> Tensor:
    """Softmax attention of one query a head to the first keys of a cache; ask ``fits`` before.

    Args:
        q: (1, heads, 1, head_dim).
        keys: (1, kv_heads, slots, head_dim), all of a cache; kv_heads divides heads.
        values: (1, kv_heads, slots, width).
        length: How many slots are read.
        scale: Factor of the products.

    Returns:
        (1, heads, 1, width).
    """
    library = extension.library("matrix_vector")
    (_, heads, _, head_dim), (_, kv_heads, slots, width) = q.shape, values.shape
    group = heads // kv_heads
    scores = q.new_empty(heads, length)
    sizes = _sizes(kv_heads, group, length, head_dim, slots * head_dim)
    _function(library, "rows_of", 5)(sizes, keys.data_ptr(), q.data_ptr(), None, None, scores.data_ptr())
    weights = torch.softmax(scores.mul_(scale), 1)
    out = q.new_empty(1, heads, 1, width)
    sizes = _sizes(kv_heads, group, length, width, slots * width)
    _function(library, "columns_of", 3)(sizes, values.data_ptr(), weights.data_ptr(), out.data_ptr())
    return out


class _Sizes(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int64) for name in ["heads", "group", "rows", "width", "head_stride", "parts", "threads"]]


@functools.lru_cache(maxsize=64)
def _sizes_of(threads: int, heads: int, group: int, rows: int, width: int, head_stride: int) -> _Sizes:
    return _Sizes(heads, group, rows, width, head_stride, 1 if heads % threads == 0 else threads, threads)


def _sizes(heads: int, group: int, rows: int, width: int, head_stride: int) -> _Sizes:
    threads = torch.get_num_threads() if heads * rows * width >= _WORTH_THREADS else 1
    return _sizes_of(threads, heads, group, rows, width, head_stride)


@functools.cache
def _function(library: ctypes.CDLL, name: str, tensors: int) -> Callable[..., None]:
    function = getattr(library, name)
    function.argtypes, function.restype = [_Sizes, *(ctypes.c_void_p,) * tensors], None
    return function
