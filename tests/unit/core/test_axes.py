"""The axis notation against lists of all indices, written out one by one."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from anyformer.core import axes
from anyformer.core.axes import Axis, Expression, Product, Sum

SIZES = {"a": 1, "b": 2, "heads": 3, "stages.2.dim": 4}
LABELS = ("q", "k", "v")
patient = settings(deadline=None, derandomize=True)


def sums(terms: st.SearchStrategy[Expression]) -> st.SearchStrategy[Expression]:
    some = st.lists(terms, min_size=2, max_size=3)
    plain = some.map(lambda items: Sum(tuple(items), ("",) * len(items)))
    named = st.lists(terms, min_size=1, max_size=3).map(lambda items: Sum(tuple(items), LABELS[: len(items)]))
    return plain | named


EXPRESSIONS = st.recursive(
    st.sampled_from((*SIZES, "1", "2", "3")).map(Axis),
    lambda inner: st.lists(inner, min_size=2, max_size=3).map(lambda items: Product(tuple(items))) | sums(inner),
    max_leaves=5,
)


def some_of(count: int) -> st.SearchStrategy[list[int]]:
    return st.permutations(range(count)).flatmap(lambda order: st.integers(1, count).map(lambda kept: order[:kept]))


KEEPS = st.fixed_dictionaries({}, optional={name: some_of(count) for name, count in SIZES.items()})


def inside(expression: Expression) -> str:
    match expression:
        case Axis(name):
            return name
        case Product(factors):
            return " ".join(map(written, factors))
        case Sum(terms, labels):
            texts = [written(t) if isinstance(t, Sum) else inside(t) for t in terms]
            return " + ".join(f"{label}:{text}" if label else text for label, text in zip(labels, texts, strict=True))


def written(expression: Expression) -> str:
    return inside(expression) if isinstance(expression, Axis) else f"({inside(expression)})"


def members(expression: Expression, ranges: dict[str, range | list[int]]) -> list[tuple[object, ...]]:
    """Every index of a dimension as the row of what was chosen on the way to it."""
    match expression:
        case Axis(name):
            return [(name, i) for i in (range(int(name)) if name.isdigit() else ranges[name])]
        case Product(factors):
            return list(product(*(members(factor, ranges) for factor in factors)))
        case Sum(terms):
            return [(place, member) for place, term in enumerate(terms) for member in members(term, ranges)]


@patient
@given(st.lists(EXPRESSIONS, max_size=3))
def test_what_is_written_is_read(dimensions: list[Expression]) -> None:
    assert axes.parse(" ".join(map(written, dimensions))) == tuple(dimensions)
    assert axes.parse("  ".join(map(written, dimensions)) + " ") == tuple(dimensions)


@patient
@given(EXPRESSIONS)
def test_an_expression_is_a_dimension_without_its_brackets(expression: Expression) -> None:
    assert axes.parse_expression(inside(expression)) == expression


@patient
@given(EXPRESSIONS, KEEPS)
def test_sizes_and_indices_are_those_of_the_list(expression: Expression, keep: dict[str, list[int]]) -> None:
    everything = members(expression, {name: range(size) for name, size in SIZES.items()})
    left = members(expression, {name: keep.get(name, range(size)) for name, size in SIZES.items()})
    tensors = {name: torch.tensor(index) for name, index in keep.items()}
    assert axes.size(expression, SIZES.__getitem__) == len(everything)
    assert axes.indices(expression, SIZES.__getitem__, tensors).tolist() == [everything.index(one) for one in left]


@patient
@given(EXPRESSIONS)
def test_names_are_read_from_left_to_right(expression: Expression) -> None:
    separated = inside(expression).replace("(", " ").replace(")", " ").replace("+", " ").replace(":", ": ").split()
    assert list(axes.names(expression)) == [word for word in separated if word in SIZES]


@patient
@given(EXPRESSIONS, EXPRESSIONS)
def test_substituting_changes_what_an_axis_stands_for_and_nothing_else(outer: Expression, inner: Expression) -> None:
    changed = axes.substitute(outer, {"heads": inner})
    size = {**SIZES, "heads": axes.size(inner, SIZES.__getitem__)}
    assert axes.size(changed, SIZES.__getitem__) == axes.size(outer, size.__getitem__)
    assert axes.substitute(outer, {"heads": Axis("heads")}) == outer


@patient
@given(EXPRESSIONS)
def test_summands_add_up(expression: Expression) -> None:
    found = axes.summands(expression, SIZES.__getitem__)
    assert sum(found.values()) == axes.size(expression, SIZES.__getitem__)
    named = isinstance(expression, Sum) and expression.labels[0]
    assert tuple(found) == (LABELS[: len(found)] if named else ("",))


def test_a_fused_projection_reads_as_its_summands() -> None:
    strings = axes.parse("(q:kv group width + k:kv width + v:kv width) dim")
    sizes = {"kv": 2, "group": 3, "width": 4, "dim": 5}
    assert axes.summands(strings[0], sizes.__getitem__) == {"q": 24, "k": 8, "v": 8}
    assert [axes.size(dimension, sizes.__getitem__) for dimension in strings] == [40, 5]


@pytest.mark.parametrize(
    "text",
    ["(a b", "a b)", "()", "a + b", "(a + )", "(+ a)", "q:a", "(q: + a)", "a-b", "(a, b)", "(q:a + b)", "(q:a + q:b)"],
)
def test_broken_notation_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(ValueError, match="axis string") as caught:
        axes.parse(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["a)", "n width + rest)", "a +", ""])
def test_broken_expressions_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="axis"):
        axes.parse_expression(text)
