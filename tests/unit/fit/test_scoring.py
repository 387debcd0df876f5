"""Scores with their intervals, what goes wrong by label and by number, and the worst mistakes first."""

import pytest
import torch

from anyformer.data.imageset import ImageSet
from anyformer.fit.aims import Aim, aim_of
from anyformer.fit.report import wilson
from anyformer.fit.scoring import scored, summary


def pictures(labels: torch.Tensor, classes: tuple[str, ...], kind) -> ImageSet:
    n = len(labels)
    images = torch.arange(n, dtype=torch.uint8)[:, None, None, None].expand(n, 1, 2, 2).contiguous()
    return ImageSet(images, labels, classes, tuple(f"{i}.png" for i in range(n)), kind)


def test_accuracy_has_wilsons_interval_and_uneven_classes_their_mean():
    targets = torch.tensor([0, 0, 0, 1])
    outputs = torch.tensor([[2.0, 0.0]] * 4)
    even = summary(Aim("classes"), outputs, targets)
    assert even == {"score": 0.75, "accuracy": 0.75, "interval": list(wilson(0.75, 4)), "n": 4}
    uneven = summary(aim_of("classes", targets, ("a", "b")), outputs, targets)
    assert uneven["balanced"] == 0.5


def test_other_scores_have_an_interval_by_resampling_always_the_same():
    generator = torch.Generator().manual_seed(0)
    targets = torch.randn(60, 1, generator=generator)
    aim = aim_of("regression", targets, ("size",))
    outputs = aim.standardized(targets) + 0.5 * torch.randn(60, 1, generator=generator)
    found = summary(aim, outputs, targets)
    low, high = found["interval"]
    assert low < found["score"] < high < 1
    assert 0.05 < high - low < 0.6
    assert summary(aim, outputs, targets) == found


def test_confusions_and_the_surest_mistakes():
    labels = torch.tensor([1, 0, 0, 1, 1])
    outputs = torch.tensor([[3.0, 0.0], [0.0, 1.0], [0.0, 2.0], [2.0, 0.0]])  # of all pictures but the first
    found = scored(Aim("classes"), outputs, labels[1:], pictures(labels, ("cat", "dog"), "classes"), torch.arange(1, 5))
    assert found.confusion == {"classes": ["cat", "dog"], "matrix": [[1, 1], [1, 1]]}
    assert [(x.file, x.label, x.predicted) for x in found.mistakes] == [
        *(("4.png", "dog", "cat"), ("2.png", "cat", "dog"))
    ]
    assert found.mistakes[0].score == pytest.approx(torch.tensor([2.0, 0.0]).softmax(0)[0].item())
    assert (found.mistakes[0].image == 4).all()


def test_labels_have_precision_and_recall_by_name():
    labels = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    outputs = torch.tensor([[5.0, -5.0, -5.0], [5.0, -1.0, -5.0], [4.0, 3.0, -5.0]])
    aim = aim_of("multilabel", labels[:, :2], ("a", "b"))
    found = scored(aim, outputs, labels, pictures(labels, ("a", "b", "c"), "multilabel"), torch.arange(3))
    a, b, c = found.columns or []
    assert (a["pictures"], a["recall"], a["precision"]) == (2, 1.0, pytest.approx(2 / 3))
    assert (b["recall"], b["precision"]) == (0.5, 1.0)
    assert (c["recall"], c["precision"], c["average precision"]) == (None, None, 0.0)
    assert [(x.label, x.predicted) for x in found.mistakes] == [("b", "a, b"), ("a, b", "a")]


def test_numbers_are_off_by_so_many_of_their_own_units():
    targets = torch.tensor([[10.0], [20.0], [30.0]])
    aim = aim_of("regression", targets, ("price",))
    outputs = aim.standardized(torch.tensor([[10.0], [26.0], [31.0]]))
    found = scored(aim, outputs, targets, pictures(targets, ("price",), "regression"), torch.arange(3))
    (row,) = found.columns or []
    assert row["mean error"] == pytest.approx(7 / 3, rel=1e-5)
    assert row["largest error"] == pytest.approx(6.0, rel=1e-5)
    assert [(x.label, x.predicted) for x in found.mistakes][:2] == [("20", "26"), ("30", "31")]
