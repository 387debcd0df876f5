"""The split is fixed by its seed, alike in every class, and whole."""

import random

import numpy as np
import pytest
import torch

from anyformer.core.errors import UsageError
from anyformer.data.seeds import derive_seed
from anyformer.data.split import split

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
