"""The weighted matrix product, with activation and residual, through the fastest kernel for this size and machine.

Stateless: no packed copy of a weight is kept, so a weight changed by whatever means is never stale. A raw kernel
computes only what nothing watches. Under autograd, autocast, tracing, compilation, export, functorch transforms,
forward derivatives and modes that intercept calls, for tensor subclasses, other dtypes, devices and layouts, and small
products, the result is plainly ``act(torch.nn.functional.linear(x, weight, bias)) + add``.
"""

import functools
import itertools
from typing import Literal

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

from anyformer.core.errors import UsageError, nearest
from anyformer.ops import kernels
from anyformer.ops.matrix_vector import asked, matrix_vector, plain

Activation = Literal["gelu", "relu"]

_ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu}
_IN_PLACE = {"gelu": torch._C._nn.gelu_, "relu": torch.relu_}  # pyright: ignore[reportAttributeAccessIssue]
_HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_PLAIN = (Tensor, Parameter)

# oneDNN has a fixed cost of about 13 microseconds a call, torch's own path 2: smaller products never repay it
_SMALLEST_PRODUCT = 2_000_000  # rows * in * out
_SMALLEST_STREAM = 250_000  # in * out, where up to 8 rows leave the time to reading the weight
_SMALLEST_VECTOR = 30_000  # in * out, for the one row of a step of decoding

_LARGEST_SIDE, _LARGEST_PROBE = 4096, 2**30  # beyond them a longer probe tells nothing new
_STREAMED = 4 * 1024 * 1024  # weights that take turns where few rows read them, as layers do in decoding
_VECTOR_STREAMED = 16 * 1024 * 1024  # where one row does: more than the caches of a core hold


def linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, act: Activation | None = None, add: Tensor | None = None
) -> Tensor:
    """``act(x @ weight.T + bias) + add``; raw kernels differ from the plain form by rounding only.

    Costs prod(leading) * in * out multiply-adds, and one to two microseconds for choosing the kernel.

    Args:
        x: (*leading, in).
        weight: (out, in).
        bias: (out,).
        act: ``"gelu"`` (exact, by the error function), ``"relu"`` or None.
        add: Broadcastable with (*leading, out): the residual.

    Returns:
        (*leading, out).

    Raises:
        UsageError: The activation is not one of the above.
    """
    if act is not None and act not in _ACTIVATIONS:
        raise UsageError(f"linear has no activation {act!r}: use gelu, relu or None{nearest(str(act), _ACTIVATIONS)}")
    if act is None and asked():
        y = _of_vector(x, weight, bias, add)
        if y is not None:
            return y
    size = _size_class(x, weight)
    if (
        size is None
        or (act is None and add is None and kernels.known("linear", size) == "mkl")  # which the plain product is
        or not _unwatched(x, weight, bias, add)
    ):
        y = F.linear(x, weight, bias)
        if act is not None:
            y = _ACTIVATIONS[act](y)
        return y if add is None else y + add
    operation = "linear gelu" if act == "gelu" else "linear"
    compute = _onednn if kernels.choose(operation, size, _contestants) == "onednn" else _mkl
    return compute(x, weight, bias, act, add)


def _size_class(x: Tensor, weight: Tensor) -> str | None:
    """The class of this product's size, None where it must be plain; most calls of a small model end here.

    What records a call is asked before any size: a tracer would record the comparison.
    """
    if type(x) not in _PLAIN or is_compiling() or _is_tracing() or _is_torch_function_mode_enabled():
        return None
    products = x.numel() * weight.shape[0]
    weights = weight.numel()
    if products < _SMALLEST_PRODUCT and weights < _SMALLEST_STREAM:
        return None
    rows = products // weights if weights else 0
    return _class_name(rows, weight.shape[-1], weight.shape[0]) if rows else None


@functools.lru_cache(maxsize=4096)
def _class_name(rows: int, features_in: int, features_out: int) -> str:
    """``"rows x in x out"``, each rounded down to three binary digits: neither kernel wins by the number of products alone.

    On one processor oneDNN was 14 % faster for 196 x 384 x 1536 and 7 % slower for 784 x 192 x 768, as many products.
    """

    def rounded(size: int) -> int:
        shift = max(size.bit_length() - 3, 0)
        return size >> shift << shift

    features_in, features_out = (rounded(min(size, _LARGEST_SIDE)) for size in (features_in, features_out))
    return f"{rounded(min(rows, _LARGEST_PROBE // (features_in * features_out)))}x{features_in}x{features_out}"


