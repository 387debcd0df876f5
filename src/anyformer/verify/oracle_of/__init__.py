"""The reference models of systems of text, a module a slug: ``oracle(name)``, in evaluation mode, with fresh weights."""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from anyformer.core.errors import UsageError
from anyformer.verify.oracles import declare_missing_operators


class _Wide(TorchFunctionMode):
    """Whatever is asked for in float32 is made in float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.float:
            func = Tensor.double
        wide = [torch.float64 if value is torch.float32 else value for value in args]
        named = {k: torch.float64 if value is torch.float32 else value for k, value in (kwargs or {}).items()}
        return func(*wide, **named)


def unrounded(make: Callable[[], nn.Module]) -> nn.Module:
    """The model that ``make`` gives, without the casts to float32 where its parameters are float64.

    Norms, softmax, rotary angles and scans of the authors' codes go down to float32 whatever they are given; in float64
    that rounding would be all that a comparison shows. What the model computes when it is built is kept in float64.
    """
    with _Wide():
        model: Any = make()
    forward = model.forward

    def run(*args: Any, **keywords: Any) -> Any:
        if next(model.parameters()).dtype != torch.float64:
            return forward(*args, **keywords)
        with _Wide():
            return forward(*args, **keywords)

    model.forward = run
    return model.eval()


def transformers() -> Any:
    """The library. Raises UsageError where it is not installed."""
    declare_missing_operators()  # of torchvision, which it looks into
    try:
        return importlib.import_module("transformers")
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise UsageError(
            'the models of text that ours are held against come with transformers: pip install "anyformer[test]"'
        ) from None
