"""The Mamba-2 mixer is its recurrence, whole or as a stream, padded or packed."""

import pytest
import torch
from torch.nn import functional as F

from anyformer import core
from anyformer.core import registry
from anyformer.core.binding import slice_spec, slice_state

from .build_part import build, config, on_grid, random

TOKENS, DIM = 19, 8
FORMS = {
    "plain": {},
    "groups": {"groups": 2, "heads": 4, "p": 2, "convolution": config("causal_convolution", kernel=3)},
    "no norm": {"groups": 4, "norm": None},
    "biases": {name: config("linear", bias=True) for name in ("in_proj", "out_proj")},
}


def made(form="plain", **settings):
    part = build("mamba2", **{"dim": DIM, "p": 4, "state": 3, **FORMS[form], **settings})
    for parameter in part.parameters():
        parameter.data *= 0.5  # steps stay below 20, from where softplus is taken for the identity
    return part


def written_out(part, x):
    """The paper's block and its recurrence, head by head and token by token."""
    c, out = part.config, []
    inner, shared = c.heads * c.p, c.groups * c.state
    for row in x:
        z, xbc, dt = F.linear(row, part.in_proj.weight, part.in_proj.bias).split(
            (inner, inner + 2 * shared, c.heads), -1
        )
        kernel = part.convolution.weight[:, 0]
        before = torch.cat((xbc.new_zeros(kernel.shape[1] - 1, xbc.shape[1]), xbc))
        h, ys = torch.zeros(c.heads, c.p, c.state, dtype=x.dtype), []
        for t in range(len(row)):
            u = (before[t : t + kernel.shape[1]].T * kernel).sum(1) + part.convolution.bias
            u, b, read = (u * torch.sigmoid(u)).split((inner, shared, shared))
            y = torch.zeros(c.heads, c.p, dtype=x.dtype)
            for head in range(c.heads):
                group, values = head // (c.heads // c.groups), u[head * c.p : (head + 1) * c.p]
                numbers = slice(group * c.state, (group + 1) * c.state)
                step = torch.log1p(torch.exp(dt[t, head] + part.step_bias[head]))
                decay = torch.exp(-step * torch.exp(part.log_rates[head]))
                h[head] = decay * h[head] + step * torch.outer(values, b[numbers])
                y[head] = h[head] @ read[numbers] + part.skip[head] * values
            y = y.flatten() * z[t] * torch.sigmoid(z[t])
            if part.norm is not None:
                grouped = y.view(c.groups, -1)
                y = (grouped / (grouped.square().mean(1, keepdim=True) + 1e-5).sqrt()).flatten() * part.norm.weight
            ys.append(y)
        out.append(F.linear(torch.stack(ys), part.out_proj.weight, part.out_proj.bias))
    return torch.stack(out)


def scattered():
    places = torch.arange(TOKENS)
    return torch.stack((places >= 5, places < 11))


def streamed(part, x, cut, keep=None):
    state, outs, start = part.init_state(len(x), 1, x), [], 0
    for size in cut:
        here = slice(start, start + size)
        y, state = part.stream(x[:, here], core.Context(mask=None if keep is None else keep[:, here]), state)
        outs.append(y)
        start += size
    return torch.cat(outs, 1), state


