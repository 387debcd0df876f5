"""``selective_scan``, compiled and in plain torch, equals its reference, whatever the lengths, cuts, layouts and values."""

import contextlib

import pytest
import torch
from torch import nn

from anyformer.core.errors import UsageError
from anyformer.ops import extension
from anyformer.ops.diagonal_scan import SPAN
from anyformer.ops.selective_scan import reference_selective_scan, scan_token, selective_scan

from . import sequences

pytestmark = pytest.mark.usefixtures("poisoned_memory")

CHANNELS, N = 19, 3  # a whole vector of channels and some, whatever the precision


@pytest.fixture(autouse=True, params=["default", "plain torch"])
def form(request):
    with extension.without() if request.param == "plain torch" else contextlib.nullcontext():
        yield request.param


def make(generator, batch, tokens, dtype, channels=CHANNELS, n=N):
    """What stands along the tokens, these along dimension 2, and the state."""
    sizes = {"x": channels, "step": channels, "b": n, "c": n}
    inputs = {name: torch.randn(batch, 1, tokens, size, generator=generator) for name, size in sizes.items()}
    inputs["step"] = inputs["step"].abs()
    inputs["state"] = torch.randn(batch, channels, n, generator=generator)
    return {name: tensor.to(dtype) for name, tensor in inputs.items()}


def make_all(generator, batch, tokens, dtype):
    inputs = make(generator, batch, tokens, dtype)
    inputs["a"] = -2 * torch.rand(CHANNELS, N, generator=generator).to(dtype)
    inputs["d"] = torch.randn(CHANNELS, generator=generator).to(dtype)
    return inputs


def over_dimension_2(function):
    def call(*, x, step, b, c, a=None, d=None, state=None, offsets=None):
        if a is None:
            a = -torch.linspace(0.1, 2, CHANNELS * N, dtype=x.dtype).view(CHANNELS, N)
        x, step, b, c = (tensor[:, 0] for tensor in (x, step, b, c))
        y, state = function(x, step, a, b, c, d=d, state=state, offsets=offsets)
        return y[:, None], state

    return call


fast, reference = over_dimension_2(selective_scan), over_dimension_2(reference_selective_scan)


def plain(batch=1, tokens=9, channels=3, n=2, dtype=torch.float64):
    inputs = make(torch.Generator().manual_seed(0), batch, tokens, dtype, channels, n)
    x, step, b, c = (inputs[name][:, 0] for name in ("x", "step", "b", "c"))
    a = -torch.linspace(0.5, 2, channels * n, dtype=dtype).view(channels, n)
    return [x, step, a, b, c], {"d": torch.linspace(-1, 1, channels, dtype=dtype), "state": inputs["state"]}


