"""The tasks on which systems must learn are whole, and the baseline is what it says."""

import dataclasses
import sys

import numpy as np
import pytest
import torch

import anyformer as af
from anyformer.core import registry
from anyformer.core.errors import UsageError
from anyformer.data.labelled_text import padded
from anyformer.train.ngram import ByteNGram
from anyformer.verify.learns import QUANTILES
from anyformer.verify.tasks import (
    DIGITS,
    LISTS,
    SOURCES,
    TASKS,
    bag_and_first_token,
    bag_of_tokens,
    logistic_regression,
    most_frequent,
)


def pictures(labels, seed=0):
    """Dark and bright pictures by label, with noise."""
    noise = torch.randint(0, 60, (len(labels), 1, 4, 4), generator=torch.Generator().manual_seed(seed))
    return (noise + 150 * labels[:, None, None, None]).to(torch.uint8)


LABELS = torch.arange(40) % 2


def test_the_baseline_learns_what_a_line_can_divide():
    predicted = logistic_regression(pictures(LABELS), LABELS, pictures(1 - LABELS, seed=1))
    assert predicted.dtype == torch.int64
    assert torch.equal(predicted, 1 - LABELS)


def test_the_baseline_depends_on_the_training_labels():
    predicted = logistic_regression(pictures(LABELS), 1 - LABELS, pictures(LABELS, seed=1))
    assert torch.equal(predicted, 1 - LABELS)


def test_the_baseline_sees_each_test_picture_by_itself():
    train, test, order = pictures(LABELS), pictures(LABELS, seed=1), torch.randperm(40)
    together = logistic_regression(train, LABELS, test)
    assert torch.equal(logistic_regression(train, LABELS, test[order]), together[order])
    assert torch.equal(logistic_regression(train, LABELS, test[:3]), together[:3])


def test_the_baseline_is_deterministic():
    given = pictures(LABELS), LABELS, pictures(torch.zeros(40, dtype=torch.int64), seed=2)
    torch.manual_seed(1)
    first = logistic_regression(*given)
    torch.manual_seed(2)
    assert torch.equal(logistic_regression(*given), first)


def test_without_scikit_learn_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.linear_model", None)
    with pytest.raises(UsageError, match=r'scikit-learn: pip install "anyformer\[fit\]"'):
        logistic_regression(pictures(LABELS), LABELS, pictures(LABELS))


@pytest.mark.parametrize("field", TASKS)
def test_a_task_can_be_judged(field):
    task = TASKS[field]
    assert len(set(task.seeds)) == len(task.seeds) == 5
    assert len(task.seeds) - 1 in QUANTILES
    assert 0 < task.margin < 1
    assert 0 <= task.warmup < 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        task.margin = 0.0


def test_every_system_of_the_field_takes_the_pictures_of_its_task():
    field, task = "vision", DIGITS
    data = task.data()
    assert data.images.dtype == torch.uint8
    assert len(data.images) == len(data.labels)
    assert task.model["num_classes"] == len(data.labels.unique())
    for system in registry.systems().values():
        if system.field == field:
            with torch.device("meta"):
                model = af.create_model(system.small[-1], **task.model)
                scores = model(torch.empty(2, *data.images.shape[1:]))
            assert scores.shape == (2, task.model["num_classes"])


def test_the_baseline_of_sources_is_between_chance_and_the_next_order():
    train, _, test = SOURCES.text().divide(SOURCES.seeds[0])
    counted = np.frombuffer(train.read(0, 2**20), np.uint8)
    bits = [ByteNGram(counted, order).bits_per_byte(np.frombuffer(test.read(0, 2**16), np.uint8)) for order in range(3)]
    assert bits[0] - bits[SOURCES.order] > 0.5 > SOURCES.margin
    assert bits[SOURCES.order] - bits[2] > 0.3


COUNTED = padded([[3, 3, 1], [1, 2, 2, 2], [3, 1], [2, 1, 2], [3, 3], [1, 2]] * 5)
MANY_TWOS = (COUNTED.ids == 2).any(1).long()


def test_the_bag_knows_what_is_there_and_not_where():
    assert torch.equal(bag_of_tokens(COUNTED, MANY_TWOS, COUNTED), MANY_TWOS)
    moved = padded([[1, 3, 3], [2, 2, 2, 1]])
    assert bag_of_tokens(COUNTED, MANY_TWOS, moved).tolist() == [0, 1]
    ordered = padded([[1, 2], [2, 1]] * 20)
    first = torch.arange(40) % 2
    assert (bag_of_tokens(ordered, first, ordered) == first).sum() == 20
    assert torch.equal(bag_and_first_token(ordered, first, ordered), first)


def test_pads_are_not_counted():
    rows = padded([[0, 1], [1], [1, 0], [1]] * 10)
    has_zero = torch.tensor([1, 0, 1, 0] * 10)
    assert torch.equal(bag_of_tokens(rows, has_zero, rows), has_zero)


def test_the_commonest_class_is_said_of_all():
    assert most_frequent(COUNTED, torch.tensor([4, 7, 7]), COUNTED).tolist() == [7] * 30


def test_the_baselines_of_lists():
    """As they were when the margin was set: the commonest class, the bag, and the bag with the outermost operator."""
    found = {}
    for labels in (most_frequent, bag_of_tokens, bag_and_first_token):
        train, test = (dataclasses.replace(LISTS.data, size=1000, seed=seed)(0) for seed in (100, 150))
        predicted = labels(train.images, train.labels, test.images)
        found[labels.__name__] = (predicted == test.labels).double().mean().item()
    assert (
        0.13
        < found["most_frequent"]
        < 0.19
        < found["bag_of_tokens"]
        < 0.26
        < 0.31
        < found["bag_and_first_token"]
        < 0.39
    )
    assert LISTS.baseline is bag_of_tokens
    assert not set(LISTS.swept) & set(LISTS.seeds)
    assert LISTS.margin > 4 * (0.25 * 0.75 / LISTS.tested) ** 0.5
