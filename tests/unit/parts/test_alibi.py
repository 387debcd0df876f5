"""The slopes of ALiBi are those of the paper, and a pruned model keeps its own."""

import pytest
import torch

from anyformer import core
from anyformer.core.binding import slice_spec, slice_state

from .build_part import build, config


@pytest.mark.parametrize(
    ("heads", "exponents"),
    [
        (1, [8]),
        (2, [4, 8]),
        (8, range(1, 9)),
        (3, [4, 8, 2]),
        (6, [2, 4, 6, 8, 1, 3]),
        (12, [*range(1, 9), 0.5, 1.5, 2.5, 3.5]),
    ],
)
def test_slopes_as_in_the_paper(heads, exponents):
    slopes = build("alibi", heads=heads)(torch.float64)
    expected = torch.tensor([2.0**-exponent for exponent in exponents], dtype=torch.float64)
    torch.testing.assert_close(slopes, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_slopes_have_float32_at_least(dtype):
    part = build("alibi", heads=8).to(dtype)
    assert torch.equal(part(dtype), 2.0 ** -torch.arange(1.0, 9.0))


def test_cut_heads_keep_their_slopes():
    mixer = config("grouped_query_attention", dim=16, kv_heads=4, group=2, position=config("alibi"))
    spec = core.resolve(mixer)
    part = core.build(spec).double()
    keep = {"kv_heads": torch.tensor([2, 0])}
    small = core.build(slice_spec(spec, keep)).double()
    small.load_state_dict(slice_state(spec, part.state_dict(), keep))
    kept = torch.tensor([4, 5, 0, 1])
    assert torch.equal(small.position(torch.float64), part.position(torch.float64)[kept])
