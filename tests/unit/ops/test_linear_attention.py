"""``linear_attention`` equals its reference: outputs, final state and gradients, at every length, cut and decay."""

import pytest
import torch
from torch.nn import functional as F

from anyformer.ops import segments
from anyformer.ops.linear_attention import linear_attention, reference_linear_attention

from . import sequences

pytestmark = pytest.mark.usefixtures("poisoned_memory")

HEADS, KEY, VALUE = 2, 6, 5
KINDS = ["none", "scalar", "key"]


@pytest.fixture(autouse=True)
def _computed_again(monkeypatch):
    """What is as small as it is here would otherwise be kept for the gradients."""
    monkeypatch.setattr(segments, "KEPT", 0)


def maker(kind, key=KEY, value=VALUE):
    def make(generator, batch, tokens, dtype):
        def draw(*sizes):
            return torch.randn(batch, HEADS, *sizes, generator=generator, dtype=dtype)

        decay = {"none": None, "scalar": draw(tokens), "key": draw(tokens, key)}[kind]
        if decay is not None:  # from nothing kept to everything kept
            scales = torch.tensor([0, 1e-3, 1, 30], dtype=dtype)
            decay = -decay.abs() * scales[torch.randint(4, decay.shape, generator=generator)]
        return {
            "q": draw(tokens, key),
            "k": draw(tokens, key),
            "v": draw(tokens, value),
            "decay": decay,
            "state": draw(key, value),
        }

    return make


def small(**inputs):
    """Chunks and segments as small as they get, so that few tokens cross the edges of both."""
    return linear_attention(**inputs, chunk=8, segment=32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("fast", "chunk"), [(linear_attention, 64), (small, 8)])
