"""Lists are those that were described, and come to what they come to by hand."""

import statistics
from collections import Counter

import pytest
import torch

from anyformer.core.errors import UsageError
from anyformer.data import list_operations
from anyformer.data.list_operations import NAMES, OPERATORS, ListOperations, value

SMALL = ListOperations(size=64, depth=4, shortest=32, longest=128)


def tokens(text):
    return [NAMES.index(word) for word in text.split()]


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ("[MAX 2 9 0 ]", 9),
        ("[MIN 2 9 1 ]", 1),
        ("[SM 7 8 ]", 5),
        ("[SM 5 5 ]", 0),
        ("[MED 9 1 2 ]", 2),
        ("[MED 1 2 8 9 ]", 5),
        ("[MED 1 2 5 9 ]", 3),
        ("[MED 0 1 ]", 0),
        ("[MAX 2 [MIN 4 7 ] 0 ]", 4),
        ("[SM [SM 9 9 ] [SM 9 9 ] ]", 6),
        ("[MIN [MAX 1 [MED 3 4 [SM 6 6 6 ] ] ] 7 ]", 4),
    ],
)
def test_values_by_hand(text, due):
    assert value(tokens(text)) == due


def by_recursion(words):
    """The value of the expression that a list of words begins with; what it read is taken from the list."""
    word = words.pop(0)
    if not word.startswith("["):
        return int(word)
    found = []
    while words[0] != "]":
        found.append(by_recursion(words))
    words.pop(0)
    means = {"MIN": min, "MAX": max, "MED": lambda digits: int(statistics.median(digits)), "SM": lambda d: sum(d) % 10}
    return means[word[1:]](found)


def depth_and_arguments(ids):
    deepest, most, least, open_lists = 0, 0, 99, []
    for token in ids:
        name = NAMES[token]
        if name == "]":
            count = open_lists.pop()
            most, least = max(most, count), min(least, count)
        elif open_lists:
            open_lists[-1] += 1
        if name.startswith("["):
            open_lists.append(0)
            deepest = max(deepest, len(open_lists))
    assert not open_lists
    return deepest, most, least


def test_every_list_is_whole_and_has_its_value():
    batch = SMALL(0)
    rows, keep, _ = batch.images
    for ids, kept, label in zip(rows, keep, batch.labels.tolist(), strict=True):
        words = [NAMES[token] for token in ids[kept].tolist()]
        assert 32 <= len(words) <= 128
        assert words[0].startswith("[")
        assert not kept[len(words) :].any()
        assert not ids[len(words) :].any()
        assert by_recursion(words) == label
        assert not words  # nothing stands behind the outermost list


def test_depth_and_arguments_are_within_their_bounds_and_reach_them():
    found = [depth_and_arguments(SMALL.sample(number)[0]) for number in range(300)]
    assert max(deepest for deepest, _, _ in found) == 4
    assert max(most for _, most, _ in found) == 10
    assert min(least for _, _, least in found) == 2


def test_the_long_form_is_that_of_the_arena():
    task = ListOperations(size=6)
    batch = task(0)
    lengths = batch.images.keep.sum(1)
    assert (task.depth, task.arguments, task.vocabulary, task.classes) == (10, 10, 16, 10)
    assert 500 < int(lengths.min()) <= int(lengths.max()) < 2000
    assert all(depth_and_arguments(task.sample(number)[0])[0] <= 10 for number in range(6))


def test_operators_digits_and_classes_are_all_there():
    batch = SMALL(1)
    counts = Counter(batch.images.ids[batch.images.keep].tolist())
    operators = [counts[NAMES.index(f"[{name}")] for name in OPERATORS]
    digits = [counts[NAMES.index(str(digit))] for digit in range(10)]
    assert min(operators) > 0.7 * max(operators)
    assert min(digits) > 0.7 * max(digits)
    assert sum(operators) == counts[NAMES.index("]")]
    assert len(set(batch.labels.tolist())) == 10


def test_a_step_is_a_function_of_seed_and_step():
    later, first = SMALL(3), SMALL(0)
    again = ListOperations(**vars(SMALL))
    assert torch.equal(again(0).images.ids, first.images.ids)
    assert torch.equal(again(3).labels, later.labels)
    assert not torch.equal(ListOperations(**vars(SMALL) | {"seed": 1})(0).labels, first.labels)
    half = ListOperations(**vars(SMALL) | {"size": 32})
    assert torch.equal(torch.cat((half(0).labels, half(1).labels)), first.labels)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"depth": 0}, "cannot be drawn"),
        ({"arguments": 1}, "cannot be drawn"),
        ({"shortest": 2000}, "cannot be drawn"),
        ({"size": 0}, "give at least one row"),
    ],
)
def test_what_cannot_be_drawn_is_named(options, sentence):
    with pytest.raises(UsageError, match=sentence):
        ListOperations(**options)


def test_lengths_that_no_list_has_are_named(monkeypatch):
    monkeypatch.setattr(list_operations, "ATTEMPTS", 50)
    with pytest.raises(UsageError, match=r"depth 1 with up to 2 arguments has 5 to 9 tokens in 50 attempts"):
        ListOperations(depth=1, arguments=2, shortest=5, longest=9).sample(0)
