"""Operations of key maps for pieces of different lengths, stacks, tied tensors and what only our side stores."""

import pytest
import torch

from anyformer import core
from anyformer.core.joins import Concatenate, Counts, Stack, Tie
from anyformer.core.keymap import KeyMap, row


def numbers(*shape):
    return torch.arange(torch.Size(shape).numel()).view(shape)


CASES = {
    "concatenate": (
        row(("q.{i}", "k.{i}"), "qk.{i}", Concatenate((4, 2))),
        {"q.0": numbers(4, 3), "k.0": 100 + numbers(2, 3)},
        {"qk.0": torch.cat((numbers(4, 3), 100 + numbers(2, 3)))},
    ),
    "stack": (
        row("all", ("each.0", "each.1"), Stack()),
        {"all": numbers(2, 3)},
        {"each.0": numbers(3), "each.1": 3 + numbers(3)},
    ),
    "tie": (row(("in", "out"), "both", Tie()), {"in": numbers(2, 2), "out": numbers(2, 2)}, {"both": numbers(2, 2)}),
}


@pytest.mark.parametrize("case", CASES)
def test_there_and_back(case):
    line, theirs, ours = CASES[case]
    table = KeyMap((line,))
    loaded, dumped = table.load(theirs, ours), table.dump(ours)
    for given, wanted in ((loaded, ours), (dumped, theirs)):
        assert given.keys() == wanted.keys()
        assert all(torch.equal(given[name], wanted[name]) for name in wanted)


WRONG = {
    "concatenate": {"q.0": numbers(3, 3), "k.0": numbers(3, 3)},  # as long together, divided at another place
    "stack": {"all": numbers(3, 3)},
    "tie": {"in": numbers(2, 2), "out": 1 + numbers(2, 2)},
}


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_is_named(case):
    line, _, ours = CASES[case]
    with pytest.raises(core.UsageError, match=f"do not fit the model: {next(iter(WRONG[case]))}"):
        KeyMap((line,)).load(WRONG[case], ours)


def test_counts_are_made_and_left_out():
    table = KeyMap((row("w", "weight"), row((), "pair", Counts())))
    ours = {"weight": numbers(3), "pair": numbers(5)}
    loaded = table.load({"w": numbers(3)}, ours)
    assert loaded.keys() == ours.keys()
    assert torch.equal(loaded["pair"], numbers(5))
    assert table.dump(ours).keys() == {"w"}
    with pytest.raises(core.UsageError, match="the weights lack w"):
        table.load({}, ours)
