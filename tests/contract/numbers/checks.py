"""The numbers contract: each check takes a cell and gives what does not hold, in words; nothing means that it holds."""

from collections.abc import Callable

import torch
from torch import Tensor

from anyformer.core.errors import AnyformerError

from .cells import Cell, random
from .compare import differ, distance
from .memory import layouts
from .padding import padding
from .tolerances import SINGLE, TOLERANCES

GRIDS = {1: ((1,), (2,), (3,), (9,), (65,), (1000,)), 2: ((1, 1), (1, 5), (3, 2), (5, 7), (8, 8), (9, 4))}
SCALES = (1e-6, 1e-3, 1.0, 1e2, 1e4)


def causality(cell: Cell) -> list[str]:
    """Later tokens reach earlier ones by no bit and no gradient, or the mixer refuses to stream, and needs later ones."""
    if cell.part.slot != "token_mixer":
        return []
    if "stream" in cell.refuses:
        tokens = cell.x.flatten(1, -2)
        changed = torch.cat((tokens[:, :-1], -tokens[:, -1:]), dim=1).view(cell.x.shape)
        same = torch.equal(cell(changed).flatten(1, -2)[:, :-1], cell(cell.x).flatten(1, -2)[:, :-1])
        return ["no token needs the last one, though it refuses to stream"] if same and tokens.shape[1] > 1 else []
    failures: list[str] = []
    x, context = cell.on((33,))
    for dtype in TOLERANCES:
        expected = cell(x, context, dtype)
        for token in range(32):
            later = x.clone()
            later[:, token + 1 :] = 1e3 * random((len(x), 32 - token, x.shape[-1]), token)
            if not torch.equal(cell(later, context, dtype)[:, : token + 1], expected[:, : token + 1]):
                failures.append(f"tokens after {token} reach it in {dtype}")
    x, context = cell.on((9,))
    y = cell(x.requires_grad_(), context)
    for token in range(8):
        (gradient,) = torch.autograd.grad(y[:, token].sum(), x, retain_graph=True)
        if gradient[:, token + 1 :].count_nonzero():
            failures.append(f"token {token} has a gradient to later ones")
    return failures


def batches(cell: Cell) -> list[str]:
    """A row gives the same alone and in batches of 2, 5 and 16, and a row of NaN changes no bit of the others."""
    x, failures = random((16, *cell.x.shape[1:])), list[str]()
    for training in (False, True):
        if training and any(hasattr(module, "running_mean") for module in cell.part.modules()):
            continue  # in training the statistics are those of the batch: what a batch norm is
        cell.part.train(training)
        for dtype in TOLERANCES:
            alone = torch.cat([cell(row, dtype=dtype) for row in x.split(1)])
            for size in (2, 5, 16):
                what = f"rows alone and in a batch of {size}{' in training' * training}"
                failures += differ(what, cell(x[:size], dtype=dtype), alone[:size])
            broken = x.clone()
            broken[0] = torch.nan
            if not torch.equal(cell(broken, dtype=dtype)[1:], cell(x, dtype=dtype)[1:]):
                failures.append(f"a row of NaN reaches other rows in {dtype}")
    cell.part.eval()
    return failures


def sizes(cell: Cell) -> list[str]:
    """Features on any grid keep their shape and give in float32 what they give in float64, and a row what it gives alone."""
    return [failure for grid in _grids(cell) for batch in (1, 3) for failure in _sized(cell, grid, batch)]


def empty_batches(cell: Cell) -> list[str]:
    """A batch of nothing gives nothing, on any grid."""
    return [failure for grid in _grids(cell) for failure in _sized(cell, grid, 0)]


def empty_grids(cell: Cell) -> list[str]:
    """A grid without tokens gives one without tokens, or a clear error."""
    grid = (0, *_grids(cell)[0][1:])
    return [failure for batch in (0, 2) for failure in _sized(cell, grid, batch)]


def _grids(cell: Cell) -> tuple[tuple[int, ...], ...]:
    return GRIDS[2 if cell.x.dim() == 4 or _on_grid(cell) else 1]


def _on_grid(cell: Cell) -> bool:
    layout = cell.context.layout if cell.context else None
    return layout is not None and len(layout.grid) == 2


def _sized(cell: Cell, grid: tuple[int, ...], batch: int) -> list[str]:
    x, context = cell.on(grid, batch)
    try:
        exact, single = cell(x, context), cell(x, context, torch.float32)
        alone = torch.cat([cell(row, context) for row in x.split(1)])
    except AnyformerError:
        return []
    except Exception as error:
        return [f"batch {batch} on {grid} ends in {type(error).__name__}: {str(error)[:80]}"]
    apart = distance(single, exact) if exact.shape == x.shape else float("inf")
    wrong = [f"batch {batch} on {grid} gives {tuple(exact.shape)}, float32 {apart:.3g} apart"] if apart > SINGLE else []
    return wrong + differ(f"rows alone and in a batch of {batch} on {grid}", exact, alone)


def extremes(cell: Cell) -> list[str]:
    """Finite features give finite ones, tiny, large, zero and equal ones too; others never become finite unnoticed."""
    shape, failures = tuple(cell.x.shape), list[str]()
    given = {f"of scale {scale:g}": scale * random(shape) for scale in SCALES}
    given["of zeros"] = torch.zeros(shape, dtype=torch.float64)
    given["of equal tokens"] = random((1, shape[-1])).expand(shape).clone()
    for dtype in TOLERANCES:
        failures += [
            f"features {what} give others than finite ones" for what, x in given.items() if not _finite(cell, x, dtype)
        ]
        for value in (torch.nan, torch.inf, -torch.inf):
            x = random(shape)
            x[0].flatten(0, -2)[0] = value
            if _finite(cell, x, dtype):
                failures.append(f"a token of {value} leaves no trace in {dtype}")
    return failures


def _finite(cell: Cell, x: Tensor, dtype: torch.dtype) -> bool:
    try:
        return bool(cell(x, dtype=dtype).isfinite().all())
    except AnyformerError:
        return False


CHECKS: dict[str, Callable[[Cell], list[str]]] = {
    check.__name__: check
    for check in (causality, padding, batches, sizes, empty_batches, empty_grids, extremes, layouts)
}
"""By name."""