def _unwatched(x: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None) -> bool:
    """Whether these are ordinary dense float32 tensors of fitting shapes, and only the result is wanted of the call."""
    if (
        not _HAS_ONEDNN
        or _len_torch_dispatch_stack()
        or peek_interpreter_stack() is not None
        or forward_ad._current_level >= 0
        or _is_any_autocast_enabled()
        or x.is_nested
        or not (_dense(x) and _dense(weight) and weight.is_contiguous() and weight.ndim == 2)
    ):
        return False
    leading, (features_out, features_in) = x.shape, weight.shape
    recorded = torch.is_grad_enabled()
    if leading[-1] != features_in or (recorded and (x.requires_grad or weight.requires_grad)):
        return False
    if bias is not None and not (
        # oneDNN reads a strided bias as if it were dense, and gives wrong numbers without an error
        _dense(bias)
        and bias.is_contiguous()
        and bias.shape == (features_out,)
        and not (recorded and bias.requires_grad)
    ):
        return False
    return add is None or (
        _dense(add) and add.shape == (*leading[:-1], features_out) and not (recorded and add.requires_grad)
    )


def _dense(tensor: Tensor) -> bool:
    return type(tensor) in _PLAIN and tensor.dtype is torch.float32 and tensor.is_cpu and tensor.layout is torch.strided


def _mkl(x: Tensor, weight: Tensor, bias: Tensor | None, act: Activation | None, add: Tensor | None) -> Tensor:
    y = F.linear(x, weight, bias)  # new and ours alone, so what follows may overwrite it
    if act is not None:
        _IN_PLACE[act](y)
    return y if add is None else y.add_(add)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, act: Activation | None, add: Tensor | None) -> Tensor:
    if act is None and add is not None:
        return torch.ops.mkldnn._linear_pointwise.binary(x, add, weight, bias, "add")
    # algorithm "none" is the exact GELU; the other one is the approximation by tanh
    y = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, act or "none", [], "none" if act == "gelu" else "")
    return y if add is None else y.add_(add)


def _of_vector(x: Tensor, weight: Tensor, bias: Tensor | None, add: Tensor | None) -> Tensor | None:
    """The product for the one row of a step of decoding, where the compiled kernel is the fastest."""
    weights, (features_out, features_in) = weight.numel(), weight.shape
    if weights < _SMALLEST_VECTOR or x.numel() != features_in or not plain(x, weight):
        return None
    if not all(other is None or (other.numel() == features_out and plain(other)) for other in (bias, add)):
        return None
    size = _class_name(1, features_in, features_out)
    kernel = kernels.known("matrix vector", size) or kernels.choose("matrix vector", size, _contestants)
    return matrix_vector(weight, x, bias, add) if kernel == "compiled" else None


def _contestants(operation: str, size: str) -> kernels.Contestants:
    rows, features_in, features_out = map(int, size.split("x"))
    turns = max(1, min(4, _STREAMED // (features_in * features_out))) if rows <= 8 else 1
    if operation == "matrix vector":
        turns = max(1, _VECTOR_STREAMED // (features_in * features_out))
    x = torch.full((rows, features_in), 0.5)
    weights = itertools.cycle([torch.full((features_out, features_in), 0.01) for _ in range(turns)])
    bias = torch.zeros(features_out)
    if operation == "matrix vector":
        return {
            "mkl": lambda: _mkl(x, next(weights), bias, None, None),
            "compiled": lambda: matrix_vector(next(weights), x, bias),
        }
    if operation == "linear":
        return {
            "mkl": lambda: _mkl(x, next(weights), bias, None, None),
            "onednn": lambda: _onednn(x, next(weights), bias, None, None),
        }
    # an activated product feeds another one: what a kernel gains alone it can lose again when the next one, whose threads
    # share the work in another way, finds its input in the caches of other cores
    back = torch.full((features_in, features_out), 0.01)
    return {
        "mkl": lambda: F.linear(_mkl(x, next(weights), bias, "gelu", None), back),
        "onednn": lambda: F.linear(_onednn(x, next(weights), bias, "gelu", None), back),
    }
