"""How far numbers lie apart, by which nothing that is not a number gets through."""

from torch import Tensor

from .tolerances import TOLERANCES


def distance(given: Tensor, expected: Tensor) -> float:
    """The largest difference over the largest expected value; endless where a NaN is on either side, or shapes differ."""
    if given.shape != expected.shape or given.isnan().any() or expected.isnan().any():
        return float("inf")
    if not given.numel():
        return 0.0
    given, expected = given.double(), expected.double()
    return ((given - expected).abs().max() / expected.abs().max().clamp_min(1e-30)).item()


def differ(what: str, given: Tensor, expected: Tensor) -> list[str]:
    """What is further apart than its type allows, in words."""
    apart = distance(given, expected)
    return [] if apart <= TOLERANCES[given.dtype] else [f"{what}: {apart:.3g} apart in {given.dtype}"]
