"""The recurrence below Mamba and Mamba-2: states that decay and take in, each by itself, over channels-last features.

One operator, ``anyformer::diagonal_scan``, computes it, and another its gradients, which have none themselves; compilers
and exporters take both as they are. On a CPU with a compiler they run in C++ (``diagonal_scan.cpp``), else in torch over
spans of tokens. Both forms keep the state at the start of each span and compute the others again for the gradients:
memory is that of the inputs and of one in ``SPAN`` states.
"""

import ctypes
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from anyformer.core.errors import UsageError
from anyformer.ops import extension
from anyformer.ops.packed import checked

SPAN = 64  # tokens between two kept states
_LN2 = math.log(2)
_ROW = 8  # tokens scanned one after the other, all rows of a span at once
_WORTH_THREADS = 100_000  # updates of a state; fewer take less time than waking another thread


def scan(
    x: Tensor, step: Tensor, rates: Tensor, b: Tensor, c: Tensor, d: Tensor, state: Tensor, offsets: Tensor
) -> tuple[Tensor, Tensor]:
    """``h_t = exp(step_t rates) h_{t-1} + step_t x_t b_t``, ``y_t = sum(c_t h_t) + d x_t`` for packed sequences.

    All tensors but the offsets have one dtype. Costs tokens * channels * n exponentials, or tokens * channels where all
    states of a channel decay alike.

    Args:
        x: (tokens, channels).
        step: (tokens, channels).
        rates: (n, channels), or (1, channels) where all states of a channel decay alike.
        b: (tokens, groups, n), each group for channels / groups neighbouring channels.
        c: (tokens, groups, n).
        d: (channels,).
        state: (sequences, n, channels).
        offsets: (sequences + 1,), where the sequences start, and the last ends.

    Returns:
        Outputs, (tokens, channels), and the last states, (sequences, n, channels).

    Raises:
        UsageError: The offsets do not rise from 0 to the number of tokens.
    """
    inputs = x, step, rates, b, c, d, state
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    return _scan(*inputs, offsets, keep)[:2]


