"""Every check of the numbers contract is shown to fail on a mixer that is wrong in just that."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from anyformer import core
from anyformer.core.errors import UsageError

from .cells import Cell, random
from .checks import CHECKS
from .compare import distance
from .test_numbers import poisoned

DIM = 4
Act = Callable[[Tensor, core.Context], Tensor]


class Toy(nn.Module):
    """A mixer of sequences that does as it is told; ``scale`` makes its float32 copy another function."""

    slot, name = "token_mixer", "toy"

    def __init__(self, act: Act, refuses: dict[str, str]) -> None:
        super().__init__()
        self.act, self.refuses = act, refuses
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        return self.act(x, ctx)


def failures(check: str, act: Act, shape: tuple[int, ...] = (2, 7, DIM), **refuses: str) -> list[str]:
    context = core.Context(layout=core.Layout(grid=shape[1:-1]))
    toy = Toy(act, refuses).double().eval()
    return CHECKS[check](Cell("toy", toy, random(shape), context))


def keep(x: Tensor, ctx: core.Context) -> Tensor:
    return torch.ones_like(x[..., :1]) if ctx.mask is None else ctx.mask[..., None].to(x.dtype)


def good(x: Tensor, ctx: core.Context) -> Tensor:
    """The sum of what counts up to each token; no bit of a masked token enters, whatever it holds."""
    return x.masked_fill(keep(x, ctx) == 0, 0).cumsum(1) / 8


def refuse(x: Tensor, ctx: core.Context) -> Tensor:
    raise UsageError("it does not")


def crash_on_nothing(x: Tensor, ctx: core.Context) -> Tensor:
    return x.view(x.shape[0], -1, DIM)


def overwrite(x: Tensor, ctx: core.Context) -> Tensor:
    return x.mul_(0.5)


def by_memory(x: Tensor, ctx: core.Context) -> Tensor:
    return torch.as_strided(x, x.shape, torch.empty(x.shape).stride(), x.storage_offset()) * 1


WRONG: list[tuple[str, str, Act]] = [
    ("causality", "tokens after 0 reach it", lambda x, ctx: x + 1e-12 * x.sum(1, keepdim=True)),
    ("causality", "has a gradient to later ones", lambda x, ctx: x + (1e-300 * x.flip(1).cumsum(1))),
    ("padding", "the mask changes nothing", lambda x, ctx: x.cumsum(1)),
    ("padding", "junk of size 10000", lambda x, ctx: (x * (keep(x, ctx) + 1e-9)).cumsum(1)),
    ("padding", "left padding", lambda x, ctx: good(x, ctx) * torch.arange(1, x.shape[1] + 1)[:, None]),
    ("padding", "right padding", lambda x, ctx: good(x, ctx) / x.shape[1]),
    ("batches", "in a batch of 16", lambda x, ctx: x * (1 + 1e-4 * (len(x) > 5))),
    ("batches", "a row of NaN reaches", lambda x, ctx: x + 0 * x.sum()),
    ("sizes", "on (1,) gives", lambda x, ctx: x[:, : max(1, x.shape[1] - 1)].expand(-1, x.shape[1], -1)[:, 1:]),
    ("sizes", "on (65,) ends in", lambda x, ctx: x if x.shape[1] < 65 else x.view(3)),
    ("sizes", "float32 inf", lambda x, ctx: x if x.dtype == torch.float64 else x / 0),
    ("empty_batches", "batch 0 on (1,) ends in RuntimeError", crash_on_nothing),
    ("empty_grids", "batch 2 on (0,) ends in IndexError", lambda x, ctx: x + x[:, 0:1][:, 0].unsqueeze(1)),
    ("extremes", "of scale 10000", lambda x, ctx: (x.exp() + 1).log()),
    ("extremes", "of zeros", lambda x, ctx: x / x.norm()),
    ("extremes", "of equal tokens", lambda x, ctx: x / x.std(1, keepdim=True)),
    ("extremes", "a token of nan leaves no trace", lambda x, ctx: x.nan_to_num()),
    ("extremes", "a token of inf leaves no trace", lambda x, ctx: x.clamp(-1e6, 1e6)),
    ("layouts", "transposed", by_memory),
    ("layouts", "are overwritten", overwrite),
]


@pytest.mark.parametrize("check", CHECKS)
def test_a_good_mixer_passes(check: str) -> None:
    assert failures(check, good) == []


@pytest.mark.parametrize(("check", "words", "act"), WRONG, ids=[f"{check}: {words}" for check, words, _ in WRONG])
def test_a_wrong_mixer_fails(check: str, words: str, act: Act) -> None:
    assert any(words in failure for failure in failures(check, act)), failures(check, act)


def test_a_mixer_that_refuses_to_stream_must_need_the_whole_sequence() -> None:
    assert failures("causality", good, stream="it says so") == [
        "no token needs the last one, though it refuses to stream"
    ]
    assert failures("causality", lambda x, ctx: x + x.mean(1, keepdim=True), stream="it needs them") == []


def test_rows_that_meet_in_training_alone_are_seen() -> None:
    toy = Toy(lambda x, ctx: x - x.mean(0) if toy.training else x * 1, {}).double().eval()
    found = CHECKS["batches"](Cell("toy", toy, random((2, 7, DIM)), core.Context()))
    assert found
    assert all("in training" in failure or "a row of NaN" in failure for failure in found)
    toy.register_buffer("running_mean", torch.zeros(1))
    assert CHECKS["batches"](Cell("toy", toy, random((2, 7, DIM)), core.Context())) == []


def test_a_mask_may_be_refused_in_words_or_by_an_error() -> None:
    assert failures("padding", lambda x, ctx: x.cumsum(1), mask="it says so") == []
    assert failures("padding", refuse) == []


def test_a_part_that_a_pass_changes_is_seen() -> None:
    toy = Toy(lambda x, ctx: (toy.seen.add_(1), x * 1)[1], {}).double().eval()
    assert CHECKS["layouts"](Cell("toy", toy, random((2, 7, DIM)), core.Context())) != []


def test_memory_that_nobody_wrote_to_is_seen() -> None:
    def forgetful(x: Tensor, ctx: core.Context) -> Tensor:
        y = torch.empty_like(x)
        y[..., 1:] = x[..., 1:]
        return y

    with poisoned():
        assert failures("batches", forgetful) != []
        assert failures("batches", good) == []


def test_what_is_not_a_number_is_near_nothing() -> None:
    broken = torch.tensor([1.0, torch.nan])
    assert (
        distance(broken, broken)
        == distance(torch.ones(2), broken)
        == distance(torch.ones(3), torch.ones(2))
        == float("inf")
    )
