"""The operator below the selective scans is sound, compiled and in plain torch, and equal to the recurrence written out."""

import contextlib

import pytest
import torch

from anyformer.core.errors import UsageError
from anyformer.ops import diagonal_scan, extension

from . import sequences

pytestmark = pytest.mark.usefixtures("poisoned_memory")

FORMS = [(groups, one) for groups in (1, 3) for one in (False, True)]


@pytest.fixture(autouse=True, params=["default", "plain torch"])
def form(request):
    with extension.without() if request.param == "plain torch" else contextlib.nullcontext():
        yield request.param


def make(offsets, channels, n, groups, one):
    torch.manual_seed(0)
    tokens = offsets[-1]
    sizes = [(tokens, channels)] * 2 + [(1 if one else n, channels)] + [(tokens, groups, n)] * 2
    sizes += [(channels,), (len(offsets) - 1, n, channels)]
    x, step, rates, *others = (torch.randn(size, dtype=torch.float64) for size in sizes)
    tensors = [x, step.abs(), -rates.abs(), *others]
    return [tensor.requires_grad_() for tensor in tensors], torch.tensor(offsets)


def written_out(x, step, rates, b, c, d, state, offsets):
    y, last = [], []
    width = x.shape[1] // b.shape[1]
    for i, h in enumerate(state):
        for t in range(offsets[i], offsets[i + 1]):
            enters, reads = (tensor[t].T.repeat_interleave(width, dim=1) for tensor in (b, c))
            h = torch.exp(step[t] * rates) * h + enters * step[t] * x[t]
            y.append((reads * h).sum(0) + d * x[t])
        last.append(h)
    return torch.stack(y), torch.stack(last)


def results(function, tensors, offsets):
    y, last = function(*tensors, offsets)
    return y, last, *torch.autograd.grad(y.square().sum() + last.sin().sum(), tensors)


@pytest.mark.parametrize(("groups", "one"), FORMS)
@pytest.mark.parametrize("channels", [3, 6, 51, 96])
def test_equal_to_the_recurrence_written_out(groups, one, channels):
    tensors, offsets = make([0, 70, 70, 71, 200], channels, 5, groups, one)
    ours, theirs = (results(function, tensors, offsets) for function in (diagonal_scan.scan, written_out))
    for mine, expected in zip(ours, theirs, strict=True):
        sequences.close(mine, expected, 1e-12)


@pytest.mark.parametrize(("groups", "one"), FORMS)
def test_sound_as_torch_checks_an_operator(groups, one):
    """Schema, shapes without data, gradients and tracing."""
    tensors, offsets = make([0, 4, 9], 6, 4, groups, one)
    operators = torch.ops.anyformer
    torch.library.opcheck(operators.diagonal_scan.default, (*tensors, offsets, True))
    tensors = [tensor.detach() for tensor in tensors]
    y, last, kept = operators.diagonal_scan(*tensors, offsets, True)
    torch.library.opcheck(operators.diagonal_scan_backward.default, (*tensors[:-1], offsets, kept, y, last))


@pytest.mark.parametrize(("groups", "one"), FORMS)
def test_two_threads_give_what_one_gives(groups, one):
    tensors, offsets = make([0, 300], 90, 16, groups, one)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = results(diagonal_scan.scan, tensors, offsets)
        torch.set_num_threads(2)
        together = results(diagonal_scan.scan, tensors, offsets)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(together[0], alone[0])
    for mine, expected in zip(together, alone, strict=True):
        sequences.close(mine, expected, 1e-12)


def test_tokens_may_lie_apart():
    tensors, offsets = make([0, 70, 200], 6, 4, 2, False)
    expected = results(diagonal_scan.scan, tensors, offsets)
    wide = [torch.full((len(x), 2 * x[0].numel()), torch.nan, dtype=x.dtype) for x in tensors[:5]]
    for i in (0, 1, 3, 4):
        wide[i][:, : tensors[i][0].numel()] = tensors[i].detach().flatten(1)
        tensors[i] = wide[i][:, : tensors[i][0].numel()].view(tensors[i].shape).requires_grad_()
        assert not tensors[i].is_contiguous()
    for mine, theirs in zip(results(diagonal_scan.scan, tensors, offsets), expected, strict=True):
        assert torch.equal(mine, theirs)


def test_offsets_of_any_layout():
    tensors, offsets = make([0, 70, 200], 6, 4, 1, False)
    expected = diagonal_scan.scan(*tensors, offsets)
    for other in (offsets.int(), offsets.repeat_interleave(2)[::2]):
        assert torch.equal(diagonal_scan.scan(*tensors, other)[0], expected[0])


def test_a_form_reads_what_the_other_kept():
    tensors, offsets = make([0, 70, 200], 6, 4, 1, False)
    kept = diagonal_scan.scan(*tensors, offsets)[0]
    with extension.without():
        there = torch.autograd.grad(kept.square().sum(), tensors)
        other = diagonal_scan.scan(*tensors, offsets)[0]
    back = torch.autograd.grad(other.square().sum(), tensors)
    for mine, expected in zip(there, back, strict=True):
        sequences.close(mine, expected, 1e-12)


@pytest.mark.parametrize("offsets", [[0, 5], [1, 9], [0, 7, 3, 9]])
def test_offsets_that_do_not_rise_to_the_tokens_are_refused(offsets):
    tensors, _ = make([0] * (len(offsets) - 1) + [9], 6, 4, 1, False)
    with pytest.raises(UsageError, match="must rise from 0 to the number of tokens, 9"):
        diagonal_scan.scan(*tensors, torch.tensor(offsets))
