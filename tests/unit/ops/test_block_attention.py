"""``block_attention`` equals its reference; a stream of it keeps one block and is the same however it is cut."""

import pytest
import torch
from torch.nn import functional as F

from anyformer.core.errors import UsageError
from anyformer.ops.block_attention import (
    block_attention,
    new_block,
    places_of,
    reference_block_attention,
    streamed_block_attention,
)

from . import sequences

pytestmark = pytest.mark.usefixtures("poisoned_memory")

HEADS, KEY, VALUE, BLOCK = 2, 6, 5, 8
KINDS = ["softmax", "relu"]


def make(generator, batch, tokens, dtype):
    def draw(*sizes):
        return torch.randn(batch, HEADS, tokens, *sizes, generator=generator, dtype=dtype)

    return {"q": draw(KEY), "k": draw(KEY), "v": draw(VALUE)}


def masked(batch, tokens):
    return torch.rand(batch, tokens, generator=torch.Generator().manual_seed(3)) > 0.4


def fast(q, k, v, keep=None, offsets=None, block=BLOCK, **options):
    places = places_of(q, block, keep=keep, offsets=offsets)
    return block_attention(q, k, v, places, scale=0.3, block=block, keep=keep, **options)


def reference(q, k, v, block=BLOCK, **options):
    return reference_block_attention(q, k, v, scale=0.3, block=block, **options)


def alone(function, **options):
    """As the checks of sequences want it: with zeros for a final state, which there is none of."""
    return lambda q, k, v: (function(q, k, v, **options), 0 * v.sum((1, 2, 3)))


def stream(inputs, cuts, keep=None, **options):
    state, outs, start = new_block(inputs["q"], len(inputs["q"]), HEADS, BLOCK, KEY, VALUE), [], 0
    for tokens in cuts:
        part = slice(start, start + tokens)
        piece, kept = [x[:, :, part] for x in inputs.values()], None if keep is None else keep[:, part]
        places = places_of(piece[0], BLOCK, state=state, keep=kept)
        out, state = streamed_block_attention(*piece, places, state, scale=0.3, keep=kept, **options)
        outs.append(out)
        start += tokens
    return torch.cat(outs, 2), state


@pytest.mark.parametrize("weights", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("mask", [False, True])
def test_equal_to_the_reference_at_every_length(weights, dtype, mask):
    for tokens in (0, 1, 2, 7, 8, 9, 17, 40):
        for batch in (0, 1, 3):
            options = {"weights": weights, "keep": masked(batch, tokens) if mask else None}
            inputs = sequences.generated(make, batch, tokens, dtype)
            sequences.equal(alone(fast, **options), alone(reference, **options), inputs)


@pytest.mark.parametrize("weights", KINDS)
@pytest.mark.parametrize("mask", [False, True])
def test_any_cut_of_a_stream_is_the_whole_and_leaves_the_same_block(weights, mask):
    inputs = sequences.generated(make, 2, 21)
    keep = masked(2, 21) if mask else None
    whole = fast(**inputs, weights=weights, keep=keep)
    states = []
    for cuts in ([21], [1] * 21, *([cut, 21 - cut] for cut in range(22))):
        out, state = stream(inputs, cuts, weights=weights, keep=keep)
        sequences.close(out, whole, 1e-12)
        states.append(state)
    for state in states[1:]:
        assert all(torch.equal(getattr(state, name), getattr(states[0], name)) for name in ("keys", "values", "count"))
    counted = torch.tensor([21, 21]) if keep is None else keep.sum(1)
    assert torch.equal(states[0].count, counted % BLOCK)
    assert states[0].keys.shape == (2, HEADS, BLOCK, KEY)


@pytest.mark.parametrize("weights", KINDS)
@pytest.mark.parametrize("mask", [False, True])
def test_packed_sequences_have_blocks_of_their_own(weights, mask):
    offsets = torch.tensor([0, 3, 3, 4, 20, 29, 29])
    options = {"weights": weights, "offsets": offsets, "keep": masked(1, 29) if mask else None}
    inputs = sequences.generated(make, 1, 29)
    sequences.close(fast(**inputs, **options), reference(**inputs, **options), 1e-12)


@pytest.mark.parametrize("weights", KINDS)
def test_causal_to_the_bit_and_by_rows(weights):
    sequences.causal(alone(fast, weights=weights), make, 21)
    sequences.rows_are_independent(alone(fast, weights=weights), make, 21)


@pytest.mark.parametrize("weights", KINDS)
def test_any_layout_and_nothing_written(weights):
    sequences.layouts(alone(fast, weights=weights), make, 21)


@pytest.mark.parametrize("weights", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_of_precision(weights, dtype):
    sequences.halves_of_precision(alone(fast, weights=weights), alone(reference, weights=weights), make, dtype, 21)


@pytest.mark.parametrize("weights", KINDS)
@pytest.mark.parametrize("scale", [1e-6, 1e4])
def test_extremes(weights, scale):
    inputs = {name: scale * x for name, x in sequences.generated(make, 1, 21, torch.float32).items()}
    sequences.finite(alone(fast, weights=weights), inputs)


def test_no_block_reaches_another():
    inputs = {name: x.requires_grad_() for name, x in sequences.generated(make, 1, 24).items()}
    for gradient in torch.autograd.grad(fast(**inputs)[:, :, 8:16].sum(), list(inputs.values())):
        assert not gradient[:, :, :8].any()
        assert not gradient[:, :, 16:].any()


def test_one_block_is_causal_attention():
    inputs = sequences.generated(make, 2, 21)
    whole = F.scaled_dot_product_attention(*inputs.values(), is_causal=True, scale=0.3)
    sequences.close(fast(**inputs, block=64), whole, 1e-12)


def test_offsets_must_fit():
    inputs = sequences.generated(make, 1, 5)
    with pytest.raises(UsageError, match="offsets"):
        fast(**inputs, offsets=torch.tensor([0, 4]))


def test_a_step_exports():
    inputs = sequences.generated(make, 2, 3, torch.float32)

    class Step(torch.nn.Module):
        def forward(self, inputs, state):
            places = places_of(inputs["q"], BLOCK, state=state)
            return streamed_block_attention(**inputs, places=places, state=state, scale=0.3)

    state = new_block(inputs["q"], 2, HEADS, BLOCK, KEY, VALUE)
    exported = torch.export.export(Step(), (inputs, state)).module()
    _, state = stream(inputs, [3])
    ours, theirs = exported(inputs, state), Step()(inputs, state)
    sequences.close(ours[0], theirs[0], 1e-6)
    assert torch.equal(ours[1].count, theirs[1].count)
