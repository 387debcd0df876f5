"""``causal_convolution`` equals its reference and torch's own, whatever the lengths, cuts, layouts and values."""

import functools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from anyformer.core.errors import UsageError
from anyformer.ops import extension
from anyformer.ops.causal_convolution import causal_convolution, convolve_token, reference_causal_convolution

from . import sequences

pytestmark = pytest.mark.usefixtures("poisoned_memory")

CHANNELS, KERNEL = 6, 4
SETTINGS = [(4, "silu"), (3, None), (1, "silu")]


def make(generator, batch, tokens, dtype, kernel=KERNEL):
    inputs = {
        "x": torch.randn(batch, 1, tokens, CHANNELS, generator=generator),
        "state": torch.randn(batch, kernel - 1, CHANNELS, generator=generator),
    }
    return {name: tensor.to(dtype) for name, tensor in inputs.items()}


def make_all(generator, batch, tokens, dtype, kernel=KERNEL):
    inputs = make(generator, batch, tokens, dtype, kernel)
    inputs["weight"] = torch.randn(CHANNELS, kernel, generator=generator).to(dtype)
    inputs["bias"] = torch.randn(CHANNELS, generator=generator).to(dtype)
    return inputs


def over_dimension_2(function, activation="silu"):
    def call(*, x, weight=None, bias=None, state=None, offsets=None):
        if weight is None:
            weight = torch.linspace(-1, 1, CHANNELS * KERNEL, dtype=x.dtype).view(CHANNELS, KERNEL)
        y, state = function(x[:, 0], weight, bias, state=state, offsets=offsets, activation=activation)
        return y[:, None], state

    return call


fast, reference = over_dimension_2(causal_convolution), over_dimension_2(reference_causal_convolution)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("kernel", "activation"), SETTINGS)
def test_equal_to_the_reference_at_all_lengths(kernel, activation, dtype):
    forms = (over_dimension_2(form, activation) for form in (causal_convolution, reference_causal_convolution))
    sequences.lengths(*forms, functools.partial(make_all, kernel=kernel), 17, dtype)


@pytest.mark.parametrize("bias", [False, True])
def test_equal_to_torchs_convolution_of_sequences(bias):
    x, weight = torch.randn(2, 300, CHANNELS), torch.randn(CHANNELS, KERNEL)
    bias = torch.randn(CHANNELS) if bias else None
    y, state = causal_convolution(x, weight, bias)
    theirs = F.conv1d(F.pad(x.mT, (KERNEL - 1, 0)), weight[:, None], bias, groups=CHANNELS).mT
    sequences.close(y, theirs, 1e-5)
    assert torch.equal(state, x[:, 1 - KERNEL :])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tokens", [7, 130])
def test_halves_of_precision(dtype, tokens):
    sequences.halves_of_precision(fast, reference, make_all, dtype, tokens)


def test_any_split():
    sequences.any_split(fast, make)


def test_causal_to_the_bit():
    sequences.causal(fast, make, 70)


def test_rows_are_independent():
    sequences.rows_are_independent(fast, make)


def test_layouts():
    sequences.layouts(fast, make)


@pytest.mark.parametrize("sizes", [(3, 0, 20, 1, 0, 2, 40), (5,), (17, 17)])
def test_packed(sizes):
    sequences.packed(fast, reference, make, sizes)