@torch.library.custom_op("anyformer::diagonal_scan", mutates_args=())
def _scan(
    x: Tensor, step: Tensor, rates: Tensor, b: Tensor, c: Tensor, d: Tensor, state: Tensor, offsets: Tensor, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The third result are the states at the start of each span, those of sequence i from row offsets[i] // SPAN + i."""
    ends = checked(offsets, x.shape[0])
    x, b, c = (_dense_rows(tensor) for tensor in (x, b, c))
    step, rates, d, state = (tensor.contiguous() for tensor in (step, rates, d, state))
    y, last = x.new_empty(x.shape), torch.empty_like(state)
    kept = x.new_zeros(x.shape[0] // SPAN + state.shape[0] if keep else 0, *state.shape[1:])
    compiled = library(x)
    if compiled is not None:
        shares = _shares(x, b, len(ends) - 1)
        _call(compiled, "forward", ends, shares, (x, step, rates / _LN2, b, c, d, state, y, last, kept))
        return y, last, kept
    with torch.autocast(x.device.type, enabled=False):
        for rows, slots, sequences in _equally_long(ends):
            parts = _by_group(b.shape[1], len(slots), *(tensor[rows] for tensor in (x, step, b, c, y)))
            rates_, d_, state_ = (_split(tensor, b.shape[1]) for tensor in (rates, d, state[sequences]))
            last[sequences] = _joined(_forward(parts, rates_, d_, state_, kept if keep else None, slots))
    return y, last, kept


@_scan.register_fake
def _(x, step, rates, b, c, d, state, offsets, keep):
    slots = x.shape[0] // SPAN + state.shape[0] if keep else 0
    return x.new_empty(x.shape), state.new_empty(state.shape), x.new_empty(slots, *state.shape[1:])


@torch.library.custom_op("anyformer::diagonal_scan_backward", mutates_args=())
def _scan_backward(
    x: Tensor,
    step: Tensor,
    rates: Tensor,
    b: Tensor,
    c: Tensor,
    d: Tensor,
    offsets: Tensor,
    kept: Tensor,
    grad_y: Tensor,
    grad_last: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    assert kept.shape[0] == x.shape[0] // SPAN + grad_last.shape[0], "the states must be kept for the gradients"
    ends = checked(offsets, x.shape[0])
    x, b, c = (_dense_rows(tensor) for tensor in (x, b, c))
    step, rates, d, grad_y = (tensor.contiguous() for tensor in (step, rates, d, grad_y))
    grad_x, grad_step = x.new_empty(x.shape), torch.empty_like(step)
    grad_state = grad_last.clone(memory_format=torch.contiguous_format)
    compiled = library(x)
    if compiled is not None:
        sequences = grad_state.shape[0]
        shares = _shares(x, b, sequences)
        grad_rates, grad_d = x.new_zeros(sequences, *rates.shape), x.new_zeros(sequences, *d.shape)
        grad_b, grad_c = (x.new_zeros(shares, *b.shape) for _ in "bc")
        gradients = grad_x, grad_step, grad_rates, grad_b, grad_c, grad_d, grad_state
        _call(compiled, "backward", ends, shares, (x, step, rates / _LN2, b, c, d, kept, grad_y, *gradients))
        return grad_x, grad_step, grad_rates.sum(0), grad_b.sum(0), grad_c.sum(0), grad_d.sum(0), grad_state
    groups = b.shape[1]
    grad_rates, grad_d = _split(torch.zeros_like(rates), groups), (grad_y * x).sum(0)
    grad_b, grad_c = b.new_empty(b.shape), c.new_empty(c.shape)
    with torch.autocast(x.device.type, enabled=False):
        for rows, slots, sequences in _equally_long(ends):
            tensors = (x, step, b, c, grad_y, grad_x, grad_step, grad_b, grad_c)
            parts = _by_group(groups, len(slots), *(tensor[rows] for tensor in tensors))
            rates_, d_, state_ = (_split(tensor, groups) for tensor in (rates, d, grad_state[sequences]))
            grad_state[sequences] = _joined(_backward(parts, rates_, d_, state_, kept, slots, grad_rates))
    return grad_x, grad_step, _joined(grad_rates), grad_b, grad_c, grad_d, grad_state


@_scan_backward.register_fake
def _(x, step, rates, b, c, d, offsets, kept, grad_y, grad_last):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (x, step, rates, b, c, d, grad_last))


def _setup(ctx, inputs, output):
    *tensors, _, offsets, _ = inputs
    ctx.save_for_backward(*tensors, offsets, output[2])
    ctx.mark_non_differentiable(output[2])


def _differentiate(ctx, grad_y, grad_last, _):
    return *_scan_backward(*ctx.saved_tensors, grad_y, grad_last), None, None


_scan.register_autograd(_differentiate, setup_context=_setup)


def check_shapes(operation: str, tensors: Mapping[str, Tensor], expected: Sequence[tuple[int, ...]]) -> None:
    """What runs in C++ must not read beside a tensor.

    Raises:
        UsageError: A tensor has another shape than expected.
    """
    for (name, tensor), shape in zip(tensors.items(), expected, strict=True):
        if tensor.shape != shape:
            raise UsageError(
                f"{operation} with these other tensors needs {name} of shape {shape}, not {tuple(tensor.shape)}"
            )


def library(x: Tensor) -> ctypes.CDLL | None:
    """The compiled form, None where it is missing or does not take this device and dtype."""
    return extension.library("diagonal_scan") if x.is_cpu and x.dtype in (torch.float32, torch.float64) else None


def _dense_rows(x: Tensor) -> Tensor:
    """Each token's numbers beside each other; between tokens there may be others, as in a part of a wider product."""
    return x if x.shape[0] and x[0].is_contiguous() else x.contiguous()


def _threads(x: Tensor, b: Tensor) -> int:
    return torch.get_num_threads() if x.numel() * b.shape[-1] >= _WORTH_THREADS else 1


def _shares(x: Tensor, b: Tensor, sequences: int) -> int:
    """Into how many parts the channels are split, for threads that take one part of a sequence after the other."""
    threads = _threads(x, b)
    return 1 if threads == 1 else min(-(-x.shape[1] // 32), -(-2 * threads // max(sequences, 1)))


def _call(compiled: ctypes.CDLL, name: str, ends: list[int], shares: int, tensors: tuple[Tensor, ...]) -> None:
    x, _, rates, b, c, *_ = tensors
    sequences = len(ends) - 1
    (tokens, channels), (_, groups, n) = x.shape, b.shape
    rows = x.stride(0), b.stride(0), c.stride(0)
    sizes = (ctypes.c_int64 * 11)(sequences, channels, n, groups, tokens, SPAN, shares, _threads(x, b), *rows)
    offsets = torch.tensor(ends)
    slots = offsets // SPAN + torch.arange(sequences + 1)
    number = "float32" if x.dtype == torch.float32 else "float64"
    function = getattr(compiled, f"{name}_{number}{'' if rates.shape[0] == n else '_one'}")
    function(sizes, *extension.addresses(offsets, slots, *tensors))


# In torch, channels stand in their groups: x and step are (sequences, tokens, groups, width), b and c (sequences, tokens,
# groups, n), rates (groups, n or 1, width), d (groups, width), states (sequences, groups, n, width).


def _equally_long(ends: list[int]) -> Iterator[tuple[slice, list[int], slice]]:
    """Sequences to take together: their tokens, where their kept states begin, and which they are; all when they can be."""
    slots = [start // SPAN + i for i, start in enumerate(ends[:-1])]
    if len({end - start for start, end in itertools.pairwise(ends)}) == 1:
        yield slice(None), slots, slice(None)
        return
    for i, (start, end) in enumerate(itertools.pairwise(ends)):
        yield slice(start, end), slots[i : i + 1], slice(i, i + 1)


def _by_group(groups: int, sequences: int, *tensors: Tensor) -> list[Tensor]:
    return [x.view(sequences, x.shape[0] // sequences, groups, x.shape[1:].numel() // groups) for x in tensors]


def _split(x: Tensor, groups: int) -> Tensor:
    x = x.unflatten(-1, (groups, -1))
    return x if x.ndim == 2 else x.movedim(-2, -3)


def _joined(x: Tensor) -> Tensor:
    return x.movedim(-3, -2).flatten(-2)


def _accumulate(decay: Tensor, h: Tensor, state: Tensor) -> Tensor:
    """From what each token adds to the states themselves, ``h_t += decay_t h_{t-1}``, in place; decay is overwritten.

    First every row of tokens from its own beginning, all rows at once, then one row after the other.
    """
    rows = h.shape[1] // _ROW
    decays, states = (tensor[:, : rows * _ROW].unflatten(1, (rows, _ROW)) for tensor in (decay, h))
    for i in range(1, _ROW):
        states[:, :, i].addcmul_(decays[:, :, i], states[:, :, i - 1])
        decays[:, :, i].mul_(decays[:, :, i - 1])
    for row in range(rows):
        states[:, row].addcmul_(decays[:, row], state[:, None])
        state = states[:, row, -1]
    for t in range(rows * _ROW, h.shape[1]):
        h[:, t].addcmul_(decay[:, t], state)
        state = h[:, t]
    return state


def _forward(
    tensors: list[Tensor], rates: Tensor, d: Tensor, state: Tensor, kept: Tensor | None, slots: list[int]
) -> Tensor:
    """Write y, and the states at the start of each span into kept; gives the last state."""
    x, step, b, c, y = tensors
    for span in range(0, x.shape[1], SPAN):
        part = slice(span, span + SPAN)
        if kept is not None:
            kept[[slot + span // SPAN for slot in slots]] = _joined(state)
        decay = torch.exp(step[:, part, :, None] * rates)
        h = b[:, part, ..., None] * (step[:, part] * x[:, part])[..., None, :]
        state = _accumulate(decay, h, state)
        y[:, part] = torch.addcmul((c[:, part, :, None] @ h).squeeze(-2), d, x[:, part])
    return state


def _backward(
    tensors: list[Tensor],
    rates: Tensor,
    d: Tensor,
    grad_state: Tensor,
    kept: Tensor,
    slots: list[int],
    grad_rates: Tensor,
) -> Tensor:
    """Write the gradients of the inputs of ``_forward``, add to that of the rates, and give that of the first state."""
    x, step, b, c, grad_y, grad_x, grad_step, grad_b, grad_c = tensors
    for span in reversed(range(0, x.shape[1], SPAN)):
        part = slice(span, span + SPAN)
        state = _split(kept[[slot + span // SPAN for slot in slots]], x.shape[2])
        grad, delta = grad_y[:, part, :, None], step[:, part, :, None]
        inputs = delta * x[:, part, :, None]
        decay = torch.exp(delta * rates)
        h = b[:, part, ..., None] * inputs
        _accumulate(decay.clone(), h, state)
        grad_c[:, part] = (h * grad).sum(-1)
        # the same scan from the last token to the first: of each state, what it is worth to the outputs from there on
        total = (c[:, part, ..., None] * grad).flip(1)
        after = torch.cat((torch.ones_like(decay[:, :1]), decay[:, 1:].flip(1)), dim=1)
        grad_state = decay[:, 0] * _accumulate(after, total, grad_state)
        total = total.flip(1)
        grad_b[:, part] = (total * inputs).sum(-1)
        grad_input = (b[:, part, :, None] @ total).squeeze(-2)
        of_log = total.mul_(decay)  # of the decay's logarithm
        of_log[:, 0].mul_(state)
        of_log[:, 1:].mul_(h[:, :-1])
        grad_rates += (of_log * delta).sum((0, 1)).sum_to_size(rates.shape)
        grad_step[:, part] = torch.addcmul((of_log * rates).sum(-2), grad_input, x[:, part])
        grad_x[:, part] = torch.addcmul(grad_input * step[:, part], d, grad_y[:, part])
    return grad_state
