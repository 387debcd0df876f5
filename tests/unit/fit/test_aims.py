"""Each kind of target has its loss, its score and its words; rare classes weigh more, and it is said."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, r2_score

from anyformer.data.batches import Batch
from anyformer.fit.aims import MOST_WEIGHT, Aim, Learning, aim_of, determination, mean_average_precision


@given(st.integers(2, 40), st.integers(1, 4), st.integers(0, 10**6))
@settings(deadline=None, derandomize=True, max_examples=30)
def test_scores_are_those_of_scikit_learn(n, columns, seed):
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(n, columns, generator=generator)
    labels = (torch.rand(n, columns, generator=generator) < 0.4).float()
    labels[0] = 1.0
    expected = average_precision_score(labels.numpy(), outputs.numpy(), average="macro")
    assert mean_average_precision(outputs, labels) == pytest.approx(expected, abs=1e-9)
    numbers = torch.randn(n, columns, generator=generator).double()
    assert determination(outputs, numbers) == pytest.approx(r2_score(numbers.numpy(), outputs.double().numpy()))


def test_labels_that_nobody_has_are_left_out_of_the_mean():
    outputs = torch.tensor([[3.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    labels = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    assert mean_average_precision(outputs, labels) == pytest.approx((1 / 1 + 2 / 3) / 2)
    assert mean_average_precision(outputs, torch.zeros(3, 2)) == 0.0


def test_even_classes_are_not_weighed_and_uneven_ones_are_and_it_is_said():
    names = ("cat", "dog")
    even = aim_of("classes", torch.tensor([0, 1, 0, 1]), names)
    assert even.weights is None
    assert "even" in even.note
    uneven = aim_of("classes", torch.tensor([0] * 90 + [1] * 10), names)
    assert uneven.weights is not None
    assert (uneven.weights[1] / uneven.weights[0]).item() == pytest.approx(3.0)
    assert "dog" in uneven.note
    assert "the loss weighs them" in uneven.note
    outputs = torch.zeros(2, 2)
    only_rare = uneven.training_loss(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]))
    plain = even.training_loss(torch.tensor([[2.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 1]))
    assert only_rare > plain
    assert uneven.loss(outputs, torch.tensor([0, 1])).item() == pytest.approx(math.log(2))


def test_rare_labels_weigh_more_but_not_without_bound():
    labels = torch.zeros(1000, 2)
    labels[:500, 0] = labels[:3, 1] = 1
    aim = aim_of("multilabel", labels, ("common", "rare"))
    assert aim.weights is not None
    assert aim.weights.tolist() == pytest.approx([1.0, MOST_WEIGHT])
    assert aim.metric == "mean average precision"
    assert aim.loss(torch.zeros(4, 2), labels[:4]).item() == pytest.approx(math.log(2))


def test_numbers_are_learnt_in_deviations_from_their_mean():
    numbers = torch.tensor([[10.0, 0.5], [30.0, 0.7]])
    aim = aim_of("regression", numbers, ("price", "share"))
    assert torch.allclose(aim.standardized(numbers), torch.tensor([[-1.0, -1.0], [1.0, 1.0]]), atol=1e-5)
    assert aim.score(aim.standardized(numbers), numbers) == pytest.approx(1.0)
    assert aim.score(torch.zeros(2, 2), numbers) == pytest.approx(0.0, abs=1e-6)
    assert aim.loss(torch.zeros(2, 2), numbers).item() == pytest.approx(0.5)
    assert aim.description()["center"] == pytest.approx([20.0, 0.6])


class TwoHeads(torch.nn.Module):
    def forward(self, images):
        return images.mean((2, 3)), 2 * images.mean((2, 3))


def test_a_network_of_two_heads_learns_with_both():
    aim = Aim("classes")
    batch = Batch(torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 2, 0]))
    one = batch.images.mean((2, 3))
    wanted = (aim.training_loss(one, batch.labels) + aim.training_loss(2 * one, batch.labels)) / 2
    assert torch.allclose(Learning(aim).losses("student", {"student": TwoHeads()}, batch, 0), wanted)
