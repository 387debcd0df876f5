"""Grouped-query attention sees what its configuration says, whole or as a stream, padded or packed."""

import pytest
import torch
from torch.nn import functional as F

from anyformer import core
from anyformer.core import registry

from .build_part import build, config, on_grid, random

TOKENS, DIM = 21, 16
FORMS = {
    "plain": {},
    "rotary": {"position": config("rotary")},
    "alibi": {"position": config("alibi")},
    "window": {"position": config("rotary"), "window": 5},
    "sinks": {"position": config("rotary"), "window": 4, "sinks": 2},
    "alibi window": {"position": config("alibi"), "window": 4, "sinks": 2},
    "norms": {"position": config("rotary"), "query_norm": config("rms_norm"), "key_norm": config("rms_norm")},
    "one norm": {"key_norm": config("layer_norm")},
    "bias": {"qkv": registry.part("linear").Config(bias=True)},
}


def made(form, **settings):
    return build("grouped_query_attention", **{"dim": DIM, "kv_heads": 2, "group": 2, **FORMS[form], **settings})


def scattered(rows=2):
    keep = torch.rand(rows, TOKENS, generator=torch.Generator().manual_seed(0)) > 0.4
    keep[0] = (torch.arange(TOKENS) >= 3) & (torch.arange(TOKENS) < 17)
    return keep


def counted(keep):
    return keep.long().cumsum(1) - keep.long()


def normal(part, x, name):
    """A norm over the head's channels, written out."""
    norm = getattr(part, name)
    if norm is None:
        return x
    if norm.name == "layer_norm":
        x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + norm.config.eps).sqrt() * norm.weight
    return x + norm.bias if norm.name == "layer_norm" else x


def turned(x, place):
    half = x.shape[-1] // 2
    angle = place * 10000.0 ** -(torch.arange(half, dtype=torch.float64) / half)
    y = torch.view_as_complex(torch.stack((x[..., :half], x[..., half:]), -1)) * torch.polar(
        torch.ones(half).double(), angle
    )
    return torch.cat((y.real, y.imag), -1)


