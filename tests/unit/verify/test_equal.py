from dataclasses import replace

import pytest
import torch

from anyformer.core import registry
from anyformer.verify import equal as module
from anyformer.verify.equal import LIMITS, Comparison, compare, relative_error
from anyformer.verify.subjects import Pictures

EXACT = Comparison(
    size=(8, 8), outputs=0.0, features=0.0, input_gradient=0.0, parameter_gradients=0.0, float32=0.0, rounding=0.0
)


@pytest.mark.parametrize("what", LIMITS)
@pytest.mark.parametrize("factor", [1.01, float("inf"), float("nan")])
def test_a_comparison_fails_above_each_limit(what, factor):
    assert EXACT.failures() == []
    assert replace(EXACT, **{what: LIMITS[what]}).failures() == []
    (failure,) = replace(EXACT, **{what: LIMITS[what] * factor}).failures()
    assert failure.startswith(what)


def test_single_precision_may_differ_by_twice_the_oracles_own_rounding():
    deep = replace(EXACT, rounding=5e-5)
    assert replace(deep, float32=9.9e-5).failures() == []
    (failure,) = replace(deep, float32=1.01e-4).failures()
    assert failure.startswith("float32")


def test_relative_error():
    assert relative_error(torch.tensor([1.0, 2.5]), torch.tensor([1.0, 2.0])) == 0.25
    assert relative_error(torch.zeros(2), torch.zeros(3)) == float("inf")


@pytest.mark.parametrize(
    ("parameter", "wrong"),
    [
        ("blocks.0.mlp.fc2.bias", ["outputs", "features", "input_gradient", "parameter_gradients"]),
        ("head.bias", ["outputs"]),
    ],
)
def test_a_weight_that_differs_in_the_seventh_digit_is_seen(monkeypatch, parameter, wrong):
    dump = module.dump_weights

    def almost(model, format):
        weights = {name: tensor.clone() for name, tensor in dump(model, format=format).items()}
        weights[parameter] *= 1 + 1e-6
        return weights

    monkeypatch.setattr(module, "dump_weights", almost)
    failures = compare("vit_micro", (8, 12), batch=1).failures()
    assert [failure.split()[0] for failure in failures] == wrong


def test_a_gradient_that_differs_is_seen_where_outputs_agree(monkeypatch):
    class OtherGradients(Pictures):
        def ours(self, model, raw):
            *features, scores = super().ours(model, raw)
            return [*features, scores.detach() + (scores - scores.detach()) * (1 + 1e-7)]

    monkeypatch.setattr(module, "subject_of", lambda name: OtherGradients())
    failures = compare("convnext_micro", (32, 32), batch=1).failures()
    assert [failure.split()[0] for failure in failures] == ["input_gradient", "parameter_gradients"]


def test_single_precision_that_differs_is_seen(monkeypatch):
    class WrongInFloat32(Pictures):
        def ours(self, model, raw):
            tensors = super().ours(model, raw)
            return [tensor * (1 + 1e-4) for tensor in tensors] if raw.dtype == torch.float32 else tensors

    monkeypatch.setattr(module, "subject_of", lambda name: WrongInFloat32())
    (failure,) = compare("convnext_micro", (32, 32), batch=1).failures()
    assert failure.startswith("float32")


def test_a_parameter_that_is_said_to_be_inert_must_be(monkeypatch):
    system = replace(registry.system_of("convnext_micro"), inert={"head.linear.bias": "a wrong claim"})
    monkeypatch.setattr(registry, "system_of", lambda name: system)
    (failure,) = module.equal("convnext_micro").failures
    assert failure.startswith("scaling head.linear.bias, which is said to be inert, moves what is compared by")


def test_an_inert_parameter_is_listed(monkeypatch):
    # the last stage's window is one token, whose bias is alone
    monkeypatch.setattr(module, "subject_of", lambda name: Pictures(other=(16, 16)))
    evidence = module.equal("swin_mini")
    inert = {failure.split()[1] for failure in evidence.failures if failure.startswith("scaling")}
    assert inert == {"stages.2.blocks.0.mixer.table", "stages.2.blocks.1.mixer.table"}
    assert evidence.figures["weakest"]["parameter"] in inert
