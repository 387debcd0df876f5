"""``prefix_attention`` equals its reference and softmax itself: outputs, final state and gradients, at every length and cut."""

import pytest
import torch

from anyformer.ops import segments
from anyformer.ops.prefix_attention import empty_state, prefix_attention, reference_prefix_attention

from . import sequences

pytestmark = pytest.mark.usefixtures("poisoned_memory")

HEADS, VALUE = 2, 5


@pytest.fixture(autouse=True)
def _computed_again(monkeypatch):
    """What is as small as it is here would otherwise be kept for the gradients."""
    monkeypatch.setattr(segments, "KEPT", 0)


def make(generator, batch, tokens, dtype):
    def draw(*sizes):
        return torch.randn(batch, HEADS, *sizes, generator=generator, dtype=dtype)

    state = torch.cat((draw(1), draw(1).abs() + 0.5, draw(VALUE)), -1)
    return {"scores": 3 * draw(tokens), "v": draw(tokens, VALUE), "state": state}


def small(**inputs):
    """Chunks and segments as small as they get, so that few tokens cross the edges of both."""
    return prefix_attention(**inputs, chunk=8, segment=32)


def softmax(scores, v):
    """Every prefix by itself."""
    seen = torch.ones(scores.shape[-1], scores.shape[-1], dtype=torch.bool).tril()
    return scores[..., None, :].where(seen, -torch.inf).softmax(-1) @ v


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("fast", "chunk"), [(prefix_attention, 32), (small, 8)])
def test_equal_to_the_reference_at_every_length(dtype, fast, chunk):
    sequences.lengths(fast, reference_prefix_attention, make, chunk, dtype)


@pytest.mark.parametrize("function", [prefix_attention, small, reference_prefix_attention])
def test_it_is_softmax_over_every_prefix(function):
    inputs = sequences.generated(make, 2, 70)
    del inputs["state"]
    out, state = function(**inputs)
    sequences.close(out, softmax(**inputs), 1e-13)
    sequences.close(state[..., 0], inputs["scores"].amax(-1), 0.0)
    sequences.close(state[..., 0] + state[..., 1].log(), inputs["scores"].logsumexp(-1), 1e-13)
    sequences.close(state[..., 2:] / state[..., 1:2], out[:, :, -1], 1e-13)


