"""Nested state as JSON beside named tensors, and back, without loss and without executing anything.

Optimizers keep whole-number keys and tuples, which JSON lacks, so every mapping is written as pairs and tuples are
marked.
"""

import json
from typing import Any

import safetensors.torch
import torch
from torch import Tensor


def pack(state: Any) -> tuple[bytes, bytes]:
    """Nested dicts, lists and tuples of tensors, numbers, strings and None as (JSON, safetensors).

    Tensors are copied: later changes in place do not reach the result, and tensors that share memory are written twice.

    Raises:
        TypeError: Something else is among them.
        ValueError: A number is not finite.
    """
    tensors: dict[str, Tensor] = {}
    tree = _encode(state, "", tensors)
    return json.dumps(tree, allow_nan=False, separators=(",", ":")).encode(), safetensors.torch.save(tensors)


def unpack(tree: bytes, tensors: bytes) -> Any:
    """The state that ``pack`` was given, with its tensors on the CPU."""
    return _decode(json.loads(tree), safetensors.torch.load(tensors))


def _encode(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    match value:
        case Tensor():
            name = f"{len(tensors)}{path}"  # the number keeps "a/b" apart from "b" in "a"
            tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
            return {"tensor": name}
        case dict():
            return {"dict": [[_key(key), _encode(item, f"{path}/{key}", tensors)] for key, item in value.items()]}
        case list() | tuple():
            items = [_encode(item, f"{path}/{number}", tensors) for number, item in enumerate(value)]
            return items if isinstance(value, list) else {"tuple": items}
        case None | bool() | int() | float() | str():
            return value
    raise TypeError(f"{path} is of type {type(value).__name__}, which a checkpoint cannot hold")


def _key(key: Any) -> str | int:
    if not isinstance(key, (str, int)):
        raise TypeError(f"a checkpoint's keys are strings and whole numbers, not {key!r}")
    return key


def _decode(value: Any, tensors: dict[str, Tensor]) -> Any:
    match value:
        case {"tensor": name}:
            return tensors[name]
        case {"dict": items}:
            return {key: _decode(item, tensors) for key, item in items}
        case {"tuple": items}:
            return tuple(_decode(item, tensors) for item in items)
        case list():
            return [_decode(item, tensors) for item in value]
    return value
