"""The split is fixed by its seed, alike in every class, and whole."""

import random

import numpy as np
import pytest
import torch

from anyformer.core.errors import UsageError
from anyformer.data.seeds import derive_seed
from anyformer.data.split import FRACTIONS, PARTS, divide, split

LABELS = torch.tensor([0] * 100 + [1] * 40 + [2] * 3)


def test_every_picture_is_in_one_part_and_every_class_in_each():
    parts = split(LABELS, seed=5)
    together = torch.cat([parts.train, parts.validation, parts.test])
    assert sorted(together.tolist()) == list(range(len(LABELS)))
    assert LABELS[parts.train].bincount().tolist() == [70, 28, 1]
    assert LABELS[parts.validation].bincount().tolist() == [15, 6, 1]
    assert LABELS[parts.test].bincount().tolist() == [15, 6, 1]


def test_the_seed_alone_decides():
    first = split(LABELS, seed=1)
    random.seed(9)
    np.random.seed(9)
    torch.manual_seed(9)
    assert split(LABELS, seed=1).digest() == first.digest()
    assert split(LABELS, seed=2).digest() != first.digest()


def test_division_is_the_same_for_ever():
    """A golden value: were it to change, test pictures of earlier models would become training pictures."""
    assert derive_seed(0, "split", 0) == 590571038515690228
    assert split(LABELS, seed=0).test.tolist()[:5] == [13, 21, 28, 30, 33]


def test_order_of_labels_does_not_tell_the_part():
    parts = split(torch.zeros(1000, dtype=torch.int64), seed=0)
    assert abs(parts.test.double().mean() - 499.5) < 4 * 1000 / 12**0.5 / 150**0.5


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.5, 0.5, 0.5), (1.0, 0.0, 0.0), (0.9, 0.2, -0.1)])
def test_fractions_that_do_not_divide_are_refused(fractions):
    with pytest.raises(UsageError, match="three positive numbers with sum 1"):
        split(LABELS, 0, fractions)


def test_class_too_small_for_three_parts_is_refused():
    with pytest.raises(UsageError, match="class 1 has 2 pictures, too few"):
        split(torch.tensor([0, 0, 0, 1, 1]), 0)


def shares(parts, values):
    return [values[getattr(parts, part)].double().mean(0) for part in PARTS]


def test_numbers_are_divided_evenly_over_their_range():
    numbers = torch.randn(400, 1, generator=torch.Generator().manual_seed(0)).exp()
    parts = divide(numbers, "regression", 3)
    assert sorted(torch.cat([parts.train, parts.validation, parts.test]).tolist()) == list(range(400))
    assert [len(getattr(parts, part)) for part in PARTS] == [280, 60, 60]
    for quantile in (0.1, 0.5, 0.9):
        below = (numbers < numbers.quantile(quantile)).float()
        assert all(abs(share.item() - quantile) < 0.03 for share in shares(parts, below))
    assert divide(numbers, "regression", 3).digest() == parts.digest()
    assert divide(numbers, "regression", 4).digest() != parts.digest()


def test_few_and_equal_numbers_are_divided_too():
    parts = divide(torch.tensor([[1.0], [1.0], [2.0]]), "regression", 0)
    assert [len(getattr(parts, part)) for part in PARTS] == [1, 1, 1]
    with pytest.raises(UsageError, match="too few for train, validation, test"):
        divide(torch.tensor([[1.0], [2.0]]), "regression", 0)


def test_every_label_is_divided_alike():
    """Rare labels above all: by chance alone one on 12 of 600 pictures would miss validation one time in seven."""
    chance = torch.Generator().manual_seed(1)
    labels = (torch.rand(600, 6, generator=chance) < torch.tensor([0.02, 0.05, 0.1, 0.3, 0.6, 0.9])).float()
    for seed in range(3):
        parts = divide(labels, "multilabel", seed)
        assert sorted(torch.cat([parts.train, parts.validation, parts.test]).tolist()) == list(range(600))
        for part, fraction in zip(PARTS, FRACTIONS, strict=True):
            chosen = getattr(parts, part)
            assert abs(len(chosen) - 600 * fraction) <= 12
            assert ((labels[chosen].sum(0) - fraction * labels.sum(0)).abs() <= 4).all()
            assert (labels[chosen].sum(0) > 0).all()
    assert divide(labels, "multilabel", 0).digest() != divide(labels, "multilabel", 1).digest()
    assert divide(labels, "multilabel", 2).digest() == parts.digest()


def test_pictures_without_a_label_are_divided_too():
    labels = torch.zeros(100, 2)
    labels[:10, 0] = 1
    parts = divide(labels, "multilabel", 0)
    assert [len(getattr(parts, part)) for part in PARTS] == [70, 15, 15]
    with pytest.raises(UsageError, match="2 pictures are too few for train, validation, test; add some"):
        divide(torch.zeros(2, 1), "multilabel", 0)


@pytest.mark.parametrize("kind", ["classes", "multilabel", "regression"])
def test_given_parts_stay(kind):
    labels = {
        "classes": torch.arange(60) % 3,
        "multilabel": torch.nn.functional.one_hot(torch.arange(60) % 3).float(),
        "regression": torch.arange(60.0)[:, None],
    }[kind]
    given = torch.zeros(60, dtype=torch.int8)
    given[40:] = 2
    parts = divide(labels, kind, 0, given)
    assert parts.test.tolist() == list(range(40, 60))
    assert sorted(torch.cat([parts.train, parts.validation]).tolist()) == list(range(40))
    assert 6 <= len(parts.validation) <= 8
    assert divide(labels, kind, 1, given).validation.tolist() != parts.validation.tolist()
    given[30:40] = 1
    assert divide(labels, kind, 0, given).validation.tolist() == list(range(30, 40))


def test_classes_are_divided_as_by_split():
    assert divide(LABELS, "classes", 5).digest() == split(LABELS, 5).digest()
    with pytest.raises(UsageError, match="class 0 has 1 pictures, too few for train, validation at"):
        divide(torch.tensor([0, 0]), "classes", 0, torch.tensor([0, 2], dtype=torch.int8))