def test_without_a_state_gradients_are_those_of_softmax():
    inputs = sequences.generated(make, 2, 70)
    del inputs["state"]
    sequences.equal(lambda **i: small(**i)[:1], lambda **i: (softmax(**i),), inputs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_of_precision(dtype):
    sequences.halves_of_precision(small, reference_prefix_attention, make, dtype)
    inputs = sequences.generated(make, 1, 9, dtype)
    for tokens in (0, 1, 9):
        out, state = small(**sequences.over_tokens(inputs, lambda x, n=tokens: x[:, :, :n]))
        assert (out.dtype, state.dtype) == (dtype, torch.float32)


def test_any_split_of_a_stream_is_the_whole():
    sequences.any_split(small, make)


def test_causal_to_the_bit():
    sequences.causal(small, make, 70)
    sequences.causal(prefix_attention, make, 140, every=9)


def test_rows_are_independent():
    sequences.rows_are_independent(small, make)


def test_any_layout_and_nothing_written():
    sequences.layouts(small, make)


@pytest.mark.parametrize("sizes", [(3, 0, 1, 8, 40, 9, 0), (70,), (1, 1, 1), (0, 0)])
def test_packed_sequences(sizes):
    sequences.packed(small, reference_prefix_attention, make, sizes)


def test_packed_sequences_begin_from_nothing():
    inputs = sequences.generated(make, 1, 20)
    del inputs["state"]
    out, state = small(**inputs, offsets=torch.tensor([0, 7, 7, 20]))
    for i, part in enumerate((slice(0, 7), slice(7, 7), slice(7, 20))):
        alone, final = small(**sequences.over_tokens(inputs, lambda x, part=part: x[:, :, part]))
        sequences.close(out[:, :, part], alone, 1e-13)
        assert torch.equal(state[i : i + 1, :, 0], final[..., 0])


def test_gradients_by_differences():
    inputs = sequences.floating(sequences.generated(make, 1, 5))
    names, leaves = list(inputs), [x.requires_grad_() for x in inputs.values()]

    def function(*leaves):
        return prefix_attention(**dict(zip(names, leaves, strict=True)), chunk=2, segment=4)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("slope", [-1e4, -30.0, 30.0, 1e4])
def test_rising_and_falling_scores_of_any_size(slope, dtype):
    """Each output stays a mean of values: the last one where scores rise, the first one where they fall."""
    inputs = {
        "scores": slope * torch.arange(70.0, dtype=dtype).expand(1, 1, -1),
        "v": torch.randn(1, 1, 70, 3, dtype=dtype),
    }
    out, _ = small(**inputs)
    expected = inputs["v"] if slope > 0 else inputs["v"][:, :, :1].expand_as(out)
    torch.testing.assert_close(out, expected, rtol=1e-6, atol=1e-6)
    sequences.finite(prefix_attention, inputs)


@pytest.mark.parametrize("scale", [1e-6, 1e4])
@pytest.mark.parametrize("change", ["scaled", "equal scores"])
def test_extremes(scale, change):
    inputs = {name: scale * x for name, x in sequences.generated(make, 1, 140, torch.float32).items()}
    if change == "equal scores":
        inputs["scores"] = inputs["scores"][:, :, :1].expand_as(inputs["scores"])
    sequences.finite(prefix_attention, inputs)


def test_what_is_left_out_reaches_nobody():
    inputs = sequences.generated(make, 2, 40)
    del inputs["state"]
    out = torch.rand(inputs["scores"].shape, generator=torch.Generator().manual_seed(0)) < 0.4
    out[:, :, :11] = True  # more than a chunk
    leaves = {name: x.requires_grad_() for name, x in inputs.items()}
    given, state = small(scores=leaves["scores"].masked_fill(out, -torch.inf), v=leaves["v"])
    assert not given[:, :, :11].any()
    for row in range(2):
        for head in range(HEADS):
            kept = ~out[row, head]
            part = {name: x[row, head][kept][None, None] for name, x in inputs.items()}
            sequences.close(given[row, head][kept], softmax(**part)[0, 0], 1e-13)
    gradients = torch.autograd.grad(given.sum() + state[..., 1:].sum(), list(leaves.values()))
    for gradient in gradients:
        assert gradient.isfinite().all()
        assert not gradient[out].any()
    nothing, state = small(scores=torch.full((1, 1, 9), -torch.inf), v=torch.randn(1, 1, 9, 3))
    assert not nothing.any()
    assert torch.equal(state, empty_state(nothing, 1))


def test_compiles_and_exports():
    inputs = sequences.floating(sequences.generated(make, 1, 12, torch.float32))

    class Mixer(torch.nn.Module):
        def forward(self, inputs):
            return prefix_attention(**inputs, chunk=4, segment=8)

    expected = Mixer()(inputs)
    torch.compiler.reset()
    compiled = torch.compile(Mixer(), fullgraph=True, backend="eager", dynamic=False)
    exported = torch.export.export(Mixer(), (inputs,)).module()
    for function in (compiled, exported):
        for ours, theirs in zip(function(inputs), expected, strict=True):
            sequences.close(ours, theirs, 1e-6)


def test_autocast_does_not_touch_the_state():
    inputs = sequences.generated(make, 1, 70, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        given = small(**inputs)
    for ours, expected in zip(given, small(**inputs), strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize("tokens", [0, 1, 70])
def test_without_memory_as_costs_are_counted(tokens):
    inputs = sequences.generated(make, 2, tokens)
    out, state = prefix_attention(**{name: x.to("meta") for name, x in inputs.items()})
    assert (out.shape, out.device.type) == (inputs["v"].shape, "meta")
    assert state.shape == inputs["state"].shape


def test_by_hand():
    """Weights 1 and 3 of values 4 and 8: a mean of 7."""
    scores = torch.tensor([[[1.0, 3.0]]]).log()
    for function in (prefix_attention, reference_prefix_attention):
        out, state = function(scores=scores, v=torch.tensor([[[[4.0], [8.0]]]]))
        torch.testing.assert_close(out, torch.tensor([[[[4.0], [7.0]]]]))
        torch.testing.assert_close(state, torch.tensor([[[1.0986123, 4 / 3, 28 / 3]]]))
