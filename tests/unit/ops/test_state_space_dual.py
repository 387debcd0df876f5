"""``state_space_dual``, compiled and in products of matrices, equals its reference, whatever lengths, cuts and values."""

import contextlib

import pytest
import torch
from torch import nn

from anyformer.core.errors import UsageError
from anyformer.ops import extension
from anyformer.ops.state_space_dual import reference_state_space_dual, state_space_dual

from . import sequences

pytestmark = pytest.mark.usefixtures("poisoned_memory")

HEADS, P, GROUPS, N = 4, 5, 2, 3
CHUNK = 64


@pytest.fixture(autouse=True, params=["default", "plain torch"])
def form(request):
    with extension.without() if request.param == "plain torch" else contextlib.nullcontext():
        yield request.param


def make(generator, batch, tokens, dtype):
    """What stands along the tokens, these along dimension 2, and the state."""
    sizes = {"x": (HEADS, tokens, P), "step": (HEADS, tokens), "b": (GROUPS, tokens, N), "c": (GROUPS, tokens, N)}
    inputs = {name: torch.randn(batch, *size, generator=generator) for name, size in sizes.items()}
    inputs["step"] = inputs["step"].abs()
    inputs["state"] = torch.randn(batch, HEADS, P, N, generator=generator)
    return {name: tensor.to(dtype) for name, tensor in inputs.items()}


def make_all(generator, batch, tokens, dtype):
    inputs = make(generator, batch, tokens, dtype)
    inputs["a"] = -2 * torch.rand(HEADS, generator=generator).to(dtype)
    inputs["d"] = torch.randn(HEADS, generator=generator).to(dtype)
    return inputs


def over_dimension_2(function, **settings):
    def call(*, x, step, b, c, a=None, d=None, state=None, offsets=None):
        if a is None:
            a = -torch.linspace(0.1, 2, HEADS, dtype=x.dtype)
        x, step, b, c = (tensor.transpose(1, 2) for tensor in (x, step, b, c))
        y, state = function(x, step, a, b, c, d=d, state=state, offsets=offsets, **settings)
        return y.transpose(1, 2), state

    return call


fast, reference = over_dimension_2(state_space_dual), over_dimension_2(reference_state_space_dual)
short_segments = over_dimension_2(state_space_dual, chunk=16, segment=32)


def plain(batch=1, tokens=9, dtype=torch.float64, seed=0):
    inputs = make_all(torch.Generator().manual_seed(seed), batch, tokens, dtype)
    x, step, b, c = (inputs[name].transpose(1, 2).contiguous() for name in ("x", "step", "b", "c"))
    return [x, step, inputs["a"], b, c], {"d": inputs["d"], "state": inputs["state"]}


def test_a_value_by_hand():
    one = torch.ones(1, 2, 1, 1)
    y, state = state_space_dual(one, one[..., 0], -one[0, 0, 0], 2 * one, 3 * one, d=torch.tensor([0.5]))
    decay = torch.exp(torch.tensor(-1.0))
    torch.testing.assert_close(y, torch.stack((torch.tensor(6.5), 6.5 + 6 * decay)).view(1, 2, 1, 1))
    torch.testing.assert_close(state, (2 + 2 * decay).view(1, 1, 1, 1))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equal_to_the_reference_at_all_lengths(dtype):
    sequences.lengths(fast, reference, make_all, CHUNK, dtype)


def test_segments_hand_on_their_state():
    sequences.equal(short_segments, reference, sequences.generated(make_all, 2, 75))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_halves_of_precision(dtype):
    sequences.halves_of_precision(fast, reference, make_all, dtype)


def test_any_split():
    sequences.any_split(fast, make)


def test_causal_to_the_bit():
    sequences.causal(short_segments, make, 68)


def test_rows_are_independent():
    sequences.rows_are_independent(fast, make)


def test_layouts():
    sequences.layouts(fast, make)


@pytest.mark.parametrize("sizes", [(3, 0, 65, 1, 0, 130), (64, 64), (5,)])
def test_packed(sizes):
    sequences.packed(fast, reference, make, sizes)


