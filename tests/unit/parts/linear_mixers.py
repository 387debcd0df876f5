"""What every mixer with a memory of fixed size must show, as plain functions of the part."""

import torch

from anyformer import core
from anyformer.core.binding import slice_spec, slice_state

from .build_part import on_grid, random

TOKENS, DIM = 37, 8
CLOSE = {"rtol": 0, "atol": 1e-11}


def positions_of(keep):
    return (keep.cumsum(1) - 1).clamp(min=0)


def heads(x, count):
    """(tokens, count * width) to (count, tokens, width)."""
    return x.unflatten(-1, (count, -1)).transpose(0, 1)


def rms(norm, x):
    return x / (x.square().mean(-1, keepdim=True) + norm.config.eps).sqrt() * norm.weight


def silu(x):
    return x * torch.sigmoid(x)


def convolved(convolution, x):
    """A row's short convolution with SiLU, (tokens, channels)."""
    kernel = convolution.weight[:, 0]
    before = torch.cat((x.new_zeros(kernel.shape[1] - 1, x.shape[1]), x))
    return silu(torch.stack([(before[t : t + kernel.shape[1]].T * kernel).sum(1) for t in range(len(x))]))


def scattered():
    """Rows whose counted tokens stand at the right, at the left, and nowhere."""
    places = torch.arange(TOKENS)
    return torch.stack((places >= 5, places < 21, places < 0))


def streamed(part, x, cut, keep=None):
    """The outputs of a stream cut into pieces of these lengths, and its last state."""
    counts = torch.ones(x.shape[:2], dtype=torch.bool) if keep is None else keep
    state, outs, start, positions = part.init_state(len(x), 1, x), [], 0, positions_of(counts)
    for size in cut:
        here = slice(start, start + size)
        mask = None if keep is None else keep[:, here]
        y, state = part.stream(x[:, here], core.Context(mask=mask, positions=positions[:, here]), state)
        outs.append(y)
        start += size
    return torch.cat(outs, 1), state


def same_state(state, other):
    torch.testing.assert_close(state.memory, other.memory, **CLOSE)
    if other.convolution is None:
        assert state.convolution is None
    else:
        torch.testing.assert_close(state.convolution, other.convolution, **CLOSE)


@torch.no_grad()
def any_cut_of_a_stream_is_the_whole(part):
    for keep in (None, scattered()):
        x = random(3, TOKENS, DIM)
        counts = torch.ones(3, TOKENS, dtype=torch.bool) if keep is None else keep
        whole = part(x, on_grid(TOKENS, mask=keep, positions=positions_of(counts)))
        _, last = streamed(part, x, [TOKENS], keep)
        for cut in ([1] * TOKENS, [2, 35], [12, 1, 1, 23], [0, TOKENS]):
            y, state = streamed(part, x, cut, keep)
            torch.testing.assert_close(y[counts], whole[counts], **CLOSE)
            same_state(state, last)


@torch.no_grad()
def padding_leaves_no_trace(part):
    x, keep = random(3, TOKENS, DIM), scattered()
    y, state = streamed(part, torch.where(keep[..., None], x, torch.nan), [TOKENS], keep)
    for row in range(3):
        expected, alone = streamed(part, x[row : row + 1, keep[row]], [int(keep[row].sum())])
        torch.testing.assert_close(y[row][keep[row]], expected[0], **CLOSE)
        torch.testing.assert_close(state.memory[row], alone.memory[0], **CLOSE)
        if alone.convolution is not None:
            torch.testing.assert_close(state.convolution[row], alone.convolution[0], **CLOSE)


@torch.no_grad()
def packed_sequences_are_those_alone(part):
    x, sizes = random(1, TOKENS, DIM), [4, 0, 1, 32]
    places = torch.cat([torch.arange(size) for size in sizes])
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    y = part(x, on_grid(TOKENS, offsets=offsets, positions=places))
    alone = [part(row, on_grid(row.shape[1])) for row in x.split(sizes, 1) if row.shape[1]]
    torch.testing.assert_close(y, torch.cat(alone, 1), **CLOSE)


@torch.no_grad()
def later_tokens_reach_no_earlier_one(part):
    x = random(2, TOKENS, DIM)
    y = part(x, on_grid(TOKENS))
    for token in range(TOKENS - 1):
        later = torch.cat((x[:, : token + 1], 1e3 * random(2, TOKENS - token - 1, DIM)), 1)
        assert torch.equal(part(later, on_grid(TOKENS))[:, : token + 1], y[:, : token + 1])


@torch.no_grad()
def the_memory_is_of_float32_at_least(part):
    part = part.bfloat16()
    x = random(1, 6, DIM).bfloat16()
    y, state = streamed(part, x, [5, 1])
    assert (y.dtype, state.memory.dtype) == (torch.bfloat16, torch.float32)
    assert y.isfinite().all()


@torch.no_grad()
def no_tokens_and_no_rows_are_harmless(part):
    for rows, tokens in ((2, 0), (0, 5)):
        assert part(random(rows, tokens, DIM), on_grid(tokens)).shape == (rows, tokens, DIM)


@torch.no_grad()
def a_scale_is_taken_in_by_the_last_product(part):
    x, scale = random(1, TOKENS, DIM), random(DIM)
    y = part(x, on_grid(TOKENS))
    assert part.scaled(scale)
    torch.testing.assert_close(part(x, on_grid(TOKENS)), y * scale)


CHECKS = (
    any_cut_of_a_stream_is_the_whole,
    padding_leaves_no_trace,
    packed_sequences_are_those_alone,
    later_tokens_reach_no_earlier_one,
    the_memory_is_of_float32_at_least,
    no_tokens_and_no_rows_are_harmless,
    a_scale_is_taken_in_by_the_last_product,
)


@torch.no_grad()
def heads_are_cut_by_their_axis(part, kept):
    """A part without some heads is the whole one whose last product does not read them."""
    x, count = random(1, TOKENS, DIM), part.config.heads
    keep = {"heads": torch.tensor(kept)}
    smaller = core.build(slice_spec(part.config, keep)).double()
    smaller.load_state_dict(slice_state(part.config, part.state_dict(), keep))
    read = part.out_proj.weight.unflatten(1, (count, -1))
    read[:, [head for head in range(count) if head not in kept]] = 0
    torch.testing.assert_close(smaller(x, on_grid(TOKENS)), part(x, on_grid(TOKENS)), rtol=1e-11, atol=1e-11)
