"""The Mamba mixer is its recurrence, whole or as a stream, padded or packed."""

import pytest
import torch
from torch.nn import functional as F

from anyformer import core
from anyformer.core import registry
from anyformer.core.binding import slice_spec, slice_state
from anyformer.train.schedule import adamw

from .build_part import build, config, on_grid, random

TOKENS, DIM = 19, 8
FORMS = {
    "plain": {},
    "small": {"expand": 1.5, "state": 3, "step_rank": 2, "convolution": config("causal_convolution", kernel=3)},
    "norms": {name: config("rms_norm") for name in ("step_norm", "b_norm", "c_norm")},
    "biases": {name: config("linear", bias=True) for name in ("in_proj", "out_proj")},
}


def made(form="plain", **settings):
    part = build("mamba", **{"dim": DIM, "state": 4, "step_rank": 3, **FORMS[form], **settings})
    for parameter in part.parameters():
        parameter.data *= 0.5  # steps stay below 20, from where softplus is taken for the identity
    return part


def rms(norm, x):
    return x if norm is None else x / (x.square().mean(-1, keepdim=True) + norm.config.eps).sqrt() * norm.weight


def written_out(part, x):
    """Figure 3 of the paper and its recurrence, channel by channel and token by token."""
    c, out = part.config, []
    for row in x:
        inner, gate = F.linear(row, part.in_proj.weight, part.in_proj.bias).split(c.inner, -1)
        kernel = part.convolution.weight[:, 0]
        before = torch.cat((inner.new_zeros(kernel.shape[1] - 1, c.inner), inner))
        h, ys = torch.zeros(c.inner, c.state, dtype=x.dtype), []
        for t in range(len(row)):
            u = (before[t : t + kernel.shape[1]].T * kernel).sum(1) + part.convolution.bias
            u = u * torch.sigmoid(u)
            numbers = part.x_proj.weight @ u
            step, b, read = numbers.split((c.step_rank, c.state, c.state))
            step, b, read = rms(part.step_norm, step), rms(part.b_norm, b), rms(part.c_norm, read)
            step = torch.log1p(torch.exp(part.step_proj.weight @ step + part.step_proj.bias))[:, None]
            h = torch.exp(-step * torch.exp(part.log_rates)) * h + step * b * u[:, None]
            ys.append((h @ read + part.skip * u) * gate[t] * torch.sigmoid(gate[t]))
        out.append(F.linear(torch.stack(ys), part.out_proj.weight, part.out_proj.bias))
    return torch.stack(out)


def scattered():
    keep = torch.rand(2, TOKENS, generator=torch.Generator().manual_seed(0)) > 0.4
    keep[0] = torch.arange(TOKENS) >= 5
    keep[1] = torch.arange(TOKENS) < 11
    return keep


def streamed(part, x, cut, keep=None):
    state, outs, start = part.init_state(len(x), 1, x), [], 0
    for size in cut:
        here = slice(start, start + size)
        y, state = part.stream(x[:, here], core.Context(mask=None if keep is None else keep[:, here]), state)
        outs.append(y)
        start += size
    return torch.cat(outs, 1), state


