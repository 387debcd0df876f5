"""Perceptrons, norms, linear layers and heads."""

import pytest
import torch
from torch.nn import functional as F

from anyformer import core
from anyformer.core import registry

from .build_part import build, config, on_grid, random


@pytest.mark.parametrize(("activation", "function"), [("gelu", F.gelu), ("relu", F.relu)])
def test_the_perceptron_widens_activates_narrows(activation, function):
    part = build("mlp", dim=4, ratio=1.5, activation=activation)
    x = random(2, 3, 3, 4)
    hidden = function(x @ part.fc1.weight.T + part.fc1.bias)
    assert hidden.shape[-1] == 6
    y = part(x, on_grid(3, 3))
    assert torch.allclose(y, hidden @ part.fc2.weight.T + part.fc2.bias, rtol=1e-10)
    assert torch.equal(part(x[:, 1:2], on_grid(1, 3)), y[:, 1:2]), "every token by itself"


def test_layer_norm_is_equation_4():
    part = build("layer_norm", dim=6, eps=1e-3)
    x = random(2, 5, 6) * 10 + 3
    centred = x - x.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-3).sqrt() * part.weight + part.bias
    assert torch.allclose(part(x), expected, rtol=1e-10)
    assert not part(torch.full((1, 6), 7.0, dtype=torch.float64)).sub(part.bias).any(), "no spread, no signal, no NaN"


def test_a_fresh_norm_gives_mean_0_and_variance_1():
    y = core.build(registry.part("layer_norm").Config(dim=64))(torch.randn(10, 64) * 5 + 2)
    assert y.mean(-1).abs().max() < 1e-5
    assert (y.var(-1, correction=0) - 1).abs().max() < 1e-3


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("act", [None, "gelu", "relu"])
@pytest.mark.parametrize("add", [True, False])
def test_linear_is_the_product_then_the_activation_then_the_addend(bias, act, add):
    part = build("linear", inputs=4, outputs=3, bias=bias)
    assert (part.bias is not None) is bias
    x, addend = random(2, 5, 4), random(2, 5, 3)
    expected = x @ part.weight.T + (part.bias if bias else 0)
    expected = {"gelu": F.gelu, "relu": F.relu, None: lambda y: y}[act](expected)
    expected = expected + addend if add else expected
    assert torch.allclose(part(x, act, addend if add else None), expected, rtol=1e-10)


@pytest.mark.parametrize("norm", [None, "layer_norm"])
@pytest.mark.parametrize("prefix", [0, 2])
def test_the_mean_head_pools_the_grid_alone(norm, prefix):
    part = build("mean_pool_head", dim=4, num_classes=3, norm=norm and config(norm))
    context = on_grid(2, 3, prefix=prefix)
    x = random(2, prefix + 6, 4) if prefix else random(2, 2, 3, 4)
    pooled = x.flatten(1, -2)[:, prefix:].mean(1)
    pooled = pooled if norm is None else part.norm(pooled)
    assert torch.allclose(part(x, context), pooled @ part.linear.weight.T + part.linear.bias, rtol=1e-10)


def test_the_prefix_head_reads_the_class_token_alone():
    part = build("prefix_head", dim=4, num_classes=3)
    x = random(2, 7, 4)
    scores = part(x, on_grid(2, 3, prefix=1))
    assert torch.allclose(scores, x[:, 0] @ part.linear.weight.T + part.linear.bias, rtol=1e-10)
    x[:, 1:] = 0
    assert torch.equal(part(x, on_grid(2, 3, prefix=1)), scores)


@pytest.mark.parametrize(("name", "tokens"), [("mean_pool_head", (2, 3)), ("prefix_head", (6,))])
def test_without_classes_heads_give_features(name, tokens):
    part = build(name, dim=4, num_classes=0)
    x = random(2, *tokens, 4)
    assert part(x, on_grid(2, 3)).shape == (2, 4)
    assert not list(part.parameters())


def test_the_vocabulary_head_scores_every_token():
    part = build("vocabulary_head", dim=4, vocabulary=9)
    x = random(2, 3, 4)
    assert torch.allclose(part(x, on_grid(3)), x @ part.linear.weight.T, rtol=1e-10)
    assert part.linear.bias is None
