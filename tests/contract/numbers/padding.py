"""Padding: what a mask keeps out reaches nobody, wherever it lies and whatever it holds."""

import dataclasses

import torch

from anyformer import core
from anyformer.core.errors import AnyformerError

from .cells import Cell, random
from .compare import differ
from .tolerances import TOLERANCES

LENGTHS = (7, 4)  # of the two rows, without what pads them
LEFT, RIGHT = (1, 0), (0, 1)


def padding(cell: Cell) -> list[str]:
    """Tokens that ``ctx.mask`` keeps out change nothing, left, right or on both sides; or the mixer refuses a mask."""
    if cell.part.slot != "token_mixer" or "mask" in cell.refuses:
        return []
    try:
        failures = _scattered(cell)
        if cell.x.dim() == 3:
            failures += [
                f for sides in (LEFT, RIGHT, (2, 3)) for size in (1.0, 1e4) for f in _beside(cell, sides, size)
            ]
    except AnyformerError:
        return []  # it refuses a mask
    return failures


def _scattered(cell: Cell) -> list[str]:
    """What lies at masked places, anywhere in the features, does not matter; that they are masked does."""
    failures: list[str] = []
    x = random(tuple(cell.x.shape))
    tokens = x.flatten(1, -2).shape[1]
    mask = torch.rand(len(x), tokens, generator=torch.Generator().manual_seed(0)) > 0.4
    mask[:, 0] = True  # in a causal mixer the first token sees no other
    given = dataclasses.replace(cell.context or core.Context(), mask=mask)
    keep = mask.view(x.shape[:-1])
    for dtype in TOLERANCES:
        expected = cell(x, given, dtype)[keep]
        for size in (1.0, 1e4):
            junk = torch.where(keep[..., None], x, size * random(tuple(x.shape), 1))
            failures += differ(f"junk of size {size:g} at masked places", cell(junk, given, dtype)[keep], expected)
        if not mask.all() and torch.equal(cell(x, dtype=dtype)[keep], expected):
            failures.append("the mask changes nothing")
    return failures


def _beside(cell: Cell, sides: tuple[int, int], size: float) -> list[str]:
    """Two rows of different lengths, with junk left and right of them, give what each gives alone."""
    x, failures = random((len(LENGTHS), max(LENGTHS), cell.x.shape[-1])), list[str]()
    rows = [x[i : i + 1, :length] for i, length in enumerate(LENGTHS)]
    total = max(LENGTHS) + sum(sides)
    starts = [sides[0] if sides[1] else total - length for length in LENGTHS]
    padded = size * random((len(rows), total, x.shape[-1]), 1)
    mask = torch.zeros(len(rows), total, dtype=torch.bool)
    for i, (start, length) in enumerate(zip(starts, LENGTHS, strict=True)):
        padded[i, start : start + length], mask[i, start : start + length] = x[i, :length], True
    layout = core.Layout(grid=(total,))
    positions = (mask.long().cumsum(1) - 1).clamp_min(0)
    before = cell.context or core.Context()
    context = dataclasses.replace(before, layout=layout, mask=mask, positions=positions)
    for dtype in TOLERANCES:
        y = cell(padded, context, dtype)
        for i, row in enumerate(rows):
            alone = dataclasses.replace(before, layout=core.Layout(grid=(LENGTHS[i],)), mask=None, positions=None)
            failures += differ(_where(sides, size), y[i : i + 1][:, mask[i]], cell(row, alone, dtype))
    return failures


def _where(sides: tuple[int, int], size: float) -> str:
    return f"{'left and right' if all(sides) else 'left' if sides[0] else 'right'} padding of size {size:g}"
