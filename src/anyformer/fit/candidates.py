"""The candidates of a fit: sizes of the systems whose stems adapt their stride to the images at hand."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from typing import Any

from anyformer.core import registry

FEWEST = 7  # tokens along a side that a stem leaves, where the picture has the pixels
LARGEST = {"isotropic": 16, "pyramid": 4}  # strides of the published stems


@dataclass(frozen=True)
class Candidate:
    """A model by name, its system, and the options it is created with."""

    name: str
    system: str
    options: dict[str, Any]


def patch_for(size: int, *, stages: int, smallest: int, largest: int) -> int:
    """The stride of a stem for pictures of a side: the largest power of two that leaves enough tokens.

    Enough is 7 along a side, or as many as strides of ``smallest`` leave of a smaller picture, and one in the last of
    ``stages`` that halve.
    """
    tokens = max(min(FEWEST, size // smallest), 2 ** (stages - 1))
    patch = 1
    while patch * 2 <= largest and size // (patch * 2) >= tokens and size % (patch * 2) == 0:
        patch *= 2
    return patch


def candidates(*, size: int, channels: int, classes: int, trials: int) -> Sequence[Candidate]:
    """The first ``trials`` candidates: the smallest size of every system, then the next of every system, and so on."""
    vision = [(slug, system) for slug, system in registry.systems().items() if system.field == "vision"]
    rows = [[(slug, name) for name in (*system.small, *_published(system))] for slug, system in vision]
    ordered = [pair for pair in chain.from_iterable(zip_longest(*rows)) if pair is not None]
    found: list[Candidate] = []
    for slug, name in ordered[:trials]:
        system = registry.system(slug)
        pattern: Any = system.pattern(name)
        patch = patch_for(
            size,
            stages=len(getattr(pattern, "stages", "1")),
            smallest=system.smallest_patch,
            largest=LARGEST[pattern.part.name],
        )
        options = {"img_size": size, "patch_size": patch, "in_chans": channels, "num_classes": classes}
        found.append(Candidate(name, slug, options))
    return found


def _published(system: registry.System) -> list[str]:
    """The published sizes for ordinary images; one made for larger ones would be the same network here."""
    return [name for name in system.names if name not in system.small]
