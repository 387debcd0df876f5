"""Convolutions with a bias and a norm, the stems and the down-sampling made of them, products with norms, positions."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from anyformer import core
from anyformer.parts.embeds.patch_embed import adapt_channels
from anyformer.parts.linear.linear import Linear

from .build_part import build, config, on_grid, random


def with_moments(part):
    for module in part.modules():
        if module.__class__.__name__ == "BatchNorm":
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return part


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("activation", [None, "relu", "gelu"])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 1, 1), (3, 2, 1), (7, 2, 3), (2, 2, 0), (1, 1, 0)])
def test_it_is_torchs_convolution_and_norm_in_training_evaluation_and_deployment(
    kernel, stride, padding, activation, bias
):
    settings = {"kernel": kernel, "stride": stride, "activation": activation, "bias": bias}
    part = with_moments(build("normed_convolution", inputs=3, dim=5, norm=config("batch_norm"), **settings))
    convolution = nn.Conv2d(3, 5, kernel, stride, padding, bias=bias).double()
    norm = nn.BatchNorm2d(5).double()
    convolution.load_state_dict({k: v for k, v in part.state_dict().items() if k in ("weight", "bias")})
    norm.load_state_dict({k.removeprefix("norm."): v for k, v in part.state_dict().items() if k.startswith("norm.")})
    act = {None: lambda y: y, "relu": F.relu, "gelu": F.gelu}[activation]
    x = random(2, 7, 8, 3)

    def theirs():
        return act(norm(convolution(x.movedim(-1, 1)))).movedim(1, -1)

    norm.eval()
    expected = theirs()
    assert torch.allclose(part(x), expected, rtol=1e-9, atol=1e-12)
    part.train(), norm.train()
    assert torch.allclose(part(x), theirs(), rtol=1e-9, atol=1e-12)
    assert torch.allclose(part.norm.running_var, norm.running_var)
    part.eval(), norm.eval()
    with torch.no_grad():
        expected, deployed = theirs(), part.deployed()
    assert deployed.norm is None
    assert torch.allclose(deployed(x), expected, rtol=1e-9, atol=1e-12)
    assert deployed.deployed() is deployed


def test_filters_are_adapted_to_channels_and_kernel():
    old, new = (build("normed_convolution", inputs=i, dim=5, kernel=k, stride=2) for i, k in ((3, 4), (6, 2)))
    filters = F.interpolate(adapt_channels(old.weight, 6), (2, 2), mode="bicubic", antialias=True)
    assert torch.equal(new.adapted("weight", old.weight, old.config), filters)
    assert torch.equal(old.adapted("weight", old.weight, old.config), old.weight)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(core.UsageError, match="takes in a batch norm, not 'layer_norm'; give that its own slot"):
        build("normed_convolution", inputs=3, dim=5, norm=config("layer_norm"))
    with pytest.raises(core.UsageError, match=r"a grid of \(1, 4\) is smaller than the filters of 2; give a larger"):
        build("normed_convolution", inputs=3, dim=5, kernel=2, stride=2)(random(1, 1, 4, 3))


def test_a_narrow_stem_is_as_wide_as_told_between_its_layers():
    layers = tuple(config("normed_convolution", kernel=3, stride=s) for s in (2, 1, 2))
    stem = build("narrow_stem", dim=8, channels=1, layers=layers)
    assert [(layer.config.inputs, layer.config.dim) for layer in stem.layers] == [(1, 4), (4, 4), (4, 8)]
    x, context = stem(random(2, 1, 9, 12))
    assert x.shape == (2, 3, 3, 8)
    assert context.layout == core.Layout(grid=(3, 3))


def test_a_strided_down_tells_the_grid_before_and_after():
    part = build("strided_down", inputs=3, dim=5, convolution=config("normed_convolution", stride=2))
    before = on_grid(5, 8)
    x, context, trace = part(random(2, 5, 8, 3), before)
    assert x.shape == (2, 3, 4, 5)
    assert (context.layout, trace) == (core.Layout(grid=(3, 4)), before.layout)
    with pytest.raises(core.UsageError, match="prefix"):
        part(random(2, 41, 3), on_grid(5, 8, prefix=1))


@pytest.mark.parametrize("act", [None, "gelu", "relu"])
def test_a_product_with_a_norm_in_training_evaluation_and_deployment(act):
    part = with_moments(build("batch_norm_linear", inputs=4, outputs=6))
    x, add = random(2, 3, 5, 4), random(2, 3, 5, 6)
    plain = {None: lambda y: y, "relu": F.relu, "gelu": F.gelu}[act]
    for training in (False, True):
        part.train(training)
        product = F.linear(x, part.weight, part.bias)
        assert torch.allclose(part(x, act, add), plain(part.norm(product)) + add, rtol=1e-9, atol=1e-12)
        assert torch.allclose(part(x, act), plain(part.norm(product)), rtol=1e-9, atol=1e-12)
    with torch.no_grad():
        expected, deployed = part.eval()(x, act, add), part.deployed()
        assert isinstance(deployed, Linear)
        assert torch.allclose(deployed(x, act, add), expected, rtol=1e-9, atol=1e-12)


def test_learned_positions_are_added_and_resampled():
    place = {"rows": 2, "columns": 3}
    positions = config("learned_positions", **place, init=core.Init("normal", 1.0))
    part = build("positioned_embed", dim=5, tokens=config("patch_embed", patch=2), position=positions)
    image = random(2, 3, 4, 6)
    assert torch.allclose(part(image)[0], part.tokens(image)[0] + part.position.table, rtol=1e-12)
    with pytest.raises(core.UsageError, match=r"on a grid of \(2, 2\), the learned positions are for \(2, 3\)"):
        part(image[..., :4])
    larger = build("learned_positions", dim=5, rows=4, columns=6)
    flat = torch.full((2, 3, 5), 2.0, dtype=torch.float64)
    assert torch.allclose(larger.adapted("table", flat, part.position.config), torch.full((4, 6, 5), 2.0).double())
