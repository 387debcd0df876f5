"""What the operators of torch compute: formulas for those that multiply and add, and a list of those that are free.

The unit of a formula is the floating point operation; a multiply-add is two of them. The conventions:

- A matrix product, a convolution (its padding too) and attention count one multiply-add for each pair of numbers that
  meet. A causal mask does not halve attention, as in all of torch's counts; grouped keys save memory, not arithmetic.
- A complex Fourier transform of n points counts 5 n log2 n operations, whatever n and the algorithm, a real one half of
  that; over several dimensions n is their product.
- A cumulative sum, product or maximum counts one operation an element, and so does each step of a logarithmic one.
- Sampling between the points of a grid counts one multiply-add for each weighted value: 2, 4 or 8 linear, 16 cubic.
- A recurrent layer counts its two matrix products a step.
- Solving a triangular system counts half of the product with its matrix.
- A diagonal scan counts three multiply-adds for each number of the state at each token: entering, decay, reading.
- A pass over the elements is free: copies, elementwise functions, reductions, norms, softmax, pooling.

An operator of one's own is counted when its formula is in torch's registry (``torch.utils.flop_counter``).
"""

from math import log2, prod
from typing import Any

import torch

from anyformer.ops import diagonal_scan as _registers_the_scan  # noqa: F401 - torch.ops knows it from then on

aten = torch.ops.aten


