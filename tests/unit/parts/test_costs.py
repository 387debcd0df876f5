"""The costs that docstrings state, counted."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .build_part import build, config, on_grid


def multiply_adds(call):
    """Matrix products and convolutions; attention in its written-out form, which the counter sees through."""
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        call()
    return counter.get_total_flops() // 2


GRID, TOKENS = on_grid(4, 6), 24
GRID_FEATURES = torch.zeros(1, 4, 6, 12, dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "settings", "a_token"),
    [
        ("mlp", {"dim": 12, "hidden": 7}, 2 * 12 * 7),
        ("attention", {"dim": 12, "heads": 2, "head_dim": 5}, 4 * 12 * 2 * 5 + 2 * TOKENS * 2 * 5),
        ("depthwise_convolution", {"dim": 12, "kernel": 5}, 12 * 5**2),
    ],
)
def test_mixers(name, settings, a_token):
    part = build(name, **settings)
    assert multiply_adds(lambda: part(GRID_FEATURES, GRID)) == TOKENS * a_token


def test_grouped_query_attention():
    part = build("grouped_query_attention", dim=12, kv_heads=2, group=3, head_dim=4)
    x = GRID_FEATURES.flatten(1, 2)
    attending = 2 * TOKENS * 6 * 4
    assert multiply_adds(lambda: part(x, on_grid(TOKENS))) == TOKENS * (2 * 12 * (3 + 1) * 2 * 4 + attending)


def test_linear():
    part = build("linear", inputs=12, outputs=7)
    assert multiply_adds(lambda: part(GRID_FEATURES)) == TOKENS * 12 * 7


def test_patches():
    embed = build("patch_embed", dim=5, patch=2)
    assert multiply_adds(lambda: embed(torch.zeros(1, 3, 8, 6, dtype=torch.float64))) == 3 * 5 * 8 * 6
    down = build("patch_down", inputs=12, dim=5, norm=config("layer_norm"))
    assert multiply_adds(lambda: down(GRID_FEATURES, GRID)) == 12 * 5 * TOKENS
