"""Patterns as people write them: ``"3 x conv(kernel=7), 5 x attention(heads=8), 1 x gla"``.

A list is items separated by commas; an item is an optional count and ``x``, then a part with its settings or a bracketed
list. Settings are numbers, true, false, words, or parts. Names are looked up in the closed registry.
"""

import re
from typing import Any

from anyformer.core import serial
from anyformer.core.config import MAX_LAYERS, Config
from anyformer.core.errors import UsageError

_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d+)?(?:[eE][+-]?\d+)?)|([A-Za-z_]\w*)|([(),=]))")


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens: list[str] = []
        position = 0
        while position < len(text.rstrip()):
            match = _TOKEN.match(text, position)
            if match is None:
                raise UsageError(f"pattern {text!r}: cannot read {text[position:]!r}")
            self.tokens.append(match.group().strip())
            position = match.end()
        self.position = 0

    def peek(self, ahead: int = 0) -> str:
        index = self.position + ahead
        return self.tokens[index] if index < len(self.tokens) else ""

    def take(self, expected: str = "") -> str:
        token = self.peek()
        if not token or (expected and token != expected):
            raise UsageError(f"pattern {self.text!r}: expected {expected or 'more'!r}, got {token or 'the end'!r}")
        self.position += 1
        return token

    def items(self, depth: int = 0) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        if depth > serial.MAX_DEPTH:
            raise UsageError(f"pattern {self.text[:40]!r}...: at most {serial.MAX_DEPTH} brackets deep")
        while True:
            count = int(self.take()) if self.peek().isdigit() else None
            if count is not None:
                self.take("x")
            if self.peek() == "(":
                self.take()
                block = self.items(depth + 1)
                self.take(")")
            else:
                block = [self.part()]
            if len(found) + (count or 1) * len(block) > MAX_LAYERS:
                raise UsageError(f"pattern {self.text!r}: at most {MAX_LAYERS} layers")
            found += block * (1 if count is None else count)
            if self.peek() != ",":
                return found
            self.take()

    def part(self) -> dict[str, Any]:
        name = self.take()
        if not name.isidentifier():
            raise UsageError(f"pattern {self.text!r}: expected the name of a part, got {name!r}")
        data: dict[str, Any] = {"part": name}
        if self.peek() == "(":
            self.take()
            while self.peek() != ")":
                key = self.take()
                self.take("=")
                if key in data:
                    raise UsageError(f"pattern {self.text!r}: {key!r} stands twice")
                data[key] = self.value()
                if self.peek() != ")":
                    self.take(",")
            self.take(")")
        return data

    def value(self) -> Any:
        if self.peek(1) == "(":
            return self.part()
        token = self.take()
        if token[0].isdigit():
            return int(token) if token.isdigit() else float(token)
        return {"true": True, "false": False}.get(token, token)


def parse_pattern(text: str) -> tuple[Config, ...]:
    """The patterns that a text lists, counts unrolled.

    Raises:
        UsageError: where the text cannot be read, or names a part or setting that does not exist.
    """
    reader = _Reader(text)
    items = reader.items()
    if reader.peek():
        raise UsageError(f"pattern {text!r}: cannot read on from {reader.peek()!r}")
    return tuple(serial.from_data(item, f"layer {index} of {text!r}") for index, item in enumerate(items))