def _attention(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    *heads, queries, head_dim = query
    return 2 * prod(heads) * queries * key[-2] * (head_dim + value[-1])


def _vector(*shapes: Any, out_shape: Any = None, **_: Any) -> int:
    return 2 * max(prod(shape) for shape in shapes if isinstance(shape, tuple | torch.Size))


def _outer(vector: Any, left: Any, right: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 2 * prod(left) * prod(right)


def _product(left: Any, right: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 2 * prod(left) * right[-1]


def _product_transposed(left: Any, right: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Of weights ``(outputs, inputs)``."""
    return 2 * prod(left) * right[0]


def _distances(left: Any, right: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return 2 * prod(left) * right[-2]


def _recurrent_layer(steps: Any, from_input: Any, from_state: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Of input ``(time, batch, inputs)`` and the two weights of all gates."""
    return 2 * prod(steps[:-1]) * (prod(from_input) + prod(from_state))


def _transform(shape: Any, dims: Any, points: int) -> int:
    """Of so many points, repeated over the dimensions that are not transformed."""
    repeats = prod(size for index, size in enumerate(shape) if index not in {dim % len(shape) for dim in dims})
    return round(repeats * 5 * points * log2(points)) if points > 1 else 0


def _complex_transform(shape: Any, dims: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return _transform(shape, dims, prod(shape[dim] for dim in dims))


def _real_transform(shape: Any, dims: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return _complex_transform(shape, dims) // 2


def _real_inverse(shape: Any, dims: Any, normalization: Any, size: int, *_: Any, out_shape: Any = None) -> int:
    return _transform(shape, dims, prod(shape[dim] for dim in dims[:-1]) * size) // 2


def _cumulative(shape: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    return prod(shape)


def _grid_sample(shape: Any, grid: Any, interpolation: int = 0, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Interpolation 0 is linear, 1 takes the nearest, 2 is cubic."""
    values = {0: 2 ** grid[-1], 1: 0, 2: 4 ** grid[-1]}[interpolation]
    return 2 * values * shape[1] * prod(grid[:-1])


def _triangular(matrix: Any, right: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Half of a product with a square matrix."""
    return prod(right) * matrix[-1]


def _diagonal_scan(x: Any, step: Any, rates: Any, entering: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Of ``(tokens, channels)`` and what enters, whose last dimension is that of the state."""
    return 2 * 3 * prod(x) * entering[-1]


def _resize(values: int) -> Any:
    def formula(*_: Any, out_shape: Any = None, **__: Any) -> int:
        return 2 * values * prod(out_shape)

    return formula


FORMULAS: dict[Any, Any] = {
    **{
        getattr(aten, name): _attention
        for name in (
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_fused_attention_overrideable",
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_cudnn_attention",
        )
    },
    **{getattr(aten, name): _vector for name in ("mv", "addmv", "dot", "vdot")},
    aten.addr: _outer,
    aten.linalg_solve_triangular: _triangular,
    aten._int_mm: _product,
    aten._weight_int8pack_mm: _product_transposed,
    aten._cdist_forward: _distances,
    aten.mkldnn_rnn_layer: _recurrent_layer,
    aten._fft_c2c: _complex_transform,
    aten._fft_r2c: _real_transform,
    aten._fft_c2r: _real_inverse,
    **{getattr(aten, name): _cumulative for name in ("cumsum", "cumprod", "cummax", "cummin", "logcumsumexp")},
    **{getattr(aten, f"{name}_"): _cumulative for name in ("cumsum", "cumprod")},
    **{getattr(aten, name): _cumulative for name in ("_cummax_helper", "_cummin_helper", "_logcumsumexp")},
    aten.grid_sampler_2d: _grid_sample,
    aten.grid_sampler_3d: _grid_sample,
    torch.ops.anyformer.diagonal_scan: _diagonal_scan,
    aten.upsample_linear1d: _resize(2),
    aten.upsample_bilinear2d: _resize(4),
    aten.upsample_trilinear3d: _resize(8),
    aten.upsample_bicubic2d: _resize(16),
}
"""What torch's counter leaves out, or has wrong where keys are grouped."""

_PASSES = {
    "memory and what stands in it from the start": (
        "empty empty_like empty_strided empty_permuted new_empty new_empty_strided zeros zeros_like new_zeros ones "
        "ones_like new_ones full full_like new_full fill zero eye arange linspace logspace scalar_tensor tril_indices "
        "triu_indices rand rand_like randn randn_like randint randint_like randperm bernoulli normal uniform exponential "
        "lift_fresh lift_fresh_copy resize set"
    ),
    "copies, and elements that go elsewhere": (
        "copy clone _to_copy unsafe_split unsafe_split_with_sizes _unsafe_view "
        "_reshape_copy cat stack repeat repeat_interleave flip roll "
        "constant_pad_nd reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d "
        "replication_pad3d pixel_shuffle pixel_unshuffle channel_shuffle native_channel_shuffle im2col col2im tril triu "
        "rot90 split_with_sizes_copy unfold_copy block_diag complex polar one_hot upsample_nearest1d upsample_nearest2d "
        "upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d"
    ),
    "elements by index, written or added": (
        "index _unsafe_index index_select index_put _unsafe_index_put _index_put_impl index_add index_copy index_fill "
        "index_reduce gather take scatter scatter_add scatter_reduce select_scatter slice_scatter diagonal_scatter "
        "as_strided_scatter embedding masked_scatter max_unpool2d sort topk"
    ),
    "reductions, also where torch is too old to say that they are": (
        "sum nansum mean amax amin aminmax max min argmax argmin all any prod var std var_mean std_mean logsumexp norm "
        "linalg_vector_norm count_nonzero median trace _is_all_true _is_any_true"
    ),
    "norms, softmax, losses, chance": (
        "native_layer_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
        "_batch_norm_with_update _batch_norm_no_update cudnn_batch_norm miopen_batch_norm native_group_norm _fused_rms_norm "
        "_softmax _log_softmax _safe_softmax native_dropout multinomial _weight_norm_interface "
        "nll_loss_forward nll_loss2d_forward"
    ),
    "pooling": (
        "avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d max_pool2d_with_indices "
        "max_pool3d_with_indices _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d"
    ),
    "questions": (
        "_local_scalar_dense equal is_nonzero _assert_async _assert_scalar _assert_tensor_metadata sym_size sym_stride "
        "sym_numel sym_storage_offset sym_is_contiguous promote_types"
    ),
}
"""The operators that are neither views nor known to torch as elementwise or reductions, and free all the same."""

_FREE = frozenset(f"aten::{name}" for names in _PASSES.values() for name in names.split())


_ELEMENTWISE = frozenset(
    f"aten::{name}"
    for name in ("hardswish", "hardsigmoid", "log_sigmoid_forward", "glu", "_prelu_kernel", "rrelu_with_noise")
)


def elementwise(operator: Any) -> bool:
    """Whether an operator computes each result from the numbers at its place alone."""
    name = operator._schema.name
    if name in ("aten::clone", "aten::_to_copy"):  # which torch counts among them, though they compute nothing
        return False
    return torch.Tag.pointwise in operator.tags or name.rstrip("_") in _ELEMENTWISE


def free(operator: Any) -> bool:
    """Whether an operator only moves elements, looks at them, or passes over them once."""
    if operator.namespace in ("prim", "prims"):
        return True
    reduction = getattr(torch.Tag, "reduction", torch.Tag.pointwise)
    known = operator.is_view or reduction in operator.tags or operator._schema.name.rstrip("_") in _FREE
    return operator.namespace == "aten" and (known or elementwise(operator))
