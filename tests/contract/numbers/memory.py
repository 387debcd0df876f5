"""Memory: how features lie in it does not matter, and nothing that is given is written to."""

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .cells import Cell, random
from .compare import differ
from .tolerances import TOLERANCES


def layouts(cell: Cell) -> list[str]:
    """Features may lie in memory as they like, and what is given, and the part itself, is left as it was."""
    failures: list[str] = []
    for dtype in TOLERANCES:
        x = random(tuple(cell.x.shape)).to(dtype)
        expected = cell(x.clone(), dtype=dtype)
        state = list(cell.module(dtype).state_dict(keep_vars=True).values())
        versions = [tensor._version for tensor in state]
        for what, same in _laid_out(x):
            version, kept = same._version, same.clone()
            wanted = expected[:1].expand_as(expected) if what == "expanded" else expected
            try:
                failures += differ(f"features that are {what}", cell(same, dtype=dtype), wanted)
            except RuntimeError as error:
                failures.append(f"features that are {what} end in {str(error)[:80]}")
            if same._version != version or not torch.equal(same, kept):
                failures.append(f"features that are {what} are overwritten")
        if [tensor._version for tensor in state] != versions:
            failures.append("a pass in evaluation mode changes the part")
    return failures


def _laid_out(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The same numbers in other layouts of memory; the expanded ones are the first row again and again."""
    order = list(range(x.dim()))[::-1]
    yield "transposed", x.permute(order).contiguous().permute(order)
    yield "strided", x.repeat_interleave(2, dim=-1)[..., ::2]
    yield "offset", torch.cat((x.new_zeros(3), x.flatten()))[3:].view(x.shape)
    yield "expanded", x[:1].expand_as(x)
    array: np.ndarray = np.frombuffer(x.numpy().tobytes(), dtype=x.numpy().dtype)
    with warnings.catch_warnings(action="ignore"):  # torch warns that it may not be written to, which is the question
        yield "read-only", torch.from_numpy(array).view(x.shape)
