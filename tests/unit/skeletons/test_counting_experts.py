"""Experts that count their tokens stream in any decoder: the count goes on from chunk to chunk."""

from typing import Any

import pytest
import torch

import anyformer as af


@pytest.mark.parametrize("cut", [(1,) * 24, (5, 19), (23, 1)])
def test_a_stream_counts_on(cut: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    pattern = {
        "skeleton": "decoder",
        "dim": 16,
        "layers": "2 x mamba",
        "channel_mixer": "capped_experts(count=3, capacity=4)",
    }
    model: Any = af.build_hybrid(pattern).double().eval()
    ids = torch.randint(256, (2, 24))
    state, given = model.init_state(2, 24), []
    for piece in ids.split(cut, dim=1):
        scores, state = model.stream(piece, state)
        given.append(scores)
    torch.testing.assert_close(torch.cat(given, 1), model(ids), rtol=1e-10, atol=1e-10)
