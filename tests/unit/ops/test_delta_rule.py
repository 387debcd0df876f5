"""``delta_rule`` equals its reference: outputs, final state and gradients, at every length, cut and decay."""

import pytest
import torch
from torch.nn import functional as F

from anyformer.ops import segments
from anyformer.ops.delta_rule import delta_rule, reference_delta_rule
from anyformer.ops.linear_attention import linear_attention

from . import sequences

pytestmark = pytest.mark.usefixtures("poisoned_memory")

HEADS, KEY, VALUE = 2, 6, 5
KINDS = ["plain", "gated"]


@pytest.fixture(autouse=True)
def _computed_again(monkeypatch):
    """What is as small as it is here would otherwise be kept for the gradients."""
    monkeypatch.setattr(segments, "KEPT", 0)


def maker(kind, key=KEY, value=VALUE):
    def make(generator, batch, tokens, dtype):
        def draw(*sizes):
            return torch.randn(batch, HEADS, *sizes, generator=generator, dtype=dtype)

        inputs = {
            "q": draw(tokens, key),
            "k": F.normalize(draw(tokens, key), dim=-1),
            "v": draw(tokens, value),
            "beta": draw(tokens).sigmoid(),
            "state": draw(key, value),
        }
        if kind == "gated":  # from nothing kept to everything kept
            decay = -draw(tokens).abs()
            scales = torch.tensor([0, 1e-3, 1, 30], dtype=dtype)
            inputs["decay"] = decay * scales[torch.randint(4, decay.shape, generator=generator)]
        return inputs

    return make


def small(**inputs):
    """Chunks and segments as small as they get, so that few tokens cross the edges of both."""
    return delta_rule(**inputs, chunk=8, segment=32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("fast", "chunk"), [(delta_rule, 32), (small, 8)])
def test_equal_to_the_reference_at_every_length(kind, dtype, fast, chunk):
    sequences.lengths(fast, reference_delta_rule, maker(kind), chunk, dtype)


@pytest.mark.parametrize("kind", KINDS)
def test_wide_keys(kind):
    """Past 64 features chunks are twice as long."""
    sequences.equal(delta_rule, reference_delta_rule, sequences.generated(maker(kind, 65), 1, 70))


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_state(kind):
    inputs = sequences.generated(maker(kind), 2, 70)
    sequences.equal(small, reference_delta_rule, {**inputs, "state": None})


