"""Axis notation: what every dimension of every tensor means, written once as a string.

``"(q:heads head_dim + k:heads head_dim + v:heads head_dim) dim"`` reads: two dimensions; the first is a concatenation of
three summands, each a row-major product of two axes; the second is one axis. Dimensions are separated by blanks; ``( )``
flattens into one dimension; juxtaposition is a product; ``+`` concatenates; ``label:`` names a summand; an integer is
an axis without a name. From this follow shapes, slicing and the sizes that key maps split by.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True)
class Axis:
    """One named index set; an unnamed constant has a digit string as its name."""

    name: str


@dataclass(frozen=True)
class Product:
    """The row-major product of its factors, flattened."""

    factors: "tuple[Expression, ...]"


@dataclass(frozen=True)
class Sum:
    """The concatenation of its terms; ``labels`` names them ("" where a term has no name)."""

    terms: "tuple[Expression, ...]"
    labels: tuple[str, ...]


Expression = Axis | Product | Sum
Dimensions = tuple[Expression, ...]

_TOKEN = re.compile(r"\s*(?:([A-Za-z_][\w.]*:)|([A-Za-z_][\w.]*)|(\d+)|([()+]))")


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    position = 0
    while position < len(text.rstrip()):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ValueError(f"axis string {text!r}: cannot read {text[position:]!r}")
        tokens.append(match.group().strip())
        position = match.end()
    return tokens


class _Reader:
    """A recursive-descent reader over the tokens of one axis string."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = _tokens(text)
        self.position = 0

    def peek(self) -> str:
        return self.tokens[self.position] if self.position < len(self.tokens) else ""

    def take(self) -> str:
        token = self.peek()
        self.position += 1
        return token

    def factor(self) -> Expression:
        token = self.take()
        if token == "(":
            inner = self.sum()
            if self.take() != ")":
                raise ValueError(f"axis string {self.text!r}: a bracket is not closed")
            return inner
        if not token or token in ")+" or token.endswith(":"):
            raise ValueError(f"axis string {self.text!r}: an axis name is missing before {token!r}")
        return Axis(token)

    def sum(self) -> Expression:
        terms: list[Expression] = []
        labels: list[str] = []
        while True:
            labels.append(self.take()[:-1] if self.peek().endswith(":") else "")
            factors = [self.factor()]
            while self.peek() and self.peek() not in ")+":
                factors.append(self.factor())
            terms.append(factors[0] if len(factors) == 1 else Product(tuple(factors)))
            if self.peek() != "+":
                break
            self.take()
        if any(labels) and (not all(labels) or len(set(labels)) < len(labels)):
            raise ValueError(f"axis string {self.text!r}: name every summand of a sum, each differently, or none")
        return terms[0] if len(terms) == 1 and not labels[0] else Sum(tuple(terms), tuple(labels))


@cache
def parse(text: str) -> Dimensions:
    """Read an axis string into one expression a dimension. Raises ValueError where the notation is broken."""
    reader = _Reader(text)
    dimensions: list[Expression] = []
    while reader.peek():
        dimensions.append(reader.factor())
    return tuple(dimensions)


@cache
def parse_expression(text: str) -> Expression:
    """Read one dimension written without its outer brackets, as definitions and bindings are ("n width + rest")."""
    reader = _Reader(text)
    expression = reader.sum()
    if reader.peek():
        raise ValueError(f"axis expression {text!r}: cannot read on from {reader.peek()!r}")
    return expression


def size(expression: Expression, sizes: Callable[[str], int]) -> int:
    """The number of indices of an expression, with ``sizes`` giving that of every named axis."""
    match expression:
        case Axis(name):
            return int(name) if name.isdigit() else sizes(name)
        case Product(factors):
            return prod(size(factor, sizes) for factor in factors)
        case Sum(terms):
            return sum(size(term, sizes) for term in terms)


def names(expression: Expression) -> Iterator[str]:
    """The axis names in an expression, from left to right, with repeats."""
    match expression:
        case Axis(name):
            if not name.isdigit():
                yield name
        case Product(parts) | Sum(parts):
            for part in parts:
                yield from names(part)


def substitute(expression: Expression, table: Mapping[str, Expression]) -> Expression:
    """The expression with every axis that ``table`` knows replaced by what it stands for."""
    match expression:
        case Axis(name):
            return table.get(name, expression)
        case Product(factors):
            return Product(tuple(substitute(factor, table) for factor in factors))
        case Sum(terms, labels):
            return Sum(tuple(substitute(term, table) for term in terms), labels)


def indices(expression: Expression, sizes: Callable[[str], int], keep: Mapping[str, Tensor]) -> Tensor:
    """The flat indices that stay when each axis in ``keep`` keeps only the indices given (int64, in the order given)."""
    match expression:
        case Axis(name):
            return keep[name] if name in keep else torch.arange(size(expression, sizes))
        case Product(factors):
            flat = torch.zeros(1, dtype=torch.int64)
            for factor in factors:
                inner = indices(factor, sizes, keep)
                flat = (flat[:, None] * size(factor, sizes) + inner[None, :]).reshape(-1)
            return flat
        case Sum(terms):
            pieces: list[Tensor] = []
            offset = 0
            for term in terms:
                pieces.append(indices(term, sizes, keep) + offset)
                offset += size(term, sizes)
            return torch.cat(pieces)


def summands(expression: Expression, sizes: Callable[[str], int]) -> dict[str, int]:
    """The named summands of a dimension and their sizes, in order; a dimension without names is one summand ""."""
    if isinstance(expression, Sum) and expression.labels[0]:
        return {label: size(term, sizes) for label, term in zip(expression.labels, expression.terms, strict=True)}
    return {"": size(expression, sizes)}
