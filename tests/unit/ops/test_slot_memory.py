"""``slot_memory`` and the window beside it equal their references, at every length, cut and decay."""

import pytest
import torch
from torch.nn import functional as F

from anyformer.core.errors import UsageError
from anyformer.ops import segments
from anyformer.ops import slot_memory as module
from anyformer.ops.slot_memory import (
    delayed,
    reference_slot_memory,
    reference_window_attention,
    slot_memory,
    window_attention,
)

from . import sequences

pytestmark = pytest.mark.usefixtures("poisoned_memory")

HEADS, KEY, VALUE, SLOTS = 2, 6, 5, 3


@pytest.fixture(autouse=True)
def _computed_again(monkeypatch):
    """What is as small as it is here would otherwise be kept for the gradients."""
    monkeypatch.setattr(segments, "KEPT", 0)


def make(generator, batch, tokens, dtype):
    def draw(*sizes):
        return torch.randn(batch, HEADS, *sizes, generator=generator, dtype=dtype)

    decay = draw(tokens, SLOTS)  # from nothing kept to everything kept
    scales = torch.tensor([0, 1e-3, 1, 30], dtype=dtype)
    return {
        "q": draw(tokens, KEY),
        "k": draw(tokens, KEY),
        "v": draw(tokens, VALUE),
        "write": draw(tokens, SLOTS).sigmoid(),
        "decay": -decay.abs() * scales[torch.randint(4, decay.shape, generator=generator)],
        "beside": draw(tokens),
        "state": draw(SLOTS, KEY + VALUE),
    }


def in_one(operation):
    """With the state in one tensor, and the log-sum-exp as one more channel of the outputs."""

    def fused(*, state, **inputs):
        if state is not None:
            state = state[..., :KEY].mT, state[..., KEY:]
        out, lse, (keys, values) = operation(**inputs, state=state)
        return torch.cat((out, lse[..., None].to(out.dtype)), -1), torch.cat((keys.mT, values), -1)

    return fused


def chunked(**inputs):
    """Chunks and segments as small as they get, so that few tokens cross the edges of both."""
    return slot_memory(**inputs, chunk=8, segment=32)


fast, small, reference = in_one(slot_memory), in_one(chunked), in_one(reference_slot_memory)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("operation", "chunk"), [(fast, 64), (small, 8)])
def test_equal_to_the_reference_at_every_length(dtype, operation, chunk):
    sequences.lengths(operation, reference, make, chunk, dtype)


@pytest.mark.parametrize("name", ["state", "beside"])
def test_without_a_state_and_alone(name):
    inputs = sequences.generated(make, 2, 70)
    sequences.equal(small, reference, {**inputs, name: None})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_of_precision(dtype):
    sequences.halves_of_precision(small, reference, make, dtype)


def test_any_split_of_a_stream_is_the_whole():
    sequences.any_split(small, make)


def test_causal_to_the_bit():
    sequences.causal(small, make, 70, bounded=("decay",))


def test_rows_are_independent():
    sequences.rows_are_independent(small, make)


def test_any_layout_and_nothing_written():
    sequences.layouts(small, make)


@pytest.mark.parametrize("sizes", [(3, 0, 1, 8, 40, 9, 0), (70,), (0, 0)])
def test_packed_sequences(sizes):
    sequences.packed(small, reference, make, sizes)


def test_gradients_by_differences():
    inputs = sequences.floating(sequences.generated(make, 1, 5))
    names, leaves = list(inputs), [x.requires_grad_() for x in inputs.values()]

    def function(*leaves):
        return in_one(lambda **given: slot_memory(**given, chunk=2, segment=4))(**dict(zip(names, leaves, strict=True)))

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("decay", [0.0, -1e4, -torch.inf])
@pytest.mark.parametrize("scale", [0.0, 1e-6, 1e4])
def test_extremes(decay, scale):
    inputs = sequences.generated(make, 1, 40, torch.float32)
    inputs |= {name: scale * inputs[name] for name in ("q", "k", "v")}
    results = small(**{**inputs, "decay": torch.full_like(inputs["decay"], decay)})
    assert all(x.isfinite().all() for x in results)
    sequences.finite(small, {**inputs, "decay": torch.full_like(inputs["decay"], max(decay, -1e4))})


def test_decays_of_nothing_are_those_of_the_reference():
    inputs = sequences.generated(make, 2, 40)
    inputs["decay"][:, :, ::3] = -torch.inf
    for ours, theirs in zip(small(**inputs), reference(**inputs), strict=True):
        sequences.close(ours, theirs, 1e-12)


def drawn(queries, keys, dtype=torch.float64, batch=2):
    generator = torch.Generator().manual_seed(queries)
    sizes = (queries, KEY), (keys, KEY), (keys, VALUE)
    return [torch.randn(batch, HEADS, *size, generator=generator, dtype=dtype) for size in sizes]


