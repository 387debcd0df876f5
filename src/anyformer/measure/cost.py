"""What a model costs by arithmetic alone: its parameters and multiply-adds, counted without computing or allocating."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from anyformer.core.errors import AnyformerError

aten = torch.ops.aten


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of one forward pass.

    Attributes:
        params: Parameters, shared ones once.
        macs: Multiply-adds of matrix products, convolutions and attention: half their floating point operations.
        uncounted: The operations met that do more than a pass over their elements and are not in ``macs``.
    """

    params: int
    macs: int
    uncounted: tuple[str, ...]


def cost(model: nn.Module, *example: Any, **keywords: Any) -> Cost:
    """Count one forward pass of a model, which neither runs nor changes.

    Its parameters and inputs are replaced by tensors with shapes and no memory, so a model of any size, on the meta
    device too, is counted in the time of its operator calls.

    Args:
        model: The model, in the mode in which it is to be counted.
        *example: What it takes: tensors, tuples of integers for float32 tensors of that shape beside its parameters, or
            anything else.
        **keywords: Likewise, by name.

    Raises:
        AnyformerError: How much the model computes depends on the numbers in its input.
    """
    params = sum(parameter.numel() for parameter in model.parameters())
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    recorder = _Uncounted(counter.flop_registry)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as fake:
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        stand_ins: dict[str, Tensor] = {name: fake.from_tensor(tensor) for name, tensor in state.items()}
        device = next((tensor.device for tensor in state.values()), torch.device("cpu"))
        inputs = tuple(_stand_in(value, fake, device) for value in example)
        named = {name: _stand_in(value, fake, device) for name, value in keywords.items()}
        try:
            with recorder, counter:
                torch.func.functional_call(model, stand_ins, inputs, named)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise AnyformerError(
                f"the cost of {type(model).__name__} cannot be counted from shapes: {error.func} depends on the numbers"
            ) from error
    return Cost(params=params, macs=counter.get_total_flops() // 2, uncounted=tuple(sorted(recorder.names)))


def _stand_in(value: Any, fake: FakeTensorMode, device: torch.device) -> Any:
    if isinstance(value, tuple) and value and all(type(size) is int for size in value):
        return torch.empty(value, dtype=torch.float32, device=device)
    return tree_map_only(Tensor, fake.from_tensor, value)


def _attention_flops(query: Any, key: Any, value: Any, *_: Any, out_shape: Any = None, **__: Any) -> int:
    """Query heads count: sharing keys saves memory only. A causal mask does not halve it, as in all of torch's counts."""
    *heads, queries, head_dim = query
    return 2 * prod(heads) * queries * key[-2] * (head_dim + value[-1])


def _vector_flops(*shapes: Any, out_shape: Any = None, **_: Any) -> int:
    return 2 * max(prod(shape) for shape in shapes if isinstance(shape, tuple | torch.Size))


_FORMULAS: dict[Any, Any] = {
    aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    aten._scaled_dot_product_fused_attention_overrideable: _attention_flops,
    aten.mv: _vector_flops,
    aten.addmv: _vector_flops,
    aten.dot: _vector_flops,
}
"""What torch's counter leaves out, in floating point operations."""

_ARITHMETIC = frozenset(
    f"aten::{name}"
    for name in (
        *("_fft_r2c", "_fft_c2r", "_fft_c2c", "cumsum", "cumprod", "logcumsumexp", "cummax", "cummin"),
        *("_cdist_forward", "_pdist_forward", "vdot", "addr", "_trilinear", "lstm", "gru", "mkldnn_rnn_layer"),
        *(
            "_thnn_fused_lstm_cell",
            "_thnn_fused_gru_cell",
            "linalg_solve_triangular",
            "_linalg_solve_ex",
            "_linalg_svd",
        ),
        *(
            "_linalg_eigh",
            "linalg_qr",
            "linalg_inv_ex",
            "linalg_lu_factor_ex",
            "linalg_cholesky_ex",
            "linalg_matrix_exp",
        ),
        *("sort", "topk", "grid_sampler_2d", "grid_sampler_3d", "_embedding_bag", "_embedding_bag_forward_only"),
        *("_weight_int8pack_mm", "_weight_int4pack_mm", "_int_mm", "_grouped_mm", "_sparse_addmm"),
    )
)


class _Uncounted(TorchDispatchMode):
    """Notes the operations that do arithmetic which the counter inside this mode has no formula for."""

    def __init__(self, counted: Mapping[Any, Any]) -> None:
        super().__init__()
        self.counted = counted
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        foreign = func.namespace not in ("aten", "prim", "prims")  # somebody's own operator: its arithmetic is unknown
        if (foreign or name in _ARITHMETIC) and func._overloadpacket not in self.counted:
            self.names.add(name)
        return func(*args, **(kwargs or {}))
