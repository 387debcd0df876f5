"""Key maps: one table between somebody's checkpoint names and ours, read in both directions.

A row pairs whole-key templates, ``"blocks.{i}.attn.qkv.{p}" <-> "blocks.{i}.mixer.qkv.{p}"``. Holes are typed: ``{p}`` is
weight or bias; every other hole is a number, and may be shifted by a constant, ``{i+1}``. A row may carry an invertible
operation. Every source key is claimed by exactly one row and every target made exactly once, else nothing is loaded.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor

from anyformer.core.errors import UsageError

_HOLE = re.compile(r"\{(\w+)([+-]\d+)?\}")


class Operation(Protocol):
    """An invertible step from one row's foreign tensors to its own ones."""

    def forward(self, theirs: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        """Their tensors as ours, of the given shapes."""
        ...

    def backward(self, ours: list[Tensor]) -> list[Tensor]:
        """Our tensors as theirs."""
        ...


@dataclass(frozen=True)
class Reshape:
    """Their tensor is ours in another shape: ``theirs`` with sizes, -1 for the one that is left over."""

    theirs: tuple[int, ...]

    def forward(self, theirs: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        """Reshape to ours."""
        return [tensor.reshape(shape) for tensor, shape in zip(theirs, shapes, strict=True)]

    def backward(self, ours: list[Tensor]) -> list[Tensor]:
        """Reshape to theirs."""
        return [tensor.reshape(self.theirs) for tensor in ours]


@dataclass(frozen=True)
class Permute:
    """Their tensor with its dimensions in the order ``order`` (and then flattened to our shape) is ours.

    ``unflat`` are the sizes of the permuted tensor before flattening, -1 for one left over; () when nothing is flattened.
    """

    order: tuple[int, ...]
    unflat: tuple[int, ...] = ()

    def forward(self, theirs: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        """Permute, then flatten."""
        return [t.permute(self.order).reshape(shape) for t, shape in zip(theirs, shapes, strict=True)]

    def backward(self, ours: list[Tensor]) -> list[Tensor]:
        """Unflatten, then permute back."""
        inverse = [self.order.index(d) for d in range(len(self.order))]
        return [(t.reshape(self.unflat) if self.unflat else t).permute(inverse).contiguous() for t in ours]


@dataclass(frozen=True)
class Join:
    """``count`` tensors of theirs, each changed by ``each``, one after another along our first dimension, are ours."""

    each: "Operation | None" = None
    count: int = 3

    def forward(self, theirs: list[Tensor], shapes: list[tuple[int, ...]]) -> list[Tensor]:
        """Join; the pieces are equally long."""
        (shape,) = shapes
        if self.each is not None:
            piece = (shape[0] // self.count, *shape[1:])
            theirs = self.each.forward(theirs, [piece] * len(theirs))
        return [torch.cat(theirs)]

    def backward(self, ours: list[Tensor]) -> list[Tensor]:
        """Split into equal pieces."""
        pieces = list(ours[0].chunk(self.count))
        return self.each.backward(pieces) if self.each is not None else pieces


@dataclass(frozen=True)
class Row:
    """One line of a key map: their templates, our templates, and what lies between (``None``: nothing)."""

    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    operation: Operation | None = None


def row(theirs: str | Sequence[str], ours: str | Sequence[str], operation: Operation | None = None) -> Row:
    """A row from single templates or several."""
    return Row(_tuple(theirs), _tuple(ours), operation)


def _tuple(value: str | Sequence[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


@cache
def _pattern(template: str) -> re.Pattern[str]:
    """What a template matches: numbers without leading zeros, so that a hole's value is written in one way only."""
    pattern, last, seen = "", 0, set[str]()
    for hole in _HOLE.finditer(template):
        name = hole[1]
        values = "weight|bias" if name == "p" else "0|[1-9][0-9]{0,8}"
        pattern += re.escape(template[last : hole.start()])
        pattern += f"(?P={name})" if name in seen else f"(?P<{name}>{values})"
        seen.add(name)
        last = hole.end()
    return re.compile(pattern + re.escape(template[last:]))


def _match(template: str, key: str) -> dict[str, str] | None:
    """The values of a template's holes in a key, shifts undone; None where it does not fit."""
    match = _pattern(template).fullmatch(key)
    if match is None:
        return None
    values = dict(match.groupdict())
    for name, shift in _HOLE.findall(template):
        if shift:
            number = int(values[name]) - int(shift)
            if number < 0:
                return None
            values[name] = str(number)
    return values


def _first_match(templates: tuple[str, ...], key: str) -> dict[str, str] | None:
    return next((values for t in templates if (values := _match(t, key)) is not None), None)


def _fill(template: str, values: Mapping[str, str]) -> str:
    return _HOLE.sub(lambda m: str(int(values[m[1]]) + int(m[2])) if m[2] else values[m[1]], template)


@dataclass(frozen=True)
class KeyMap:
    """An ordered table of rows between a named foreign format and ours.

    Our side is the model's parameters and buffers, those included that it computes by itself (``persistent=False``):
    what a foreign checkpoint stores of them is compared on loading and written on dumping. A row without a name of theirs
    makes tensors of ours, by whole names, from nothing.
    """

    rows: tuple[Row, ...]

    def load(
        self, theirs: Mapping[str, Tensor], targets: Mapping[str, Tensor], computed: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Our tensors from theirs, for the names and shapes of ``targets``, and of ``computed`` where theirs have them.

        Raises:
            UsageError: naming the first five keys that nobody claims, that are missing, or whose shapes do not fit.
        """
        known = {**targets, **(computed or {})}
        pairs = self._pair(theirs, side="theirs")
        extra = [key for _, source, target in pairs if not known.keys() >= set(target) for key in source]
        if extra:
            raise UsageError(f"the model has no place for {_five(extra)}; it has another depth or other parts")
        made = self._made_from_nothing(targets)
        wrong: list[str] = []
        for line, source, target in pairs:
            shapes = [tuple(known[name].shape) for name in target]
            try:
                tensors = [theirs[name] for name in source]
                tensors = line.operation.forward(tensors, shapes) if line.operation else tensors
            except RuntimeError:  # torch's own complaint about a shape; ours below names the key
                tensors = []
            if [tuple(tensor.shape) for tensor in tensors] != shapes:
                given = ", ".join(str(tuple(theirs[name].shape)) for name in source)
                wrong.append(f"{', '.join(source)} is {given} where {', '.join(map(str, shapes))} is needed")
                continue
            made.update(zip(target, tensors, strict=True))
        if wrong:
            raise UsageError(f"the weights do not fit the model: {_five(wrong)}")
        missing = [name for name in targets if name not in made]
        if missing:
            raise UsageError(f"the weights lack {_five([self._their_name(name) for name in missing])}")
        return made

    def dump(self, ours: Mapping[str, Tensor], computed: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Their tensors from ours: the exact inverse of :meth:`load`."""
        templates = tuple(template for line in self.rows for template in line.ours)
        stored = {name: t for name, t in (computed or {}).items() if _first_match(templates, name) is not None}
        ours = {**ours, **stored}
        dumped: dict[str, Tensor] = {}
        for line, source, target in self._pair(ours, side="ours"):
            tensors = [ours[name] for name in source]
            dumped.update(zip(target, line.operation.backward(tensors) if line.operation else tensors, strict=True))
        return dumped

    def _pair(self, source: Mapping[str, Tensor], side: str) -> list[tuple[Row, list[str], list[str]]]:
        """Each row with the keys it claims on ``side`` and those it makes on the other; strict about what is claimed."""
        left = dict.fromkeys(source)
        pairs: list[tuple[Row, list[str], list[str]]] = []
        made: dict[str, str] = {}
        for line in self.rows:
            ours_theirs = (line.theirs, line.ours) if side == "theirs" else (line.ours, line.theirs)
            from_templates, to_templates = ours_theirs
            for key in list(left):
                values = _first_match(from_templates, key) if key in left else None
                if values is None:
                    continue
                claimed = [_fill(template, values) for template in from_templates]
                absent = [name for name in claimed if name not in left]
                if absent:
                    raise UsageError(f"the weights have {key} but not {_five(absent)}")
                for name in claimed:
                    del left[name]
                target = [_fill(template, values) for template in to_templates]
                for name in target:
                    if made.setdefault(name, key) != key:
                        raise UsageError(f"{made[name]} and {key} are both {name}; only one of them may be there")
                pairs.append((line, claimed, target))
        if left:
            raise UsageError(
                f"{len(left)} of {len(source)} keys are not of this format: {_five(list(left))}; name the right format"
            )
        return pairs

    def _made_from_nothing(self, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the rows without a name of theirs make: of what they do not store."""
        made: dict[str, Tensor] = {}
        for line in self.rows:
            names = [name for name in line.ours if not line.theirs and name in targets]
            if names and line.operation is not None:
                made.update(
                    zip(names, line.operation.forward([], [tuple(targets[n].shape) for n in names]), strict=True)
                )
        return made

    def _their_name(self, ours: str) -> str:
        for line in self.rows:
            values = _first_match(line.ours, ours)
            if values is not None:
                return _fill(line.theirs[0], values)
        return ours


def _five(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
    return ", ".join(islice(keys, 5)) + more
