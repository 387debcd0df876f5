"""Attention with a bias for each distance, against sums over keys that are written out, both ways, causal and streamed."""

import pytest
import torch

from anyformer import core
from anyformer.ops.attention import reference_attention
from anyformer.parts.token_mixers import relative_attention

from .build_part import build, config, random

DIM, TOKENS = 12, 11


def made(causal, **settings):
    name = "causal_relative_attention" if causal else "relative_attention"
    return build(name, dim=DIM, **{"kv_heads": 2, "group": 2, "head_dim": 3, "scale": 0.7} | settings)


def bucket(distance, buckets, reach, both):
    """Of key minus query: single distances first, then powers, in whole numbers alone."""
    first = 0
    if both:
        buckets //= 2
        first, distance = (buckets if distance > 0 else 0), abs(distance)
    else:
        distance = max(-distance, 0)
    single, number = buckets // 2, 0
    if distance < single:
        return first + distance
    # the largest number with distance / single >= (reach / single) ** (number / powers)
    powers = buckets - single
    while number + 1 < powers and distance**powers * single ** (number + 1) >= reach ** (number + 1) * single**powers:
        number += 1
    return first + single + number


def by_hand(part, x, positions, seen):
    """Of one row: projections, the biases one by one, and what is seen."""
    head_dim, position = part.config.head_dim, part.position.config
    q, (k, v) = x @ part.q.weight.T, (x @ part.kv.weight.T).chunk(2, -1)
    q, k, v = (t.unflatten(-1, (-1, head_dim)).transpose(0, 1)[None] for t in (q, k, v))
    bias = torch.full((q.shape[1], len(x), len(x)), -torch.inf, dtype=x.dtype)
    for i in range(len(x)):
        for j in range(len(x)):
            if seen(i, j):
                distance = int(positions[j] - positions[i])
                place = bucket(distance, position.buckets, position.max_distance, position.bidirectional)
                bias[:, i, j] = part.position.weight[place]
    mixed = reference_attention(q, k, v, scale=part.config.scale, bias=bias[None])
    return mixed[0].transpose(0, 1).flatten(1) @ part.proj.weight.T


@pytest.mark.parametrize("both", [True, False])
@pytest.mark.parametrize(("buckets", "reach"), [(32, 128), (8, 20), (4, 3)])
def test_distances_fall_into_the_buckets_of_t5(both, buckets, reach):
    part = build("relative_bias", heads=2, buckets=buckets, max_distance=reach, bidirectional=both)
    positions = torch.arange(3 * reach)[None]
    given = part(positions[:, ::7], positions, torch.float64)
    for i, query in enumerate(positions[0, ::7].tolist()):
        places = [bucket(key - query, buckets, reach, both) for key in positions[0].tolist()]
        assert torch.equal(given[0, :, i], part.weight[places].T)
    assert part(positions, positions, torch.bfloat16).dtype == torch.bfloat16


@pytest.mark.parametrize("block", [3, 256])
@pytest.mark.parametrize("causal", [False, True])
def test_it_is_the_sum_over_the_keys_that_are_seen(causal, block, monkeypatch):
    monkeypatch.setattr(relative_attention, "BLOCK", block)
    part, x = made(causal), random(1, TOKENS, DIM)
    wanted = by_hand(part, x[0], torch.arange(TOKENS), lambda i, j: j <= i or not causal)
    torch.testing.assert_close(part(x, core.Context())[0], wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("causal", [False, True])
def test_masked_tokens_and_other_sequences_are_no_keys(causal):
    part, x = made(causal), random(2, TOKENS, DIM)
    keep = torch.rand(2, TOKENS, generator=torch.Generator().manual_seed(0)) > 0.4
    positions = (keep.cumsum(1) - 1).clamp(min=0)
    dirty = torch.where(keep[..., None], x, torch.nan)
    given = part(dirty, core.Context(mask=keep, positions=positions))
    for row in range(2):
        alone = part(x[row : row + 1, keep[row]], core.Context())
        torch.testing.assert_close(given[row, keep[row]], alone[0], rtol=1e-10, atol=1e-10)
    offsets, places = torch.tensor([0, 4, 4, TOKENS]), torch.tensor([0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6])
    packed = part(x[:1], core.Context(offsets=offsets, positions=places))
    alone = torch.cat([part(piece, core.Context()) for piece in (x[:1, :4], x[:1, 4:])], 1)
    torch.testing.assert_close(packed, alone, rtol=1e-10, atol=1e-10)
    kept = torch.tensor([[True, False] * 5 + [True]])
    both = part(
        torch.where(kept[..., None], x[:1], torch.nan), core.Context(mask=kept, offsets=offsets, positions=places)
    )
    first = part(x[:1, :4], core.Context(mask=kept[:, :4]))
    torch.testing.assert_close(both[:, [0, 2]], first[:, [0, 2]], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("cut", [(1,) * TOKENS, (4, 1, 6), (TOKENS,)])
def test_a_stream_is_the_whole(cut):
    part, x = made(True), random(2, TOKENS, DIM)
    keep = torch.ones(2, TOKENS, dtype=torch.bool)
    keep[0, 2:4] = False
    positions = (keep.cumsum(1) - 1).clamp(min=0)
    for context in (core.Context(), core.Context(mask=keep, positions=positions)):
        whole, state, given, start = part(x, context), part.init_state(2, TOKENS + 2, x), [], 0
        for length in cut:
            places = torch.arange(TOKENS) if context.positions is None else positions
            here = core.Context(
                mask=None if context.mask is None else keep[:, start : start + length],
                positions=places[..., start : start + length],
            )
            y, state = part.stream(x[:, start : start + length], here, state)
            given.append(y)
            start += length
        torch.testing.assert_close(torch.cat(given, 1), whole, rtol=1e-10, atol=1e-10)


def test_a_stream_longer_than_its_state_is_refused():
    part, x = made(True), random(1, 3, DIM)
    _, state = part.stream(x, core.Context(), part.init_state(1, 5, x))
    with pytest.raises(core.UsageError, match="a stream of 6 tokens needs a state of that capacity, not 5"):
        part.stream(x, core.Context(), state)


@pytest.mark.parametrize("causal", [False, True])
def test_its_parts_are_checked(causal):
    with pytest.raises(core.UsageError, match="position must be a logit_bias, such as relative_bias, not a norm"):
        made(causal, position=config("rms_norm"))
    for settings in ({"buckets": 6}, {"max_distance": 8}, {"buckets": 0}):
        with pytest.raises(core.UsageError, match="buckets up to a distance of"):
            made(causal, position=config("relative_bias", **settings))


@pytest.mark.parametrize("causal", [False, True])
def test_a_scale_is_taken_in(causal):
    part, x, scale = made(causal), random(1, 4, DIM), random(DIM)
    before = part(x, core.Context())
    with torch.no_grad():
        assert part.scaled(scale)
    torch.testing.assert_close(part(x, core.Context()), before * scale)
