"""Small rules about numbers that every system's sizes follow."""

from collections.abc import Sequence

from anyformer.core.errors import UsageError, shown


def pair(size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width from one number or two. Raises UsageError for anything else."""
    numbers = (size, size) if isinstance(size, int) else tuple(size)
    if len(numbers) != 2 or min(numbers) < 1:
        raise UsageError(f"a size is one positive whole number or two, height and width, not {shown(size)}")
    return numbers


def ramp(last: float, count: int) -> tuple[float, ...]:
    """``count`` probabilities in a straight line from 0 to ``last`` (0 alone for one).

    Raises:
        UsageError: unless ``0 <= last < 1``.
    """
    if not 0 <= last < 1:
        raise UsageError(f"a rate is at least 0 and below 1, not {shown(last)}")
    return tuple(last * i / max(count - 1, 1) for i in range(count))