def test_equal_to_the_reference_at_every_length(kind, dtype, fast, chunk):
    sequences.lengths(fast, reference_linear_attention, maker(kind), chunk, dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_state(kind):
    inputs = sequences.generated(maker(kind), 2, 70)
    sequences.equal(small, reference_linear_attention, {**inputs, "state": None})


@pytest.mark.parametrize("kind", KINDS)
def test_with_all_that_the_gradients_need_kept(kind, monkeypatch):
    monkeypatch.setattr(segments, "KEPT", 2**19)
    sequences.equal(small, reference_linear_attention, sequences.generated(maker(kind), 2, 70))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_of_precision(kind, dtype):
    sequences.halves_of_precision(small, reference_linear_attention, maker(kind), dtype)
    inputs = sequences.generated(maker(kind), 1, 9, dtype)
    for tokens in (0, 1, 9):
        out, state = small(**sequences.over_tokens(inputs, lambda x, n=tokens: x[:, :, :n]))
        assert (out.dtype, state.dtype) == (dtype, torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_any_split_of_a_stream_is_the_whole(kind):
    sequences.any_split(small, maker(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_causal_to_the_bit(kind):
    sequences.causal(small, maker(kind), 70)
    sequences.causal(linear_attention, maker(kind), 140, every=9)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_independent(kind):
    sequences.rows_are_independent(small, maker(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_any_layout_and_nothing_written(kind):
    sequences.layouts(small, maker(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(3, 0, 1, 8, 40, 9, 0), (70,), (1, 1, 1), (0, 0)])
def test_packed_sequences(kind, sizes):
    sequences.packed(small, reference_linear_attention, maker(kind), sizes)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_by_differences(kind):
    inputs = sequences.floating(sequences.generated(maker(kind, 2, 2), 1, 5))
    names, leaves = list(inputs), [x.requires_grad_() for x in inputs.values()]

    def function(*leaves):
        return linear_attention(**dict(zip(names, leaves, strict=True)), chunk=2, segment=4)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("kind", ["scalar", "key"])
@pytest.mark.parametrize("strength", [0.0, 1e-8, 1e4, torch.inf])
def test_no_decay_is_too_strong(kind, strength):
    inputs = sequences.generated(maker(kind), 1, 70)
    some = torch.rand(inputs["decay"].shape, generator=torch.Generator().manual_seed(0)) < 0.3
    everywhere, somewhere = torch.full_like(inputs["decay"], -strength), inputs["decay"].masked_fill(some, -strength)
    for decay in (everywhere, somewhere):
        for dtype in (torch.float64, torch.float32):
            problem = {name: x.to(dtype) for name, x in {**inputs, "decay": decay}.items()}
            sequences.equal(small, reference_linear_attention, problem)
            sequences.finite(linear_attention, problem)


@pytest.mark.parametrize("kind", ["scalar", "key"])
def test_weak_decays_keep_their_digits_beside_strong_ones(kind):
    """Differences of running sums lose them: float32 holds 5000.3 to four digits behind the point."""
    inputs = sequences.generated(maker(kind), 1, 64)
    decay = torch.full_like(inputs["decay"], -0.3)
    decay[:, :, 8:16] = -700.3
    exact, _ = reference_linear_attention(**{**inputs, "decay": decay})
    rough = {name: x.float() for name, x in {**inputs, "decay": decay}.items()}
    assert sequences.error(linear_attention(**rough)[0], exact) < 1e-6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-6, 1e4])
@pytest.mark.parametrize("change", ["scaled", "zero keys", "equal keys"])
def test_extremes(kind, scale, change):
    inputs = sequences.generated(maker(kind), 1, 140, torch.float32)
    for name in ("q", "k", "v", "state"):
        inputs[name] = inputs[name] * scale
    if change == "zero keys":
        inputs["k"] = torch.zeros_like(inputs["k"])
    if change == "equal keys":
        inputs["k"] = inputs["k"][:, :, :1].expand_as(inputs["k"])
    sequences.finite(linear_attention, inputs)


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_and_exports(kind):
    inputs = sequences.floating(sequences.generated(maker(kind), 1, 12, torch.float32))

    class Mixer(torch.nn.Module):
        def forward(self, inputs):
            return linear_attention(**inputs, chunk=4, segment=8)

    expected = Mixer()(inputs)
    torch.compiler.reset()
    compiled = torch.compile(Mixer(), fullgraph=True, backend="eager", dynamic=False)
    exported = torch.export.export(Mixer(), (inputs,)).module()
    for function in (compiled, exported):
        for ours, theirs in zip(function(inputs), expected, strict=True):
            sequences.close(ours, theirs, 1e-6)
    leaves = {name: x.clone().requires_grad_() for name, x in inputs.items()}
    gradients = [torch.autograd.grad(f(leaves)[0].square().sum(), list(leaves.values())) for f in (compiled, Mixer())]
    for ours, theirs in zip(*gradients, strict=True):
        sequences.close(ours, theirs, 1e-5)


def test_autocast_does_not_touch_the_state():
    inputs = sequences.generated(maker("scalar"), 1, 70, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out, state = small(**inputs)
    expected, final = small(**inputs)
    assert torch.equal(out, expected)
    assert torch.equal(state, final)


@pytest.mark.parametrize("tokens", [0, 1, 70])
def test_without_memory_as_costs_are_counted(tokens):
    inputs = sequences.generated(maker("scalar"), 2, tokens)
    out, state = linear_attention(**{name: x.to("meta") for name, x in inputs.items()})
    assert (out.shape, out.device.type) == (inputs["v"].shape, "meta")
    assert state.shape == inputs["state"].shape


def test_by_hand():
    """State 1, kept by half, then 2 * 3 added; asked with 10."""
    one = torch.tensor([[[[1.0]]]])
    for function in (linear_attention, reference_linear_attention):
        out, state = function(10 * one, 2 * one, 3 * one, decay=torch.log(0.5 * one[..., 0]), state=one)
        torch.testing.assert_close(state, 6.5 * one)
        torch.testing.assert_close(out, 65 * one)


def test_equal_keys_without_decay_are_running_sums():
    v = torch.randn(1, 1, 300, 3)
    ones = torch.ones(1, 1, 300, 1)
    torch.testing.assert_close(linear_attention(ones, ones, v)[0], v.cumsum(2), atol=1e-4, rtol=1e-4)
    kept = torch.full((1, 1, 300, 1), F.logsigmoid(torch.tensor(0.0)).item())
    out, _ = linear_attention(ones, ones, torch.ones_like(v), decay=kept)
    torch.testing.assert_close(out[:, :, -1], torch.full((1, 1, 3), 2.0))
