"""Generated tasks ask for what their rows hold, and are a function of seed and step."""

import math

import pytest
import torch

from anyformer.core.errors import UsageError
from anyformer.data.recall import Copying, InductionHeads, MultiQueryRecall, SelectiveCopying
from anyformer.data.text import IGNORED

TASKS = [MultiQueryRecall(size=8), Copying(size=8), SelectiveCopying(size=8, tokens=100), InductionHeads(size=8)]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: type(task).__name__)
def test_a_step_is_a_function_of_seed_and_step(task):
    later, first = task(7), task(0)
    again = type(task)(**vars(task))
    assert torch.equal(again(0).ids, first.ids)
    assert torch.equal(again(7).targets, later.targets)
    assert not torch.equal(first.ids, later.ids)
    assert not torch.equal(type(task)(**vars(task) | {"seed": 1})(0).ids, first.ids)
    assert first.ids.shape == first.targets.shape
    assert first.ids.dtype == first.targets.dtype == torch.int64
    scored = first.targets[first.targets != IGNORED]
    for tokens in (first.ids, scored):
        assert 0 <= int(tokens.min()) <= int(tokens.max()) < task.vocabulary


def test_each_key_is_asked_once_for_its_value():
    task = MultiQueryRecall(size=32, tokens=64, pairs=8, symbols=100)
    batch = task(0)
    for ids, targets in zip(batch.ids.tolist(), batch.targets.tolist(), strict=True):
        pairs = dict(zip(ids[0:16:2], ids[1:16:2], strict=True))
        asked = {ids[place]: target for place, target in enumerate(targets) if target != IGNORED}
        assert len(pairs) == 8
        assert asked == pairs
        assert targets[:16] == [IGNORED] * 16
        assert all(place % 2 == 0 for place, target in enumerate(targets) if target != IGNORED)
        assert all(0 < key < 50 <= value for key, value in pairs.items())


def test_queries_come_by_the_power_law():
    task = MultiQueryRecall(size=4000, tokens=84, pairs=1, symbols=64, power=0.3)
    places = (task(0).targets != IGNORED).nonzero()[:, 1]
    shares = ((places - 2) // 2).bincount(minlength=41) / 4000
    law = torch.arange(1, 42) ** -0.7
    assert (shares - law / law.sum()).abs().max() < 4 * math.sqrt(0.25 / 4000)
    late = MultiQueryRecall(size=4000, tokens=84, pairs=1, symbols=64, power=1.0)(0).targets != IGNORED
    assert late.nonzero()[:, 1].double().mean() == pytest.approx(2 + 40, abs=2)


def test_copying_repeats():
    batch = Copying(size=3, length=5, symbols=4)(0)
    assert batch.ids.shape == (3, 10)
    assert (batch.ids[:, 5] == 4).all()
    assert torch.equal(batch.ids[:, 6:], batch.ids[:, :4])
    assert torch.equal(batch.targets[:, 5:], batch.ids[:, :5])
    assert (batch.targets[:, :5] == IGNORED).all()


def test_selective_copying_asks_for_the_symbols_in_order():
    task = SelectiveCopying(size=20, tokens=50, length=6, symbols=3)
    batch = task(1)
    assert batch.ids.shape == (20, 56)
    for ids, targets in zip(batch.ids.tolist(), batch.targets.tolist(), strict=True):
        assert targets[50:] == [token for token in ids[:50] if token != 3]
        assert ids[50:] == [4] * 6
        assert targets[:50] == [IGNORED] * 50
    assert task.vocabulary == 5
    assert len((batch.ids[:, :50] != 3).nonzero()[:, 1].unique()) > 40  # anywhere


def test_induction_asks_what_followed_the_sign():
    batch = InductionHeads(size=200, tokens=12, symbols=5)(2)
    for ids, targets in zip(batch.ids.tolist(), batch.targets.tolist(), strict=True):
        place = ids.index(5)
        assert [i for i, token in enumerate(ids) if token == 5] == [place, 11]
        assert targets == [IGNORED] * 11 + [ids[place + 1]]
    assert len({ids.index(5) for ids in batch.ids.tolist()}) == 10
    assert InductionHeads(size=1, tokens=3)(0).ids.tolist()[0][::2] == [15, 15]


@pytest.mark.parametrize(
    ("task", "sizes", "says"),
    [
        (MultiQueryRecall, {"pairs": 0}, "0 pairs need"),
        (MultiQueryRecall, {"tokens": 63}, "16 pairs need at least 64 tokens"),
        (MultiQueryRecall, {"symbols": 33}, "a vocabulary of 34"),
        (MultiQueryRecall, {"power": 0.0}, "a positive power"),
        (Copying, {"length": 0}, "Copying: length=0"),
        (SelectiveCopying, {"tokens": 15}, "16 symbols do not go into 15 tokens"),
        (SelectiveCopying, {"symbols": 0}, "SelectiveCopying: symbols=0"),
        (InductionHeads, {"tokens": 2}, "do not go into 2 tokens"),
        (Copying, {"size": 0}, "Copying: size=0"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(task, sizes, says):
    with pytest.raises(UsageError, match=says):
        task(**sizes)
    MultiQueryRecall(tokens=64, symbols=34)