def written_out(part, x):
    """Row by row, head by head, token by token."""
    c = part.config
    out = torch.zeros(*x.shape[:2], c.kv_heads * c.group, c.head_dim, dtype=torch.float64)
    for row, features in enumerate(x):
        heads = F.linear(features, part.qkv.weight, part.qkv.bias).unflatten(-1, (-1, c.head_dim))
        for head in range(c.kv_heads * c.group):
            q = normal(part, heads[:, head], "query_norm")
            k = normal(part, heads[:, c.kv_heads * c.group + head // c.group], "key_norm")
            v = heads[:, c.kv_heads * (c.group + 1) + head // c.group]
            for t in range(len(features)):
                seen = [s for s in range(t + 1) if c.window is None or s > t - c.window or s < c.sinks]
                scores = []
                for s in seen:
                    if part.config.position is not None and part.position.name == "rotary":
                        scores.append(turned(q[t], t) @ turned(k[s], s) * c.scale)
                    else:
                        slope = 0 if c.position is None else 2 ** (-2 * (head + 1))  # of four heads
                        scores.append(q[t] @ k[s] * c.scale - slope * (t - s))
                out[row, t, head] = torch.stack(scores).softmax(0) @ v[seen]
    return out.flatten(2) @ part.proj.weight.T


def streamed(part, x, cut, keep=None, capacity=TOKENS):
    state, outs, start = part.init_state(len(x), capacity, x), [], 0
    positions = torch.arange(TOKENS) if keep is None else counted(keep)
    for size in cut:
        here = slice(start, start + size)
        context = core.Context(mask=None if keep is None else keep[:, here], positions=positions[..., here])
        y, state = part.stream(x[:, here], context, state)
        outs.append(y)
        start += size
    return torch.cat(outs, 1), state


@pytest.mark.parametrize("form", FORMS)
def test_as_written_out(form):
    part, x = made(form), random(2, 9, DIM)
    torch.testing.assert_close(part(x, on_grid(9)), written_out(part, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_forward_is_any_cut_of_the_stream(form, masked):
    part, x, keep = made(form), random(2, TOKENS, DIM), scattered() if masked else None
    positions = None if keep is None else counted(keep)
    whole = part(x, on_grid(TOKENS, mask=keep, positions=positions))
    for cut in ([21], [1] * 21, [1, 3, 17], [12, 1, 1, 7]):
        for capacity in (TOKENS, 40):
            y, state = streamed(part, x, cut, keep, capacity)
            torch.testing.assert_close(y, whole, rtol=0, atol=1e-11)
            assert state.length == TOKENS


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_padding_leaves_no_trace_in_outputs_and_state(form):
    part, x, keep = made(form), random(2, TOKENS, DIM), scattered()
    junk = torch.where(keep[..., None], x, torch.nan)
    y, state = streamed(part, junk, [13, 8], keep)
    for row in range(2):
        alone = x[row : row + 1, keep[row]]
        expected, one = streamed(part, alone, [alone.shape[1]])
        torch.testing.assert_close(y[row][keep[row]], expected[0], rtol=0, atol=1e-11)
        torch.testing.assert_close(state.keys[row], one.keys[0], rtol=0, atol=1e-11)
        torch.testing.assert_close(state.values[row], one.values[0], rtol=0, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
def test_packed_sequences_are_those_alone(form):
    part, x = made(form), random(1, TOKENS, DIM)
    sizes = [4, 0, 1, 16]
    positions = torch.cat([torch.arange(size) for size in sizes])
    y = part(x, on_grid(TOKENS, offsets=torch.tensor([0, *sizes]).cumsum(0), positions=positions))
    alone = [part(row, on_grid(row.shape[1])) for row in x.split(sizes, 1) if row.shape[1]]
    torch.testing.assert_close(y, torch.cat(alone, 1), rtol=0, atol=1e-11)


@pytest.mark.parametrize("form", FORMS)
def test_later_tokens_reach_no_earlier_one_by_a_single_bit(form):
    part, x = made(form), random(2, TOKENS, DIM)
    y = part(x, on_grid(TOKENS))
    for token in range(TOKENS - 1):
        later = torch.cat((x[:, : token + 1], 1e3 * random(2, TOKENS - token - 1, DIM)), 1)
        assert torch.equal(part(later, on_grid(TOKENS))[:, : token + 1], y[:, : token + 1])


@torch.no_grad()
def test_a_branch_sees_nothing_of_the_other():
    part, x, other = made("sinks"), random(2, TOKENS, DIM), random(2, TOKENS, DIM)
    other[:, :8] = x[:, :8]
    _, state = streamed(part, x, [8])
    for path, start in ((x, state), (other, state.clone())):
        context = core.Context(positions=torch.arange(8, TOKENS))
        y, _ = part.stream(path[:, 8:], context, start)
        torch.testing.assert_close(y, part(path, on_grid(TOKENS))[:, 8:], rtol=0, atol=1e-11)


def test_memory_of_a_state():
    like = torch.zeros(1, 1, DIM, dtype=torch.bfloat16)
    for settings, slots in (({}, 100), ({"window": 30}, 30), ({"window": 30, "sinks": 4}, 34), ({"window": 300}, 100)):
        state = made("plain", **settings).init_state(3, 100, like)
        assert state.keys.shape == state.values.shape == (3, 2, slots, 4)
        assert state.keys.dtype == torch.bfloat16
        assert state.counts is None


def test_a_stream_beyond_the_capacity():
    with pytest.raises(core.UsageError, match="a stream of 21 tokens needs a state of that capacity, not 20"):
        streamed(made("plain"), random(2, TOKENS, DIM), [19, 2], capacity=20)


@torch.no_grad()
def test_a_window_streams_on_beyond_it():
    part, x = made("sinks"), random(2, TOKENS, DIM)
    y, _ = streamed(part, x, [1] * TOKENS, capacity=6)
    torch.testing.assert_close(y, part(x, on_grid(TOKENS)), rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"window": 0}, "a window of 0 tokens sees nothing; give at least 1, or none"),
        ({"sinks": -1}, "there cannot be -1 sinks; give 0 or more"),
        (
            {"position": config("rms_norm")},
            "position must be one of query_key_position, logit_position, not a norm",
        ),
    ],
)
def test_what_cannot_be(settings, words):
    with pytest.raises(core.UsageError, match=words):
        made("plain", **settings)