def test_packed_without_a_state_starts_from_zeros():
    arguments, named = plain(tokens=7)
    offsets = torch.tensor([0, 3, 3, 7])
    for ours, theirs in zip(
        state_space_dual(*arguments, d=named["d"], offsets=offsets),
        reference_state_space_dual(*arguments, d=named["d"], offsets=offsets),
        strict=True,
    ):
        sequences.close(ours, theirs, 1e-12)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
@pytest.mark.parametrize("step", [0.0, 1e-7, 1e4])
def test_extremes_stay_finite(scale, step):
    inputs = {name: scale * x for name, x in sequences.generated(make, 1, CHUNK + 3, torch.float32).items()}
    inputs["step"] = torch.full_like(inputs["step"], step)
    sequences.finite(fast, inputs)


def test_decays_of_minus_infinity_leave_the_token_alone():
    inputs = sequences.generated(make, 1, CHUNK + 3, torch.float64)
    inputs["a"] = torch.full((HEADS,), -torch.inf, dtype=torch.float64)
    out, _ = fast(**inputs)
    b, c = (inputs[name].repeat_interleave(HEADS // GROUPS, dim=1) for name in "bc")
    sequences.close(out, inputs["step"][..., None] * inputs["x"] * (b * c).sum(-1, keepdim=True), 1e-12)


def test_gradients_are_those_of_differences():
    arguments, named = plain(tokens=5)
    tensors = [tensor.requires_grad_() for tensor in (*arguments, *named.values())]
    assert torch.autograd.gradcheck(
        lambda x, step, a, b, c, d, state: state_space_dual(x, step, a, b, c, d=d, state=state, chunk=4, segment=4),
        tensors,
    )


class Dual(nn.Module):
    def forward(self, x, step, a, b, c):
        return state_space_dual(x, step, a, b, c)


def test_compiles_whole_with_gradients():
    arguments, _ = plain(tokens=70)
    arguments = [tensor.requires_grad_() for tensor in arguments]
    compiled = torch.compile(Dual(), fullgraph=True, backend="aot_eager")
    for ours, theirs in zip(compiled(*arguments), Dual()(*arguments), strict=True):
        sequences.close(ours, theirs, 1e-12)
    ours, theirs = (
        torch.autograd.grad(function(*arguments)[0].square().sum(), arguments) for function in (compiled, Dual())
    )
    for mine, expected in zip(ours, theirs, strict=True):
        sequences.close(mine, expected, 1e-12)


def test_exports():
    arguments, _ = plain(tokens=70)
    program = torch.export.export(Dual(), tuple(arguments))
    for ours, theirs in zip(program.module()(*arguments), Dual()(*arguments), strict=True):
        sequences.close(ours, theirs, 1e-12)


@pytest.mark.parametrize("tokens", [1, 70])
def test_autocast_changes_nothing(tokens):
    arguments, named = plain(tokens=tokens, dtype=torch.float32)
    expected = state_space_dual(*arguments, **named)
    with torch.autocast("cpu", torch.bfloat16):
        for ours, theirs in zip(state_space_dual(*arguments, **named), expected, strict=True):
            assert torch.equal(ours, theirs)


def test_groups_must_divide_the_heads():
    (x, step, a, b, c), _ = plain()
    b, c = (torch.cat((tensor, tensor[:, :, :1]), dim=2) for tensor in (b, c))
    with pytest.raises(UsageError, match="cannot share 3 groups of b and c among 4 heads"):
        state_space_dual(x, step, a, b, c)


def test_shapes_that_do_not_fit_are_refused():
    (x, step, a, b, c), _ = plain()
    with pytest.raises(UsageError, match=r"state_space_dual with these other tensors needs a of shape \(4,\)"):
        state_space_dual(x, step, a[:2], b, c)


def test_packed_sequences_stand_in_one_row():
    arguments, _ = plain(batch=2)
    with pytest.raises(UsageError, match="batch of 1, not of 2"):
        state_space_dual(*arguments, offsets=torch.tensor([0, 18]))
