"""Every check of behaviour is shown to fail on something wrong."""

from functools import partial

import torch
from torch import nn

import anyformer as af
from anyformer.parts.token_mixers.attention import Attention
from anyformer.parts.token_mixers.depthwise import DepthwiseConvolution
from anyformer.verify.behaviour import CHECKS, SIDE, STEPS

make_vit, make_convnext = partial(af.create_model, "vit_micro"), partial(af.create_model, "convnext_micro")


def hooked(hook, make=make_convnext):
    """A maker of models whose scores a hook changes."""

    def maker(**options):
        model = make(**options)
        if not options.get("features_only"):
            model.register_forward_hook(hook)
        return model

    return maker


def batch_mean(model, images, scores):
    return scores - scores.mean(dim=0)


def test_scores_of_another_number_of_classes_are_seen():
    assert len(CHECKS["scores"](lambda **options: make_convnext(**{**options, "num_classes": 7}))) == 2


def test_scores_that_are_not_finite_are_seen():
    assert CHECKS["scores"](hooked(lambda model, images, scores: scores / 0))


def test_a_parameter_without_a_gradient_is_seen():
    def maker(**options):
        model = make_convnext(**options)
        model.stages[0].spare = nn.Parameter(torch.ones(1))
        return model

    (failure,) = CHECKS["gradients"](maker)
    assert failure.startswith("stages.0.spare")


def test_a_gradient_of_zero_is_seen():
    def maker(**options):
        model = make_convnext(**options)
        nn.init.zeros_(model.stages[1].blocks[0].residual.gamma)
        return model

    assert any("stages.1.blocks.0.channel_mixer.fc1.weight" in failure for failure in CHECKS["gradients"](maker))


def test_chance_in_evaluation_is_seen():
    assert CHECKS["determinism"](hooked(lambda model, images, scores: scores + torch.randn(())))


def test_images_that_influence_one_another_are_seen():
    assert CHECKS["rows"](hooked(batch_mean))


def test_a_model_that_is_saved_otherwise_is_seen():
    def maker(**options):
        model = make_convnext(**options)
        state_dict = model.state_dict
        model.state_dict = lambda: {name: tensor + 1e-6 for name, tensor in state_dict().items()}
        return model

    assert CHECKS["saving"](lambda **options: make_convnext(**options)) == []
    assert CHECKS["saving"](maker)


def test_a_model_that_learns_nothing_is_seen():
    (failure,) = CHECKS["learning"](hooked(lambda model, images, scores: scores * 1e-3))
    assert f"after {STEPS} steps" in failure


def test_stochastic_depth_that_does_nothing_is_seen():
    assert CHECKS["drop_path"](lambda **options: make_convnext(**{**options, "drop_path_rate": 0.0})) == [
        "in training mode nothing is dropped"
    ]


def test_stochastic_depth_in_evaluation_is_seen():
    def maker(**options):
        model = make_convnext(**options)
        return model.train() if options.get("drop_path_rate") else model

    def always_training(**options):
        model = maker(**options)
        model.eval = lambda: model
        return model

    assert "in evaluation mode drop_path_rate changes the scores" in CHECKS["drop_path"](always_training)


def test_a_refusal_without_a_remedy_is_seen():
    def maker(**options):
        model = make_vit(**options)
        if options["img_size"] == SIDE:
            model.register_forward_pre_hook(refuse)
        return model

    def refuse(model, images):
        if images[0].shape[-1] != SIDE:
            raise af.UsageError("this size is wrong")

    (failure,) = CHECKS["other_sizes"](maker)
    assert failure == "the refusal of another size has no remedy: this size is wrong"


def test_features_of_a_missing_stage_are_seen():
    def maker(**options):
        extractor = make_convnext(**options)
        if options.get("features_only"):
            extractor.register_forward_hook(lambda module, images, features: features[:-1])
        return extractor

    assert CHECKS["features"](maker)


def test_a_classifier_that_stays_is_seen():
    def maker(**options):
        model = make_convnext(**options)
        model.reset_classifier = lambda count: None
        return model

    assert CHECKS["classifier"](maker) == ["reset_classifier(3) does not give three scores"]


def test_a_body_that_a_new_classifier_changes_is_seen():
    def maker(**options):
        model = make_convnext(**options)
        reset = model.reset_classifier

        def reset_all(count):
            reset(count)
            nn.init.zeros_(model.embed.weight)

        model.reset_classifier = reset_all
        return model

    assert CHECKS["classifier"](maker) == ["reset_classifier changes the body"]


def test_a_prefix_that_is_taken_against_the_declaration_is_seen(monkeypatch):
    monkeypatch.setattr(Attention, "refuses", {"prefix": "it says"})
    assert CHECKS["prefix"](make_vit) == ["attention takes a prefix token, but says otherwise"]


def test_a_prefix_that_is_refused_without_a_declaration_is_seen(monkeypatch):
    monkeypatch.setattr(DepthwiseConvolution, "refuses", {})
    (failure,) = CHECKS["prefix"](make_convnext)
    assert failure == "depthwise_convolution does not take a prefix token, but says otherwise"
