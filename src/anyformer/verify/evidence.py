"""What a proof level brings back."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Evidence:
    """The outcome of one level for one model.

    Attributes:
        figures: What was measured; plain values, as the ledger keeps them.
        failures: What does not hold, in words; none when the level is reached.
        seeds: Of the runs behind the figures, where chance was in them.
    """

    figures: dict[str, Any]
    failures: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
