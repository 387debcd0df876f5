"""Uneven classes are counted, said, and weighed so that each counts alike."""

import pytest
import torch
import torch.nn.functional as F

from anyformer.core.errors import UsageError
from anyformer.data.balance import balanced_accuracy, counts, said, weights

LABELS = torch.tensor([0] * 90 + [1] * 9 + [2])
SEVERAL = torch.tensor([[1.0, 0.0]] * 6 + [[1.0, 1.0]] * 2)


def test_counts():
    assert counts(LABELS, "classes", 4).tolist() == [90, 9, 1, 0]
    assert counts(SEVERAL, "multilabel", 2).tolist() == [8, 2]
    with pytest.raises(UsageError, match="numbers have no classes to count"):
        counts(torch.rand(4, 1), "regression", 1)


def test_weighed_classes_count_alike_and_the_loss_keeps_its_scale():
    found = weights(LABELS, "classes", 3)
    mass = torch.tensor([90.0, 9.0, 1.0]) * found
    torch.testing.assert_close(mass, mass[:1].expand(3))
    torch.testing.assert_close(found[LABELS].mean(), torch.tensor(1.0))
    logits = torch.zeros(100, 3)
    torch.testing.assert_close(F.cross_entropy(logits, LABELS, weight=found), F.cross_entropy(logits, LABELS))


def test_power_makes_up_for_counts_in_part():
    torch.testing.assert_close(weights(LABELS, "classes", 3, power=0), torch.ones(3))
    half = weights(LABELS, "classes", 3, power=0.5)
    torch.testing.assert_close(half[2] / half[1], torch.tensor(3.0))


def test_weights_of_several_labels_balance_with_and_without():
    labels = torch.tensor([[1.0, 0.0]] * 6 + [[0.0, 1.0]] * 2)
    found = weights(labels, "multilabel", 2)
    torch.testing.assert_close(found, torch.tensor([2 / 6, 3.0]))


def test_a_class_without_pictures_is_refused():
    with pytest.raises(UsageError, match="class 3 has no picture to be weighed"):
        weights(LABELS, "classes", 4)


def test_it_is_said():
    names = ("cat", "dog", "cow")
    assert said(LABELS, "classes", names) == (
        "classes are uneven: cat has 90 pictures and cow 1, 90 times fewer; accuracy alone would favour cat"
    )
    assert said(torch.arange(30) % 3, "classes", names) == "classes are even: 10 to 10 pictures each"
    assert said(SEVERAL, "multilabel", ("a", "b")).startswith("classes are uneven: a has 8 pictures and b 2, 4 times")
    assert said(torch.rand(4, 1), "regression", ("age",)) == ""


def test_balanced_accuracy_is_the_mean_over_classes():
    always_the_first = torch.zeros(100, dtype=torch.int64)
    assert balanced_accuracy(always_the_first, LABELS, 4) == pytest.approx(1 / 3)
    assert balanced_accuracy(LABELS, LABELS, 4) == 1
