"""Convolutions with norms and beside one another, squeeze and excitation, and what is made of them."""

import itertools

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from anyformer import core
from anyformer.parts.norms.batch_norm import BatchNorm

from .build_part import build, config, on_grid, random

NORM = config("batch_norm")


def settled(part):
    """With random moments in every batch norm."""
    for module in part.modules():
        if isinstance(module, BatchNorm):
            module.running_mean.normal_(), module.running_var.uniform_(0.5, 2)
    return part


def made(name, **settings):
    return settled(build(name, **settings))


def branch(kind, kernel, stride=1, norm=NORM):
    return config(kind, kernel=kernel, stride=stride, norm=norm)


def by_hand(part, x):
    """A convolution with its norm behind it, written with torch alone; channels first on the way."""
    y = x.movedim(-1, 1)
    groups = y.shape[1] // part.weight.shape[1]
    y = F.conv2d(y, part.weight, part.bias, part.config.stride, part.config.kernel // 2, groups=groups)
    if part.norm is not None:
        norm = part.norm
        y = F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.config.eps)
    return y.movedim(1, -1)


CASES = list(itertools.product([1, 3, 5], [1, 2], [None, NORM], [(1, 1), (4, 5)]))


@pytest.mark.parametrize(("kernel", "stride", "norm", "grid"), CASES)
@pytest.mark.parametrize("sizes", [{"inputs": 3, "dim": 4}, {"inputs": 3, "multiplier": 2}])
def test_convolutions_are_those_of_torch(sizes, kernel, stride, norm, grid):
    name = "convolution" if "dim" in sizes else "grouped_convolution"
    widths = {"dim": 6} if norm is not None and name == "grouped_convolution" else {"dim": 4}
    part = made(name, **sizes, kernel=kernel, stride=stride, norm=norm and norm.replace(**widths))
    x = random(2, *grid, 3)
    given = part(x)
    torch.testing.assert_close(given, by_hand(part, x), rtol=0, atol=1e-12)
    assert given.is_contiguous()
    with torch.no_grad():
        plain = part.deployed()
    assert (plain is part) == (norm is None)
    assert plain.norm is None
    assert plain.config.norm is None
    torch.testing.assert_close(plain(x), given, rtol=0, atol=1e-12)
    if norm is not None and grid != (1, 1):  # in training the batch's own moments act, not the filters' copy of them
        trained = part.train()(x)
        torch.testing.assert_close(trained.mean((0, 1, 2)), part.norm.bias, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["convolution", "grouped_convolution"])
@pytest.mark.parametrize("identity", [False, True])
@pytest.mark.parametrize("kernels", [(3,), (3, 1), (1, 7, 3)])
def test_parallel_convolutions_are_their_sum(kind, identity, kernels):
    branches = tuple(branch(kind, kernel) for kernel in kernels)
    part = made(
        "parallel_convolution",
        inputs=4,
        dim=4,
        multiplier=1,
        branches=branches,
        identity=NORM if identity else None,
    )
    x = random(2, 5, 6, 4)
    expected = sum(by_hand(inner, x) for inner in part.branches) + (part.identity(x) if identity else 0)
    torch.testing.assert_close(part(x), expected, rtol=0, atol=1e-11)
    with torch.no_grad():
        one = part.deployed()
    assert (one.name, one.config.kernel) == (kind, max(kernels))
    torch.testing.assert_close(one(x), expected, rtol=0, atol=1e-11)
    part.train()
    norms = [*(inner.norm for inner in part.branches), *([part.identity] if identity else [])]
    trained = part(x).mean((0, 1, 2))
    torch.testing.assert_close(trained, sum(norm.bias for norm in norms), rtol=0, atol=1e-12)


def test_a_widening_stride_in_one():
    part = made(
        "parallel_convolution",
        inputs=3,
        dim=6,
        multiplier=2,
        branches=tuple(branch("grouped_convolution", kernel, stride=2) for kernel in (7, 3)),
    )
    x = random(2, 5, 8, 3)
    expected = sum(by_hand(inner, x) for inner in part.branches)
    assert expected.shape == (2, 3, 4, 6)
    torch.testing.assert_close(part(x), expected, rtol=0, atol=1e-11)


def test_what_does_not_fit_together_is_refused():
    sizes = {"inputs": 4, "dim": 4, "multiplier": 1}
    dense, grouped = branch("convolution", 3), branch("grouped_convolution", 3)
    for branches in ((), (dense, grouped), (dense, branch("convolution", 3, stride=2)), (NORM,)):
        with pytest.raises(core.UsageError, match="of one kind and of one stride"):
            build("parallel_convolution", **sizes, branches=branches)
    for wrong in ({"dim": 6}, {"branches": (branch("convolution", 3, stride=2),)}):
        with pytest.raises(core.UsageError, match="needs a stride of 1 and as many channels"):
            build("parallel_convolution", **{**sizes, "branches": (dense,), "identity": NORM, **wrong})
    with pytest.raises(core.UsageError, match="takes in a batch norm, not 'layer_norm'"):
        build("convolution", inputs=3, dim=4, norm=config("layer_norm"))
    with pytest.raises(core.UsageError, match="is odd, not 2"):
        build("convolution", inputs=3, dim=4, kernel=2)


