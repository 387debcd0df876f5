"""Every check of models that read a whole text is shown to fail on something wrong."""

from functools import partial

import pytest
import torch
from torch import nn

import anyformer as af
from anyformer.verify import encoder_behaviour
from anyformer.verify.encoder_behaviour import CHECKS

make_bert, make_arena = (
    partial(af.create_model, "bert_micro"),
    partial(af.create_model, "long_range_arena_delta_net_micro"),
)
BOTH = pytest.mark.parametrize("make", [make_bert, make_arena], ids=["bert", "arena"])


def hooked(make, hook):
    """A maker of models whose scores a hook changes."""

    def maker():
        model = make()
        model.register_forward_hook(hook)
        return model

    return maker


@BOTH
def test_scores_of_another_shape_or_not_finite_are_seen(make):
    assert len(CHECKS["scores"](hooked(make, lambda model, raw, scores: scores[..., :-1]))) == 4
    assert CHECKS["scores"](hooked(make, lambda model, raw, scores: scores / 0))


def test_a_parameter_without_a_gradient_is_seen():
    def maker():
        model = make_arena()
        model.spare = nn.Parameter(torch.ones(1))
        return model

    (failure,) = CHECKS["gradients"](maker)
    assert failure.startswith("spare")


@BOTH
def test_rows_that_influence_one_another_and_chance_are_seen(make):
    assert CHECKS["rows"](hooked(make, lambda model, raw, scores: scores - scores.mean(0)))
    assert CHECKS["rows"](hooked(make, lambda model, raw, scores: scores + torch.randn(())))


@BOTH
def test_a_token_that_does_not_reach_is_seen(make):
    def maker():
        model = make()
        forward = model.embed.forward
        model.embed.forward = lambda raw: forward(torch.cat((raw[:, :5], raw[:, 5:6] * 0, raw[:, 6:]), 1))
        return model

    assert CHECKS["reach"](maker) == ["token 5 does not reach all scores"]


@BOTH
def test_pads_that_reach_scores_are_seen(make):
    def maker():
        model = make()
        forward = model.embed.forward
        model.embed.forward = lambda raw: forward(raw.ids if isinstance(raw, tuple) else raw)
        return model

    assert len(CHECKS["padding"](maker)) == 2


def test_a_model_that_is_saved_otherwise_is_seen():
    def maker():
        model = make_arena()
        model.register_forward_hook(lambda model, raw, scores: scores + 1)
        return model

    assert CHECKS["saving"](maker) == ["what is loaded is not what was saved"]


def test_a_model_that_learns_nothing_is_seen(monkeypatch):
    monkeypatch.setattr(encoder_behaviour, "STEPS", 2)
    (failure,) = CHECKS["learning"](make_arena)
    assert "after 2 steps" in failure


def test_a_classifier_that_changes_otherwise_is_seen():
    def maker():
        model = make_arena()
        reset = model.reset_classifier

        def wrong(classes):
            reset(classes + 1)
            model.norm.weight += 1

        model.reset_classifier = wrong
        return model

    assert len(CHECKS["classifier"](maker)) == 2
    assert CHECKS["classifier"](make_bert) == []