@pytest.mark.parametrize("window", [1, 5, 64, 200, 1000])
@pytest.mark.parametrize("tokens", [(1, 1), (7, 7), (300, 300), (3, 20), (130, 150)])
@pytest.mark.parametrize("block", [4, 256])
def test_windows_and_their_gradients(window, tokens, block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    inputs = [x.requires_grad_() for x in drawn(*tokens)]
    gradients = []
    for operation in (window_attention, reference_window_attention):
        out, lse = operation(*inputs, window=window)
        gradients.append((out, lse, *torch.autograd.grad(out.sin().sum() + lse.sin().sum(), inputs)))
    for ours, theirs in zip(*gradients, strict=True):
        sequences.close(ours, theirs, 1e-12)


def test_windows_of_packed_sequences():
    q, k, v = drawn(20, 20, batch=1)
    sizes = (3, 0, 16, 1)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    alone = [window_attention(*one, window=4) for one in zip(*(x.split(sizes, 2) for x in (q, k, v)), strict=True)]
    for ours, theirs in zip(
        window_attention(q, k, v, window=4, offsets=offsets), zip(*alone, strict=True), strict=True
    ):
        assert torch.equal(ours, torch.cat(theirs, 2))
    with pytest.raises(UsageError, match="must rise from 0"):
        window_attention(q, k, v, window=4, offsets=offsets[:-1])


def test_keys_that_nobody_sees_are_left_out():
    q, k, v = drawn(4, 10)
    seen = torch.ones(2, 10, dtype=torch.bool)
    seen[0, :5] = False
    out, lse = window_attention(q, k, v, window=9, seen=seen)
    shorter = window_attention(q[:1], k[:1, :, 5:], v[:1, :, 5:], window=9)
    whole = window_attention(q[1:], k[1:], v[1:], window=9)
    for ours, row, other in zip((out, lse), shorter, whole, strict=True):
        sequences.close(ours[:1], row, 1e-14)
        sequences.close(ours[1:], other, 1e-14)
    _, alone = window_attention(q, k, v, window=9, seen=torch.zeros_like(seen))
    sequences.close(alone, (q * k[:, :, 6:]).sum(-1), 1e-14)  # each of itself


@pytest.mark.parametrize("window", [3, 400])
def test_one_softmax_over_slots_and_window(window):
    """The parts that are merged by their log-sum-exps are one softmax over all scores."""
    tokens = 30
    inputs = sequences.generated(make, 2, tokens)
    turned_q, turned_k, v = drawn(tokens, tokens)
    inputs |= {"v": v, "beside": None, "state": None}
    mixed, beside = window_attention(turned_q, turned_k, v, window=window)
    out, lse, _ = slot_memory(**{**inputs, "beside": beside})
    merged = out + mixed * (beside - lse).exp()[..., None]

    keys, values = (torch.zeros(2, HEADS, SLOTS, size, dtype=v.dtype) for size in (KEY, VALUE))
    for t in range(tokens):
        write, kept = inputs["write"][:, :, t, :, None], inputs["decay"][:, :, t, :, None].exp()
        keys = kept * keys + write * inputs["k"][:, :, t, None]
        values = kept * values + write * v[:, :, t, None]
        near = slice(max(0, t - window + 1), t + 1)
        scores = torch.cat(
            (
                (keys @ inputs["q"][:, :, t, :, None])[..., 0],
                (turned_k[:, :, near] @ turned_q[:, :, t, :, None])[..., 0],
            ),
            -1,
        )
        expected = (scores.softmax(-1)[..., None] * torch.cat((values, v[:, :, near]), 2)).sum(2)
        sequences.close(merged[:, :, t], expected, 1e-12)


@pytest.mark.parametrize("tokens", [0, 1, 4, 9, 12])
def test_delayed(tokens):
    x = torch.randn(1, 2, 9, 3)
    expected = torch.cat((torch.zeros(1, 2, tokens, 3), x), 2)[:, :, :9]
    assert torch.equal(delayed(x, tokens), expected)
    assert torch.equal(delayed(x, tokens, torch.tensor([0, 9])), expected)
    pieces = torch.cat([delayed(piece, tokens) for piece in x.split((2, 0, 7), 2)], 2)
    assert torch.equal(delayed(x, tokens, torch.tensor([0, 2, 2, 9])), pieces)


def test_an_empty_slot_scores_zero():
    """So that before anything is written, the slots take part in the softmax as keys of zeros."""
    q, k, v = drawn(5, 5)
    still = torch.zeros(2, HEADS, 5, SLOTS, dtype=q.dtype)
    mixed, beside = window_attention(q, k, v, window=5)
    out, lse, _ = slot_memory(q, k, v, still, still, beside=beside)
    assert not out.any()
    sinks = F.pad(q @ k.mT, (SLOTS, 0))
    sinks = sinks.masked_fill(torch.ones(5, 5 + SLOTS, dtype=torch.bool).triu(SLOTS + 1), -torch.inf)
    expected = sinks.softmax(-1)[..., SLOTS:] @ v
    sequences.close(mixed * (beside - lse).exp()[..., None], expected, 1e-12)
