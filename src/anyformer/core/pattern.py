"""Patterns as people write them: ``"3 x conv(kernel=7), 5 x attention(heads=8), 1 x gla"``.

A list is items separated by commas; an item is an optional count and ``x``, then a part with its settings or a bracketed
list. Settings are numbers, true, false, words, or parts. Names are looked up in the closed registry.
"""

import re
from typing import Any

from anyformer.core import serial
from anyformer.core.config import MAX_LAYERS, Config
from anyformer.core.errors import UsageError, shown

_TOKEN = re.compile(r"\s*(?:([0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)|([A-Za-z_]\w*)|([(),=]))", re.ASCII)
_LONGEST = 40  # characters of a number or name


class _Reader:
    """A recursive-descent reader over the tokens of one pattern."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[str] = []
        self.position = 0
        place, end = 0, len(text.rstrip())
        while place < end:
            match = _TOKEN.match(text, place)
            token = match.group().strip() if match else ""
            if match is None or len(token) > _LONGEST:
                raise self.error(f"cannot read {shown(text[place:])}")
            self.tokens.append(token)
            place = match.end()

    def error(self, what: str) -> UsageError:
        return UsageError(f"pattern {shown(self.text)}: {what}")

    def peek(self, ahead: int = 0) -> str:
        index = self.position + ahead
        return self.tokens[index] if index < len(self.tokens) else ""

    def take(self, expected: str = "") -> str:
        token = self.peek()
        if not token or (expected and token != expected):
            wanted = repr(expected) if expected else "more"
            raise self.error(f"expected {wanted}, got {repr(token) if token else 'the end'}")
        self.position += 1
        return token

    def items(self, depth: int = 0) -> list[dict[str, Any]]:
        """A list of items, counts unrolled; layers that a count repeats are the same object."""
        self.check_depth(depth)
        found: list[dict[str, Any]] = []
        while True:
            count = 1
            if self.peek().isdigit():
                count = int(self.take())
                self.take("x")
            if self.peek() == "(":
                self.take()
                block = self.items(depth + 1)
                self.take(")")
            else:
                block = [self.part(depth)]
            if count == 0 or len(found) + count * len(block) > MAX_LAYERS:
                raise self.error(f"a count is at least 1, and a pattern has at most {MAX_LAYERS} layers")
            found += block * count
            if self.peek() != ",":
                return found
            self.take()

    def part(self, depth: int) -> dict[str, Any]:
        """A part with its settings."""
        self.check_depth(depth)
        name = self.take()
        if not name.isidentifier():
            raise self.error(f"expected the name of a part, got {name!r}")
        data: dict[str, Any] = {"part": name}
        if self.peek() == "(":
            self.take()
            while self.peek() != ")":
                key = self.take()
                self.take("=")
                if key in data:
                    raise self.error(f"{key!r} stands twice")
                data[key] = self.value(depth + 1)
                if self.peek() != ")":
                    self.take(",")
            self.take(")")
        return data

    def value(self, depth: int) -> Any:
        """What a setting is set to."""
        if self.peek(1) == "(":
            return self.part(depth)
        token = self.take()
        if token in "(),=":
            raise self.error(f"expected a value, got {token!r}")
        if token[0].isdigit():
            return int(token) if token.isdigit() else float(token)
        return {"true": True, "false": False}.get(token, token)

    def check_depth(self, depth: int) -> None:
        if depth > serial.MAX_DEPTH:
            raise self.error(f"at most {serial.MAX_DEPTH} brackets deep")


def parse_pattern(text: str) -> tuple[Config, ...]:
    """The patterns that a text lists, counts unrolled; layers that a count repeats are the same object.

    Raises:
        UsageError: where the text cannot be read, or names a part or setting that does not exist.
    """
    serial.check_length(text, "a pattern")
    reader = _Reader(text)
    items = reader.items()
    if reader.peek():
        raise reader.error(f"cannot read on from {reader.peek()!r}")
    made: dict[int, Config] = {}
    for index, item in enumerate(items):
        if id(item) not in made:
            made[id(item)] = serial.from_data(item, f"layer {index} of {shown(text)}")
    return tuple(made[id(item)] for item in items)


def parse_part(text: str) -> Config:
    """The pattern of the one part that a text names. Raises UsageError as :func:`parse_pattern` does."""
    parts = parse_pattern(text)
    if len(parts) != 1:
        raise UsageError(f"pattern {shown(text)}: expected one part, got {len(parts)}")
    return parts[0]
