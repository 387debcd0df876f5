"""What a model costs by arithmetic alone: its parameters and multiply-adds, counted without computing or allocating."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from anyformer.core.errors import AnyformerError
from anyformer.measure.formulas import FORMULAS, elementwise, free


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of one forward pass.

    Attributes:
        params: Parameters, shared ones once.
        macs: Multiply-adds, half the floating point operations, by the conventions of :mod:`anyformer.measure.formulas`:
            matrix products, convolutions, attention, Fourier transforms, cumulative sums, sampling.
        elementwise: Results of elementwise operations, none of them in ``macs``. A recurrence that is written as a loop
            over its steps shows here.
        uncounted: The operations met that are neither in ``macs`` nor a mere pass over their elements, with their calls.
    """

    params: int
    macs: int
    elementwise: int
    uncounted: Mapping[str, int]


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
        AnyformerError: How much the model computes depends on the numbers in its input, or it uses an operator on
            functions, such as a scan of torch's.
    """
    params = sum(parameter.numel() for parameter in model.parameters())
    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    recorder = _Recorder(counter.flop_registry)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as fake:
        state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        stand_ins: dict[str, Tensor] = {name: fake.from_tensor(tensor) for name, tensor in state.items()}
        device = next((tensor.device for tensor in state.values()), torch.device("cpu"))
        inputs = tuple(_stand_in(value, fake, device) for value in example)
        named = {name: _stand_in(value, fake, device) for name, value in keywords.items()}
        try:
            with counter, recorder:
                torch.func.functional_call(model, stand_ins, inputs, named)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise AnyformerError(
                f"the cost of {type(model).__name__} cannot be counted from shapes: {error.func} depends on the numbers"
            ) from error
    return Cost(
        params=params,
        macs=counter.get_total_flops() // 2,
        elementwise=recorder.elements,
        uncounted=dict(sorted(recorder.calls.items())),
    )


def _stand_in(value: Any, fake: FakeTensorMode, device: torch.device) -> Any:
    if isinstance(value, tuple) and value and all(type(size) is int for size in value):
        return torch.empty(value, dtype=torch.float32, device=device)
    return tree_map_only(Tensor, fake.from_tensor, value)


class _Recorder(TorchDispatchMode):
    """Sees every operation before the counter does, and notes those that it has no formula for."""

    supports_higher_order_operators = True

    def __init__(self, counted: Mapping[Any, Any]) -> None:
        super().__init__()
        self.counted = counted
        self.calls: Counter[str] = Counter()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not isinstance(func, OpOverload) and func not in self.counted:
            raise AnyformerError(f"the cost of {func} cannot be counted: write it with ordinary operators")
        result = func(*args, **(kwargs or {}))
        if not isinstance(func, OpOverload):
            return result
        if elementwise(func):
            self.elements += sum(value.numel() for value in tree_leaves(result) if isinstance(value, Tensor))
        elif func._overloadpacket not in self.counted and not free(func):
            self.calls[func._schema.name] += 1
        return result