@pytest.mark.parametrize("form", FORMS)
def test_as_written_out(form):
    part, x = made(form), random(2, 9, DIM)
    torch.testing.assert_close(part(x, on_grid(9)), written_out(part, x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("masked", [False, True])
@torch.no_grad()
def test_forward_is_any_cut_of_the_stream(masked):
    part, x, keep = made(), random(2, TOKENS, DIM), scattered() if masked else None
    counts = torch.ones(2, TOKENS, dtype=torch.bool) if keep is None else keep
    whole = part(x, on_grid(TOKENS, mask=keep))
    _, last = streamed(part, x, [TOKENS], keep)
    for cut in ([1] * TOKENS, [2, 17], [12, 1, 1, 5], [0, 19]):
        y, state = streamed(part, x, cut, keep)
        torch.testing.assert_close(y[counts], whole[counts], rtol=0, atol=1e-11)
        torch.testing.assert_close(state.scan, last.scan, rtol=0, atol=1e-11)
        torch.testing.assert_close(state.convolution, last.convolution, rtol=0, atol=1e-11)


@torch.no_grad()
def test_padding_leaves_no_trace_in_outputs_and_state():
    part, x, keep = made(), random(2, TOKENS, DIM), scattered()
    y, state = streamed(part, torch.where(keep[..., None], x, torch.nan), [TOKENS], keep)
    for row in range(2):
        expected, alone = streamed(part, x[row : row + 1, keep[row]], [int(keep[row].sum())])
        torch.testing.assert_close(y[row][keep[row]], expected[0], rtol=0, atol=1e-11)
        torch.testing.assert_close(state.scan[row], alone.scan[0], rtol=0, atol=1e-11)
        torch.testing.assert_close(state.convolution[row], alone.convolution[0], rtol=0, atol=1e-11)


def test_packed_sequences_are_those_alone():
    part, x, sizes = made(), random(1, TOKENS, DIM), [4, 0, 1, 14]
    y = part(x, on_grid(TOKENS, offsets=torch.tensor([0, *sizes]).cumsum(0)))
    alone = [part(row, on_grid(row.shape[1])) for row in x.split(sizes, 1) if row.shape[1]]
    torch.testing.assert_close(y, torch.cat(alone, 1), rtol=0, atol=1e-11)


@torch.no_grad()
def test_later_tokens_reach_no_earlier_one_by_a_single_bit():
    part, x = made(), random(2, TOKENS, DIM)
    y = part(x, on_grid(TOKENS))
    for token in range(TOKENS - 1):
        later = torch.cat((x[:, : token + 1], 1e3 * random(2, TOKENS - token - 1, DIM)), 1)
        assert torch.equal(part(later, on_grid(TOKENS))[:, : token + 1], y[:, : token + 1])


@torch.no_grad()
def test_the_state_is_of_float32_at_least():
    part = made().bfloat16()
    x = random(1, 6, DIM).bfloat16()
    y, state = streamed(part, x, [5, 1])
    assert (y.dtype, state.convolution.dtype, state.scan.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)
    assert part.init_state(3, 1, x).scan.shape == (3, 16, 4)


def test_it_starts_as_the_authors_start_it():
    torch.manual_seed(0)
    part = core.build(registry.part("mamba").Config(dim=64))
    assert (part.config.inner, part.config.step_rank, part.config.state) == (128, 4, 16)
    torch.testing.assert_close(part.log_rates.exp(), torch.arange(1.0, 17).expand(128, 16))
    assert torch.equal(part.skip, torch.ones(128))
    steps = F.softplus(part.step_proj.bias)
    assert 0.9e-3 < steps.min() < 3e-3
    assert 3e-2 < steps.max() < 1.1e-1
    assert part.step_proj.weight.abs().max() <= 4**-0.5


@torch.no_grad()
def test_inner_channels_are_cut_by_their_axis():
    part, x = made(), random(1, TOKENS, DIM)
    keep = {"inner": torch.tensor([3, 0, 7, 12])}
    smaller = core.build(slice_spec(part.config, keep)).double()
    smaller.load_state_dict(slice_state(part.config, part.state_dict(), keep))
    others = [i for i in range(16) if i not in keep["inner"]]
    part.x_proj.weight[:, others] = 0
    part.out_proj.weight[:, others] = 0
    torch.testing.assert_close(smaller(x, on_grid(TOKENS)), part(x, on_grid(TOKENS)), rtol=1e-11, atol=1e-11)


@torch.no_grad()
def test_a_scale_is_taken_in_by_the_last_product():
    part, x, scale = made("biases"), random(1, TOKENS, DIM), random(DIM)
    y = part(x, on_grid(TOKENS))
    assert part.scaled(scale)
    torch.testing.assert_close(part(x, on_grid(TOKENS)), y * scale)


def test_weight_decay_leaves_the_rates_alone():
    part = made()
    decayed, others = (group["params"] for group in adamw(part).param_groups)
    assert [p.shape for p in others if p.ndim > 1] == [part.log_rates.shape]
    assert {id(p) for p in [*decayed, *others]} == {id(p) for p in part.parameters()}
    assert all(p is not part.log_rates for p in decayed)