def test_packed_without_a_state_starts_from_zeros():
    x, weight, offsets = torch.randn(1, 7, CHANNELS), torch.randn(CHANNELS, KERNEL), torch.tensor([0, 3, 3, 7])
    ours, theirs = (form(x, weight, offsets=offsets) for form in (causal_convolution, reference_causal_convolution))
    for mine, expected in zip(ours, theirs, strict=True):
        sequences.close(mine, expected, 1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_extremes_stay_finite(scale):
    sequences.finite(fast, {name: scale * x for name, x in sequences.generated(make, 1, 40, torch.float32).items()})


@pytest.mark.parametrize("activation", [None, "silu"])
def test_gradients_are_those_of_differences(activation):
    inputs = sequences.generated(make_all, 2, 6)
    x, *others = (tensor.requires_grad_() for tensor in inputs.values())
    assert torch.autograd.gradcheck(
        lambda x, state, weight, bias: causal_convolution(x[:, 0], weight, bias, state=state, activation=activation),
        (x, *others),
    )


def test_the_state_holds_no_more_than_itself():
    x = torch.randn(1, 100, CHANNELS)
    _, state = causal_convolution(x, torch.randn(CHANNELS, KERNEL))
    assert state.untyped_storage().nbytes() == state.nbytes


class Convolution(nn.Module):
    def forward(self, x, weight):
        return causal_convolution(x, weight, activation="silu")


def test_compiles_whole_with_gradients():
    inputs = [torch.randn(1, 70, CHANNELS).requires_grad_(), torch.randn(CHANNELS, KERNEL).requires_grad_()]
    compiled = torch.compile(Convolution(), fullgraph=True, backend="aot_eager")
    ours, theirs = (function(*inputs)[0] for function in (compiled, Convolution()))
    sequences.close(ours, theirs, 1e-6)
    gradients = [torch.autograd.grad(y.square().sum(), inputs) for y in (ours, theirs)]
    for mine, expected in zip(*gradients, strict=True):
        sequences.close(mine, expected, 1e-6)


def test_exports_for_any_length():
    inputs = torch.randn(1, 70, CHANNELS), torch.randn(CHANNELS, KERNEL)
    program = torch.export.export(Convolution(), inputs, dynamic_shapes=({1: torch.export.Dim("tokens", min=20)}, {}))
    inputs = torch.randn(1, 33, CHANNELS), inputs[1]
    sequences.close(program.module()(*inputs)[0], Convolution()(*inputs)[0], 1e-6)


def test_autocast_runs():
    x, weight = torch.randn(1, 40, CHANNELS), torch.randn(CHANNELS, KERNEL).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y, _ = causal_convolution(x.bfloat16(), weight)
        y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert weight.grad.isfinite().all()


def test_unknown_activations_are_refused():
    with pytest.raises(UsageError, match="did you mean silu"):
        causal_convolution(torch.zeros(1, 2, 1), torch.zeros(1, 2), activation="silo")


def test_packed_sequences_stand_in_one_row():
    with pytest.raises(UsageError, match="batch of 1, not of 2"):
        causal_convolution(torch.zeros(2, 3, 1), torch.zeros(1, 2), offsets=torch.tensor([0, 6]))


@pytest.mark.parametrize("channels", [1, 16, 35])
@pytest.mark.parametrize("kernel", [1, 2, 4])
@pytest.mark.parametrize("biased", [False, True])
def test_tokens_in_place_are_the_convolution(channels, kernel, biased):
    generator = torch.Generator().manual_seed(channels)
    weight, bias = torch.randn(channels, kernel, generator=generator), torch.randn(channels, generator=generator)
    bias = bias if biased else None
    x = torch.randn(1, 7, channels, generator=generator)
    state = torch.randn(1, kernel - 1, channels, generator=generator)
    expected, last = reference_causal_convolution(x, weight, bias, state=state, activation="silu")
    outs = [convolve_token(token, weight, bias, state) for token in x.split(1, 1)]
    if extension.library("diagonal_scan") is None:
        assert outs == [None] * 7
        return
    assert (torch.cat([out for out in outs if out is not None], 1) - expected).abs().max() <= 1e-5
    assert torch.equal(state, last)


def test_a_token_in_place_is_one_row_of_plain_float32():
    x, weight, state = torch.randn(1, 1, 8), torch.randn(8, 3), torch.zeros(1, 2, 8)
    assert convolve_token(x.double(), weight, None, state) is None
    assert convolve_token(x.expand(2, 1, 8), weight, None, state) is None
    assert convolve_token(x, weight, None, state.expand(2, 2, 8)) is None
    assert convolve_token(x, weight.requires_grad_(), None, state) is None
    with extension.without():
        assert convolve_token(x, weight.detach(), None, state) is None
