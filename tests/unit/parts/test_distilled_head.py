"""Two tokens, two heads: apart in training, averaged in evaluation."""

import pytest
import torch

from anyformer import core
from anyformer.parts.heads.distilled import DistilledScores

from .build_part import build, on_grid, random

TWO = on_grid(2, 3, prefix=2)


def test_each_token_is_scored_by_its_own_head_in_training():
    part = build("distilled_head", dim=4, num_classes=3).train()
    x = random(2, 8, 4)
    scores = part(x, TWO)
    assert isinstance(scores, DistilledScores)
    assert torch.allclose(scores.label, x[:, 0] @ part.label.weight.T + part.label.bias, rtol=1e-10)
    assert torch.allclose(scores.teacher, x[:, 1] @ part.teacher.weight.T + part.teacher.bias, rtol=1e-10)


def test_in_evaluation_the_scores_are_averaged():
    part = build("distilled_head", dim=4, num_classes=3)
    x = random(2, 8, 4)
    label, teacher = part.train()(x, TWO)
    assert torch.equal(part.eval()(x, TWO), (label + teacher) / 2)


def test_without_classes_the_tokens_are_the_features():
    part = build("distilled_head", dim=4, num_classes=0)
    x = random(2, 8, 4)
    assert not list(part.parameters())
    assert torch.equal(part(x, TWO), (x[:, 0] + x[:, 1]) / 2)
    assert torch.equal(part.train()(x, TWO).teacher, x[:, 1])


@pytest.mark.parametrize("context", [on_grid(2, 3, prefix=1), on_grid(7), core.Context()])
def test_another_number_of_tokens_before_the_grid_is_refused(context):
    with pytest.raises(
        core.UsageError, match=r"a class and a distillation token, got [01] tokens .*; take an embed with prefix=2"
    ):
        build("distilled_head", dim=4, num_classes=3)(random(1, 7, 4), context)