def test_a_value_by_hand():
    one = torch.ones(1, 2, 1)
    y, state = selective_scan(one, one, -one[0, :1], 2 * one, 3 * one, d=torch.tensor([0.5]))
    decay = torch.exp(torch.tensor(-1.0))
    torch.testing.assert_close(y, torch.stack((torch.tensor(6.5), 6.5 + 6 * decay)).view(1, 2, 1))
    torch.testing.assert_close(state, (2 + 2 * decay).view(1, 1, 1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equal_to_the_reference_at_all_lengths(dtype):
    sequences.lengths(fast, reference, make_all, SPAN, dtype)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_of_precision(dtype):
    sequences.halves_of_precision(fast, reference, make_all, dtype)


def test_any_split():
    sequences.any_split(fast, make)


def test_causal_to_the_bit():
    sequences.causal(fast, make, 2 * SPAN + 2, every=3)


def test_rows_are_independent():
    sequences.rows_are_independent(fast, make)


def test_layouts():
    sequences.layouts(fast, make)


@pytest.mark.parametrize("sizes", [(3, 0, 65, 1, 0, 130), (64, 64), (0, 0), (5,)])
def test_packed(sizes):
    if sum(sizes):
        sequences.packed(fast, reference, make, sizes)
    else:
        arguments, named = plain(batch=1, tokens=0)
        state = torch.randn(2, 3, 2, dtype=torch.float64)
        y, last = selective_scan(*arguments, d=named["d"], state=state, offsets=torch.tensor([0, 0, 0]))
        assert y.shape == (1, 0, 3)
        assert torch.equal(last, state)


def test_packed_without_a_state_starts_from_zeros():
    arguments, named = plain(tokens=7)
    offsets = torch.tensor([0, 3, 7])
    for ours, theirs in zip(
        selective_scan(*arguments, d=named["d"], offsets=offsets),
        reference_selective_scan(*arguments, d=named["d"], offsets=offsets),
        strict=True,
    ):
        sequences.close(ours, theirs, 1e-12)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("step", [0.0, 1e-7, 1e4, torch.inf])
def test_extremes_stay_finite(scale, step):
    inputs = sequences.generated(make, 1, SPAN + 3, torch.float32)
    inputs = {name: scale * tensor for name, tensor in inputs.items()}
    if step == torch.inf:  # decays of nothing at all, and nothing that enters
        inputs["a"] = torch.full((CHANNELS, N), -torch.inf)
        inputs["step"] = torch.full_like(inputs["step"], 1e-3)
        out, state = fast(**inputs)
        assert out.isfinite().all()
        assert state.isfinite().all()
    else:
        inputs["step"] = torch.full_like(inputs["step"], step)
        sequences.finite(fast, inputs)


def test_without_a_step_the_state_stays():
    inputs = sequences.generated(make, 2, 70, torch.float32)
    inputs["step"].zero_()
    assert torch.equal(fast(**inputs)[1], inputs["state"])


def test_a_state_that_decays_for_long_becomes_zero():
    inputs = sequences.generated(make, 1, 2000, torch.float32)
    inputs["x"].zero_()
    inputs["step"].fill_(1.0)
    assert not fast(**inputs)[1].any()


def test_gradients_are_those_of_differences():
    arguments, named = plain()
    tensors = [tensor.requires_grad_() for tensor in (*arguments, *named.values())]
    assert torch.autograd.gradcheck(
        lambda x, step, a, b, c, d, state: selective_scan(x, step, a, b, c, d=d, state=state), tensors
    )


class Scan(nn.Module):
    def forward(self, x, step, a, b, c):
        return selective_scan(x, step, a, b, c)


def test_compiles_whole_with_gradients():
    arguments, _ = plain(tokens=70)
    arguments = [tensor.requires_grad_() for tensor in arguments]
    compiled = torch.compile(Scan(), fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(compiled(*arguments), Scan()(*arguments), strict=True):
        sequences.close(ours, theirs, 1e-12)
    ours, theirs = (
        torch.autograd.grad(function(*arguments)[0].square().sum(), arguments) for function in (compiled, Scan())
    )
    for mine, expected in zip(ours, theirs, strict=True):
        sequences.close(mine, expected, 1e-12)


def test_exports_for_any_length():
    arguments, _ = plain(tokens=70)
    tokens = torch.export.Dim("tokens", min=2)
    along = {1: tokens}
    program = torch.export.export(Scan(), tuple(arguments), dynamic_shapes=(along, along, {}, along, along))
    assert "anyformer.diagonal_scan" in str(program.graph)
    arguments, _ = plain(tokens=33)
    for ours, theirs in zip(program.module()(*arguments), Scan()(*arguments), strict=True):
        assert torch.equal(ours, theirs)


def test_autocast_changes_nothing():
    arguments, named = plain(tokens=70, dtype=torch.float32)
    expected = selective_scan(*arguments, **named)
    with torch.autocast("cpu", torch.bfloat16):
        for ours, theirs in zip(selective_scan(*arguments, **named), expected, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    "which", [lambda g: {"step": g["step"][:, :1]}, lambda g: {"b": g["b"][..., :1]}, lambda g: {"d": g["d"][:1]}]
)
def test_shapes_that_do_not_fit_are_refused(which):
    (x, step, a, b, c), named = plain()
    given = {"x": x, "step": step, "a": a, "b": b, "c": c, **named}
    with pytest.raises(UsageError, match="selective_scan with these other tensors needs"):
        selective_scan(**{**given, **which(given)})


def test_packed_sequences_stand_in_one_row():
    arguments, _ = plain(batch=2)
    with pytest.raises(UsageError, match="batch of 1, not of 2"):
        selective_scan(*arguments, offsets=torch.tensor([0, 18]))


@pytest.mark.parametrize("channels", [2, 16, 19, 40])
def test_a_token_in_place_is_the_scan_and_its_gate(channels, form):
    generator = torch.Generator().manual_seed(channels)
    x, step, gate = (torch.randn(1, 1, channels, generator=generator) for _ in range(3))
    b, c = (torch.randn(1, 1, N, generator=generator) for _ in "bc")
    log_rates, d = torch.randn(channels, N, generator=generator), torch.randn(channels, generator=generator)
    step, gate[..., 0] = step.abs(), -200.0
    state = torch.randn(1, N, channels, generator=generator).mT
    rates = -log_rates.double().exp()
    wide = (tensor.double() for tensor in (x, step, rates, b, c))
    expected, last = reference_selective_scan(*wide, d=d.double(), state=state.double())
    y = scan_token(x, step, log_rates, b, c, d, gate, state)
    if form == "plain torch" or extension.library("diagonal_scan") is None:
        assert y is None
        return
    assert y is not None
    expected = expected * nn.functional.silu(gate.double())
    assert (y - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert (state - last).abs().max() <= 1e-5 * last.abs().max()


def test_a_token_in_place_is_one_row_of_plain_float32():
    x, b, state = torch.randn(1, 1, CHANNELS), torch.randn(1, 1, N), torch.zeros(1, N, CHANNELS).mT
    log_rates, d = torch.zeros(CHANNELS, N), torch.zeros(CHANNELS)

    def call(x=x, log_rates=log_rates, state=state):
        return scan_token(x, x, log_rates, b, b, d, x, state)

    assert call(x=x.expand(2, 1, CHANNELS)) is None
    assert call(state=state.expand(2, CHANNELS, N)) is None
    assert call(state=state.contiguous()) is None
    assert call(x=x.double()) is None
    assert call(log_rates=log_rates.clone().requires_grad_()) is None