@pytest.mark.parametrize("kind", KINDS)
def test_with_all_that_the_gradients_need_kept(kind, monkeypatch):
    monkeypatch.setattr(segments, "KEPT", 2**19)
    sequences.equal(small, reference_delta_rule, sequences.generated(maker(kind), 2, 70))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_of_precision(kind, dtype):
    sequences.halves_of_precision(small, reference_delta_rule, maker(kind), dtype)
    inputs = sequences.generated(maker(kind), 1, 9, dtype)
    for tokens in (0, 1, 9):
        out, state = small(**sequences.over_tokens(inputs, lambda x, n=tokens: x[:, :, :n]))
        assert (out.dtype, state.dtype) == (dtype, torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_any_split_of_a_stream_is_the_whole(kind):
    sequences.any_split(small, maker(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_causal_to_the_bit(kind):
    sequences.causal(small, maker(kind), 70, bounded=("k", "beta"))
    sequences.causal(delta_rule, maker(kind), 75, every=4, bounded=("k", "beta"))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_independent(kind):
    sequences.rows_are_independent(small, maker(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_any_layout_and_nothing_written(kind):
    sequences.layouts(small, maker(kind))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [(3, 0, 1, 8, 40, 9, 0), (70,), (1, 1, 1), (0, 0)])
def test_packed_sequences(kind, sizes):
    sequences.packed(small, reference_delta_rule, maker(kind), sizes)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_by_differences(kind):
    inputs = sequences.floating(sequences.generated(maker(kind, 2, 2), 1, 5))
    names, leaves = list(inputs), [x.requires_grad_() for x in inputs.values()]

    def function(*leaves):
        return delta_rule(**dict(zip(names, leaves, strict=True)), chunk=2, segment=4)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("strength", [0.0, 1e-8, 1e4, torch.inf])
def test_no_decay_is_too_strong(strength):
    inputs = sequences.generated(maker("gated"), 1, 70)
    some = torch.rand(inputs["decay"].shape, generator=torch.Generator().manual_seed(0)) < 0.3
    everywhere, somewhere = torch.full_like(inputs["decay"], -strength), inputs["decay"].masked_fill(some, -strength)
    for decay in (everywhere, somewhere):
        for dtype in (torch.float64, torch.float32):
            problem = {name: x.to(dtype) for name, x in {**inputs, "decay": decay}.items()}
            sequences.equal(small, reference_delta_rule, problem)
            sequences.finite(delta_rule, problem)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1e-6, 1e4])
@pytest.mark.parametrize("change", ["scaled", "zero keys", "equal keys", "twice", "never"])
def test_extremes(kind, scale, change):
    inputs = sequences.generated(maker(kind), 1, 140, torch.float32)
    for name in ("q", "v", "state"):
        inputs[name] = inputs[name] * scale
    if change == "zero keys":
        inputs["k"] = torch.zeros_like(inputs["k"])
    if change == "equal keys":
        inputs["k"] = inputs["k"][:, :, :1].expand_as(inputs["k"])
        inputs["beta"] = torch.ones_like(inputs["beta"])
    if change in ("twice", "never"):  # beta 2 mirrors the state, which its length survives
        inputs["beta"] = torch.full_like(inputs["beta"], 2.0 if change == "twice" else 0.0)
    sequences.finite(delta_rule, inputs)
    exact = reference_delta_rule(**{name: x.double() for name, x in inputs.items()})
    for ours, theirs in zip(delta_rule(**inputs), exact, strict=True):
        assert sequences.error(ours, theirs) <= 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_compiles_and_exports(kind):
    inputs = sequences.generated(maker(kind), 1, 12, torch.float32)

    class Mixer(torch.nn.Module):
        def forward(self, inputs):
            return delta_rule(**inputs, chunk=4, segment=8)

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
    inputs = sequences.generated(maker("gated"), 1, 70, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out, state = small(**inputs)
    expected, final = small(**inputs)
    assert torch.equal(out, expected)
    assert torch.equal(state, final)


@pytest.mark.parametrize("tokens", [0, 1, 70])
def test_without_memory_as_costs_are_counted(tokens):
    inputs = sequences.generated(maker("gated"), 2, tokens)
    out, state = delta_rule(**{name: x.to("meta") for name, x in inputs.items()})
    assert (out.shape, out.device.type) == (inputs["v"].shape, "meta")
    assert state.shape == inputs["state"].shape


def test_by_hand():
    """State 2, kept by half; half of what is held under the key 1 is replaced by half of 5."""
    one = torch.tensor([[[[1.0]]]])
    for function in (delta_rule, reference_delta_rule):
        half = 0.5 * one[..., 0]
        out, state = function(10 * one, one, 5 * one, half, decay=half.log(), state=2 * one)
        torch.testing.assert_close(state, 3 * one)
        torch.testing.assert_close(out, 30 * one)


def test_orthogonal_keys_are_linear_attention_and_equal_ones_replace():
    k = torch.eye(6, dtype=torch.float64).view(1, 1, 6, 6)
    q, v = torch.randn(1, 1, 6, 6, dtype=torch.float64), torch.randn(1, 1, 6, 3, dtype=torch.float64)
    ones = torch.ones(1, 1, 6, dtype=torch.float64)
    for ours, theirs in zip(delta_rule(q, k, v, ones), linear_attention(q, k, v), strict=True):
        sequences.close(ours, theirs, 1e-14)
    same = k[:, :, :1].expand(1, 1, 6, 6)
    sequences.close(delta_rule(same, same, v, ones)[0], v, 1e-14)
