"""Budgets: what a model may cost, as people write it: ``latency<=2ms, params<=1M``, ``tokens_per_second>=500``."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from anyformer.core.errors import UsageError, nearest
from anyformer.fit.costs import Costs

# quantity -> unit -> how many of the base unit (milliseconds, parameters, bytes, multiply-adds) it is
UNITS: dict[str, dict[str, float]] = {
    "latency": {"ms": 1.0, "us": 1e-3, "s": 1e3},
    "params": {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "b": 1e9},
    "size": {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30},
    "macs": {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9},
    "tokens_per_second": {"": 1.0, "k": 1e3, "m": 1e6},
    "state": {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30},
    "context": {"": 1.0},
}
BASE = {"latency": "ms", "params": "", "size": "B", "macs": "", "tokens_per_second": "", "state": "B", "context": ""}
AT_LEAST = {"tokens_per_second", "context"}  # of which more is better; of all else less is
EXAMPLE = "latency<=2ms, params<=1M, size<=4MB, macs<=50M"

_LIMIT = re.compile(r"([a-z_]+)\s*([<>]=?)\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)", re.IGNORECASE)


@dataclass(frozen=True)
class Limit:
    """One quantity and the most it may be, or the least where more is better, in the units of ``BASE``."""

    quantity: str
    bound: float

    @property
    def least(self) -> bool:
        """Whether it is a lower limit."""
        return self.quantity in AT_LEAST

    def broken(self, value: float) -> bool:
        """Whether a value lies beyond it."""
        return value < self.bound if self.least else value > self.bound

    def excess(self, value: float) -> float:
        """How far a value is beyond it, as a factor."""
        return self.bound / value if self.least else value / self.bound

    def at(self, value: float) -> str:
        """The same limit at another value, as people write it."""
        return f"{self.quantity}{'>=' if self.least else '<='}{readable(self.quantity, value)}"

    def __str__(self) -> str:
        return self.at(self.bound)


@dataclass(frozen=True)
class Budget:
    """All limits, which hold together; none means that anything is allowed."""

    text: str
    limits: tuple[Limit, ...]

    def exceeded(self, costs: Costs) -> tuple[Limit, ...]:
        """The limits that a candidate breaks."""
        return tuple(limit for limit in self.limits if limit.broken(costs.of(limit.quantity)))

    def check(self, quantities: Sequence[str], what: str) -> None:
        """Refuse limits that mean nothing for such data. Raises UsageError.

        Args:
            quantities: those that mean something.
            what: the models, in words.
        """
        for limit in self.limits:
            if limit.quantity not in quantities:
                raise UsageError(
                    f"budget: {limit.quantity} means nothing for {what}; their limits are {', '.join(quantities)}"
                )

    def bound(self, quantity: str) -> float | None:
        """The limit of a quantity."""
        return next((limit.bound for limit in self.limits if limit.quantity == quantity), None)


def parse_budget(text: str) -> Budget:
    """Read a budget: limits separated by commas or ``and``.

    Raises:
        UsageError: saying which piece cannot be read, and how a budget looks.
    """
    limits: list[Limit] = []
    for piece in filter(None, (piece.strip() for piece in re.split(r",|\band\b|&", text))):
        match = _LIMIT.fullmatch(piece)
        if match is None:
            raise UsageError(f"budget: cannot read {piece!r}; write for example {EXAMPLE!r}")
        quantity, sign, number, unit = match.groups()
        if quantity.lower() not in UNITS:
            known = ", ".join(UNITS)
            raise UsageError(f"budget: {quantity!r} is not one of {known}{nearest(quantity.lower(), UNITS)}")
        if (sign[0] == ">") != (quantity.lower() in AT_LEAST):
            better, wanted = ("more", ">=") if quantity.lower() in AT_LEAST else ("less", "<=")
            raise UsageError(
                f"budget: of {quantity.lower()} {better} is better; write {quantity.lower()}{wanted}{number}{unit}"
            )
        units = UNITS[quantity.lower()]
        if unit.lower() not in units:
            wanted = ", ".join(name for name in units if name) + (" or no unit" if "" in units else "")
            raise UsageError(f"budget: {piece!r} needs a unit of {wanted}, got {unit or 'none'!r}")
        bound = float(number) * units[unit.lower()]
        if bound <= 0:
            raise UsageError(f"budget: {piece!r} leaves nothing; a limit is a positive number")
        if any(limit.quantity == quantity.lower() for limit in limits):
            raise UsageError(f"budget: {quantity!r} stands twice; give one limit for it")
        limits.append(Limit(quantity.lower(), bound))
    return Budget(text=text.strip(), limits=tuple(limits))


def readable(quantity: str, value: float) -> str:
    """A cost with a unit that suits its size, three digits."""
    if quantity == "latency":
        return f"{value:.3g}ms"
    if quantity == "context":
        return f"{value:.0f}"
    value = float(f"{value:.3g}")  # rounded first, so that 999,900 becomes 1M
    steps = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))
    factor, letter = next((step for step in steps if value >= step[0]), steps[-1])
    return f"{value / factor:.3g}{letter}{'B' if BASE[quantity] == 'B' else ''}"