def test_the_cost_in_evaluation_is_that_of_the_widest_branch():
    branches = tuple(branch("convolution", kernel) for kernel in (3, 1))
    part = made("parallel_convolution", inputs=4, dim=4, multiplier=1, branches=branches, identity=NORM)
    counts = []
    for training in (False, True):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            part.train(training)(random(2, 5, 6, 4))
        counts.append(counter.get_total_flops() // 2)
    assert counts == [60 * 16 * 9, 60 * 16 * (9 + 1)]


def test_filters_adapt_to_other_channels():
    old, grey = build("convolution", inputs=3, dim=4), random(2, 5, 6, 1)
    for channels in (1, 6):
        new = build("convolution", inputs=channels, dim=4)
        state = {"weight": new.adapted("weight", old.weight, old.config), "bias": old.bias}
        new.load_state_dict(state)
        expected = old(grey.expand(-1, -1, -1, 3))
        torch.testing.assert_close(new(grey.expand(-1, -1, -1, channels)), expected, rtol=0, atol=1e-12)


def test_squeeze_and_excitation():
    part = build("squeeze_excitation", dim=6, hidden=4)
    x = random(2, 3, 5, 6)
    hidden = (x.mean((1, 2)) @ part.fc1.weight.T + part.fc1.bias).clamp(min=0)
    weights = 1 / (1 + (-(hidden @ part.fc2.weight.T + part.fc2.bias)).exp())
    torch.testing.assert_close(part(x), x * weights[:, None, None], rtol=0, atol=1e-12)
    torch.testing.assert_close(part(x.flatten(1, 2)), part(x).flatten(1, 2), rtol=0, atol=1e-12)
    assert core.resolve(config("squeeze_excitation", dim=6)).hidden == 1


def test_mobile_one():
    inner = config("parallel_convolution", branches=(branch("convolution", 3),), identity=NORM)
    part = made("mobile_one", inputs=4, dim=4, multiplier=1, convolution=inner, squeeze=config("squeeze_excitation"))
    x = random(2, 5, 6, 4)
    torch.testing.assert_close(part(x), F.gelu(part.squeeze(part.convolution(x))), rtol=0, atol=1e-12)


def test_the_perceptron_convolves_first():
    part = made("convolution_mlp", dim=4, hidden=5, convolution=branch("grouped_convolution", 7))
    x = random(2, 5, 6, 4)
    expected = part.fc2(F.gelu(part.fc1(by_hand(part.convolution, x))))
    torch.testing.assert_close(part(x, on_grid(5, 6)), expected, rtol=0, atol=1e-12)
    with pytest.raises(core.UsageError, match="without prefix tokens"):
        part(x, on_grid(5, 5, prefix=5))
    scale = random(4)
    with torch.no_grad():
        assert part.scaled(scale)
    torch.testing.assert_close(part(x, on_grid(5, 6)), expected * scale, rtol=0, atol=1e-12)


def mobile(kind, kernel, stride=1):
    return config("mobile_one", convolution=config("parallel_convolution", branches=(branch(kind, kernel, stride),)))


def test_stem_down_and_head():
    stem = made("convolutional_stem", dim=4, layers=(mobile("convolution", 3, 2), mobile("grouped_convolution", 3, 2)))
    raw = random(2, 3, 9, 14)
    x, ctx = stem(raw)
    assert torch.equal(x, stem.layers[1](stem.layers[0](raw.movedim(1, -1).contiguous())))
    assert x.shape == (2, 3, 4, 4)
    assert ctx.layout == core.Layout(grid=(3, 4))
    large = config("parallel_convolution", branches=(branch("grouped_convolution", 7, 2),))
    down = made("convolution_down", inputs=4, dim=8, large=large, pointwise=mobile("convolution", 1))
    y, below, trace = down(x, ctx)
    assert y.shape == (2, 2, 2, 8)
    assert (below.layout, trace) == (core.Layout(grid=(2, 2)), ctx.layout)
    assert torch.equal(y, down.pointwise(down.large(x)))
    with pytest.raises(core.UsageError, match="dim is 9, but 'inputs multiplier' is 8"):
        build("convolution_down", inputs=4, dim=9, large=large, pointwise=mobile("convolution", 1))
    head = made("convolution_head", dim=8, num_classes=5, convolution=mobile("grouped_convolution", 3))
    assert torch.equal(head(y, below), head.linear(head.convolution(y).mean((1, 2))))
    pooled = made("convolution_head", dim=8, num_classes=0, convolution=mobile("grouped_convolution", 3))
    assert pooled(y, below).shape == (2, 16)
