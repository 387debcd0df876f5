"""What moves information between tokens does as its docstring says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from anyformer import core

from .build_part import build, config, on_grid, random

engine = settings(deadline=None, derandomize=True, max_examples=25)


def written_out(part, x, keep=None):
    """Equation 1 with explicit loops over rows of the batch and heads; ``keep`` (batch, keys)."""
    c = part.config
    tokens = x.flatten(1, -2)
    qkv = tokens @ part.qkv.weight.T + part.qkv.bias
    q, k, v = qkv.unflatten(-1, (3, c.heads, c.head_dim)).unbind(2)
    out = torch.empty_like(q)
    for row in range(len(x)):
        for head in range(c.heads):
            scores = c.scale * q[row, :, head] @ k[row, :, head].T
            if keep is not None:
                scores = scores.masked_fill(~keep[row], -torch.inf)
            out[row, :, head] = scores.softmax(-1) @ v[row, :, head]
    return (out.flatten(2) @ part.proj.weight.T + part.proj.bias).view(x.shape)


@engine
@given(st.sampled_from(((7,), (2, 3), (2, 2, 2))), st.sampled_from((1, 2, 4)), st.sampled_from((None, 3)))
def test_attention_is_equation_1_on_any_grid(grid, heads, head_dim):
    part = build("attention", dim=8, heads=heads, head_dim=head_dim)
    x = random(2, *grid, 8)
    assert torch.allclose(part(x, on_grid(*grid)), written_out(part, x), rtol=1e-10, atol=1e-10)


def test_attention_keeps_masked_tokens_out_as_keys():
    part = build("attention", dim=8, heads=2)
    keep = torch.tensor([[True, True, False, True, False], [False, True, True, True, True]])
    x = random(2, 5, 8)
    context = on_grid(5, mask=keep)
    y = part(x, context)
    assert torch.allclose(y, written_out(part, x, keep), rtol=1e-10, atol=1e-10)
    noisy = torch.where(keep[..., None], x, random(2, 5, 8) * 100)
    assert torch.equal(part(noisy, context)[keep], y[keep]), "what is masked reaches nobody"
    assert not torch.allclose(part(noisy, on_grid(5))[keep], y[keep])


def test_attention_with_nothing_to_attend_to_gives_the_bias():
    part = build("attention", dim=8, heads=2)
    y = part(random(1, 3, 8), on_grid(3, mask=torch.zeros(1, 3, dtype=torch.bool)))
    assert torch.equal(y, part.proj.bias.expand(1, 3, 8))


def test_attention_knows_no_order():
    part = build("attention", dim=8, heads=2)
    x, order = random(1, 6, 8), torch.randperm(6)
    assert torch.allclose(part(x[:, order], on_grid(6)), part(x, on_grid(6))[:, order], rtol=1e-10)


def test_attention_takes_prefix_tokens_along():
    part = build("attention", dim=8, heads=2)
    x = random(1, 7, 8)
    assert torch.equal(part(x, on_grid(2, 3, prefix=1)), part(x, on_grid(7)))


def test_the_scale_is_a_number_of_its_own():
    x = random(1, 4, 8)
    flat = build("attention", dim=8, heads=2, scale=0.0)
    mean = (x @ flat.qkv.weight[16:].T + flat.qkv.bias[16:]).mean(1, keepdim=True).expand(-1, 4, -1)
    assert torch.allclose(flat(x, on_grid(4)), mean @ flat.proj.weight.T + flat.proj.bias, rtol=1e-10)


@engine
@given(st.sampled_from((1, 3, 5, 7)), st.integers(1, 6), st.integers(1, 6))
def test_depthwise_convolution_is_torchs(kernel, height, width):
    part = build("depthwise_convolution", dim=3, kernel=kernel)
    x = random(2, height, width, 3)
    theirs = F.conv2d(x.movedim(-1, 1), part.weight, part.bias, padding=kernel // 2, groups=3).movedim(1, -1)
    assert torch.allclose(part(x, on_grid(height, width)), theirs, rtol=1e-10, atol=1e-10)


def test_depthwise_convolution_reaches_its_neighbourhood_and_no_further():
    part = build("depthwise_convolution", dim=2, kernel=3)
    x = random(1, 7, 7, 2)
    changed = x.clone()
    changed[0, 3, 3, 0] += 1
    moved = (part(changed, on_grid(7, 7)) - part(x, on_grid(7, 7)))[0] != 0
    assert moved[2:5, 2:5, 0].all()
    assert moved.sum() == 9, "no other token, no other channel"


@pytest.mark.parametrize("mixer", ["depthwise_convolution"])
def test_what_needs_a_grid_refuses_prefix_tokens(mixer):
    part = build(mixer, dim=4)
    assert {"stream", "prefix"} <= part.refuses.keys()
    with pytest.raises(core.UsageError, match="needs features on a grid without prefix tokens"):
        part(random(1, 5, 4), on_grid(2, 2, prefix=1))


def grouped(**settings):
    return build("grouped_query_attention", **{"dim": 16, "kv_heads": 2, "group": 2, **settings})


def test_grouped_queries_are_attention_with_repeated_keys():
    part = grouped(group=3, head_dim=4)
    x = random(2, 5, 16)
    q, k, v = (x @ part.qkv.weight.T).split((24, 8, 8), dim=-1)
    out = torch.empty(2, 5, 6, 4, dtype=torch.float64)
    for head in range(6):
        shared = slice(4 * (head // 3), 4 * (head // 3) + 4)
        scores = part.config.scale * q[..., 4 * head : 4 * head + 4] @ k[..., shared].transpose(1, 2)
        scores = scores.masked_fill(torch.ones(5, 5, dtype=torch.bool).triu(1), -torch.inf)
        out[:, :, head] = scores.softmax(-1) @ v[..., shared]
    assert torch.allclose(part(x, on_grid(5)), out.flatten(2) @ part.proj.weight.T, rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("position", [None, "rotary"])
def test_later_tokens_do_not_reach_earlier_ones_by_a_single_bit(dtype, position):
    part = grouped(position=position and config(position)).to(dtype)
    x = random(2, 9, 16).to(dtype)
    y = part(x, on_grid(9))
    for start in range(1, 9):
        later = x.clone()
        later[:, start:] = torch.randn(2, 9 - start, 16) * 1000
        changed = part(later, on_grid(9))
        assert torch.equal(changed[:, :start], y[:, :start])
        assert not torch.equal(changed[:, start], y[:, start])


def test_a_longer_text_begins_as_a_shorter_one():
    part = grouped(position=config("rotary"))
    x = random(1, 8, 16)
    for length in range(1, 9):
        assert torch.allclose(part(x[:, :length], on_grid(length)), part(x, on_grid(8))[:, :length], rtol=1e-10)


def test_positions_may_start_anywhere():
    part = grouped(position=config("rotary"))
    x = random(2, 5, 16)
    y = part(x, on_grid(5))
    shifted = torch.arange(5).expand(2, -1) + torch.tensor([[0], [70]])
    assert torch.allclose(part(x, on_grid(5, positions=shifted)), y, rtol=1e-8)
    stretched = torch.arange(5).expand(2, -1) * 3
    assert not torch.allclose(part(x, on_grid(5, positions=stretched)), y, rtol=1e-3)


def test_a_kernel_without_a_middle_is_refused():
    with pytest.raises(core.UsageError, match="a depth-wise kernel of 4 has no middle; give an odd one"):
        build("depthwise_convolution", dim=8, kernel=4)