@pytest.mark.parametrize("form", FORMS)
@torch.no_grad()
def test_as_written_out(form):
    part, x = made(form), random(2, 9, DIM)
    torch.testing.assert_close(part(x, on_grid(9)), written_out(part, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("form", ["plain", "groups"])
@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_forward_is_any_cut_of_the_stream(form, masked):
    part, x, keep = made(form), random(2, TOKENS, DIM), scattered() if masked else None
    counts = torch.ones(2, TOKENS, dtype=torch.bool) if keep is None else keep
    whole = part(x, on_grid(TOKENS, mask=keep))
    _, last = streamed(part, x, [TOKENS], keep)
    for cut in ([1] * TOKENS, [2, 17], [12, 1, 1, 5], [0, 19]):
        y, state = streamed(part, x, cut, keep)
        torch.testing.assert_close(y[counts], whole[counts], rtol=0, atol=1e-10)
        torch.testing.assert_close(state.scan, last.scan, rtol=0, atol=1e-10)
        torch.testing.assert_close(state.convolution, last.convolution, rtol=0, atol=1e-10)


@torch.no_grad()
def test_padding_leaves_no_trace_in_outputs_and_state():
    part, x, keep = made("groups"), random(2, TOKENS, DIM), scattered()
    y, state = streamed(part, torch.where(keep[..., None], x, torch.nan), [TOKENS], keep)
    for row in range(2):
        expected, alone = streamed(part, x[row : row + 1, keep[row]], [int(keep[row].sum())])
        torch.testing.assert_close(y[row][keep[row]], expected[0], rtol=0, atol=1e-10)
        torch.testing.assert_close(state.scan[row], alone.scan[0], rtol=0, atol=1e-10)
        torch.testing.assert_close(state.convolution[row], alone.convolution[0], rtol=0, atol=1e-10)


@torch.no_grad()
def test_packed_sequences_are_those_alone():
    part, x, sizes = made("groups"), random(1, TOKENS, DIM), [4, 0, 1, 14]
    y = part(x, on_grid(TOKENS, offsets=torch.tensor([0, *sizes]).cumsum(0)))
    alone = [part(row, on_grid(row.shape[1])) for row in x.split(sizes, 1) if row.shape[1]]
    torch.testing.assert_close(y, torch.cat(alone, 1), rtol=0, atol=1e-10)


@torch.no_grad()
def test_later_tokens_reach_no_earlier_one_by_a_single_bit():
    part, x = made("groups"), random(2, TOKENS, DIM)
    y = part(x, on_grid(TOKENS))
    for token in range(TOKENS - 1):
        later = torch.cat((x[:, : token + 1], 1e3 * random(2, TOKENS - token - 1, DIM)), 1)
        assert torch.equal(part(later, on_grid(TOKENS))[:, : token + 1], y[:, : token + 1])


@torch.no_grad()
def test_the_state_is_of_float32_at_least():
    part, x = made("groups").bfloat16(), random(1, 6, DIM).bfloat16()
    y, state = streamed(part, x, [5, 1])
    assert (y.dtype, state.convolution.dtype, state.scan.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert state.scan.shape == part.init_state(1, 1, x).scan.shape == (1, 4, 2, 3)


def test_it_starts_as_the_authors_start_it():
    torch.manual_seed(0)
    part = core.build(registry.part("mamba2").Config(dim=1024, state=8))
    assert (part.config.heads, part.config.width, part.norm.config.groups) == (32, 32, 1)
    rates, steps = part.log_rates.exp(), F.softplus(part.step_bias)
    assert 1 <= rates.min() < 4
    assert 12 < rates.max() <= 16
    assert 0.9e-3 < steps.min() < 5e-3
    assert 2e-2 < steps.max() < 1.1e-1
    assert torch.equal(part.skip, torch.ones(32))


def test_heads_are_shared_evenly():
    with pytest.raises(core.UsageError, match=r"heads is 4, but 'groups width' is 3"):
        build("mamba2", dim=8, p=4, groups=3)


@pytest.mark.parametrize(("axis", "kept"), [("groups", [2, 0]), ("p", [1, 3])])
@torch.no_grad()
def test_heads_are_cut_by_their_axes(axis, kept):
    """Without the norm, whose mean is over all channels, what is cut is as if nothing read it."""
    part, x = made("no norm"), random(1, TOKENS, DIM)
    keep = {axis: torch.tensor(kept)}
    smaller = core.build(slice_spec(part.config, keep)).double()
    smaller.load_state_dict(slice_state(part.config, part.state_dict(), keep))
    read = part.out_proj.weight.view(DIM, 4, 4)  # four groups of one head, of four channels
    gone = [i for i in range(4) if i not in kept]
    read[(slice(None), gone) if axis == "groups" else (slice(None), slice(None), gone)] = 0
    torch.testing.assert_close(smaller(x, on_grid(TOKENS)), part(x, on_grid(TOKENS)), rtol=1e-11, atol=1e-11)


@torch.no_grad()
def test_a_scale_is_taken_in_by_the_last_product():
    part, x, scale = made("biases"), random(1, TOKENS, DIM), random(DIM)
    y = part(x, on_grid(TOKENS))
    assert part.scaled(scale)
    torch.testing.assert_close(part(x, on_grid(TOKENS)), y * scale)


@pytest.mark.parametrize("groups", [1, 3])
def test_the_norm_is_over_each_group(groups):
    norm, x = build("grouped_rms_norm", dim=12, groups=groups), random(2, 5, 12)
    grouped = x.view(2, 5, groups, -1)
    expected = (grouped / (grouped.square().mean(-1, keepdim=True) + 1e-5).sqrt()).view(2, 5, 12) * norm.weight
    torch.testing.assert_close(norm(x), expected)
