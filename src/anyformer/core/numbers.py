"""Small rules about numbers that every system's sizes follow."""


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Height and width from one number or two."""
    if isinstance(size, int):
        return size, size
    height, width = size
    return int(height), int(width)


def ramp(last: float, count: int) -> tuple[float, ...]:
    """``count`` rates in a straight line from 0 to ``last`` (0 alone for one)."""
    return tuple(last * i / max(count - 1, 1) for i in range(count))
