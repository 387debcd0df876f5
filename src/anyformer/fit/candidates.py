"""The candidates of a fit: sizes of systems, whose stems adapt their stride to the images at hand."""

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, TypeVar

from anyformer.core import registry
from anyformer.skeletons.decoder import Decoder

T = TypeVar("T")

FEWEST = 7  # tokens along a side that a stem leaves, where the picture has the pixels
LARGEST = {"isotropic": 16}  # stride of the published stems, else 4; small pyramids have one of their own beyond it
LARGEST_SMALL = 8


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


def candidates(
    *, size: int, channels: int, classes: int, trials: int, weights: Collection[str] = ()
) -> Sequence[Candidate]:
    """The first ``trials`` candidates: those that weights lie ready for, then what can be trained in minutes.

    Of either kind the first size of every system comes first, then the second of every system, and so on; systems that are
    proven to learn stand before the others. What can be trained in minutes are our own small sizes; the published ones
    follow when those are used up.

    Args:
        size: side of the pictures.
        channels: of the pictures.
        classes: scores that a model gives.
        trials: how many candidates at most.
        weights: names of models whose published weights can be had.
    """
    vision = {slug: system for slug, system in registry.systems().items() if system.field == "vision"}
    ahead = _ahead()
    # Those that are proven to learn first, and of them networks of stages: of few pictures they learn more than those that
    # keep one resolution.
    vision = dict(sorted(vision.items(), key=lambda item: (item[0] not in ahead, _skeleton(item[1]) == "isotropic")))

    names = [
        *_in_turn([name for name in system.names if name in weights] for system in vision.values()),
        *_in_turn(system.small for system in vision.values()),
        *_in_turn([name for name in system.names if name not in system.small] for system in vision.values()),
    ]
    return [_candidate(name, size, channels, classes) for name in list(dict.fromkeys(names))[:trials]]


def text_candidates() -> Sequence[Candidate]:
    """Our own small sizes of models of bytes: of every system the first, then of every system the second, and so on.

    Systems that were furthest ahead of the baseline when they were proven to learn come first.
    """
    ahead = _ahead()
    chosen = [system for system in registry.systems().values() if system.field in ("references", "language")]
    chosen.sort(key=lambda system: -ahead.get(system.paper.slug, 0.0))
    chosen = [system for system in chosen if issubclass(system.pattern(system.names[0]).part, Decoder)]
    byte_sizes = [
        [
            Candidate(name, system.paper.slug, {})
            for name in system.small
            if system.data_config(name)["tokenizer"] == "bytes"
        ]
        for system in chosen
    ]
    return _in_turn(byte_sizes)


def _ahead() -> dict[str, float]:
    """How far systems were ahead of the baseline when they were proven to learn, by slug."""
    index = json.loads((Path(__file__).parents[1] / "index.json").read_text(encoding="utf-8"))
    return {row["system"]: row["ahead"] for row in index if "ahead" in row}


def _in_turn(rows: Iterable[Iterable[T]]) -> list[T]:
    """The first of every row, then the second of every row, and so on."""
    return [item for item in chain.from_iterable(zip_longest(*rows)) if item is not None]


def _skeleton(system: registry.System) -> str:
    return system.pattern(system.names[0]).part.name


def _candidate(name: str, size: int, channels: int, classes: int) -> Candidate:
    system = registry.system_of(name)
    pattern: Any = system.pattern(name)
    patch = patch_for(
        size,
        stages=len(getattr(pattern, "stages", "1")),
        smallest=system.smallest_patch,
        largest=LARGEST.get(pattern.part.name, LARGEST_SMALL if name in system.small else 4),
    )
    options = {"img_size": size, "patch_size": patch, "in_chans": channels, "num_classes": classes}
    return Candidate(name, system.paper.slug, options)
