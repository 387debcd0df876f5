"""The candidates of a fit: sizes of the systems whose stems adapt their stride to the images at hand."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

from anyformer.core import registry

COARSEST = 8  # tokens along a side that a stem leaves, where the image has them


@dataclass(frozen=True)
class Candidate:
    """A model by name, its system, and the options it is created with."""

    name: str
    system: str
    options: dict[str, Any]


def patch_for(size: int, largest: int = 16) -> int:
    """The stride of a stem: the largest power of two that leaves at least 8 tokens along a side, at most ``largest``."""
    patch = 1
    while patch * 2 <= largest and size // (patch * 2) >= COARSEST and size % (patch * 2) == 0:
        patch *= 2
    return patch


def candidates(*, size: int, channels: int, classes: int, trials: int) -> Sequence[Candidate]:
    """The first ``trials`` candidates: the smallest size of every system, then the next of every system, and so on."""
    patch = patch_for(size)
    vision = [(slug, system) for slug, system in registry.systems().items() if system.field == "vision"]
    rows = [[(slug, name) for name in (*system.small, *_published(system))] for slug, system in vision]
    options = {"img_size": size, "patch_size": patch, "in_chans": channels, "num_classes": classes}
    ordered = [pair for pair in chain.from_iterable(zip_longest(*rows)) if pair is not None]
    return [Candidate(name, slug, options) for slug, name in ordered[:trials]]


def _published(system: registry.System) -> list[str]:
    """The published sizes for ordinary images; one made for larger ones would be the same network here."""
    return [name for name in system.names if name not in system.small]
