"""The norm of one row in C++ is that of many in torch."""

import pytest
import torch

from anyformer.ops import extension
from anyformer.ops.rms_norm import rms_norm

pytestmark = pytest.mark.usefixtures("poisoned_memory")


@pytest.mark.parametrize("channels", [1, 15, 16, 17, 200])
@pytest.mark.parametrize("rows", [(1, 1), (2, 3), (0,)])
@pytest.mark.parametrize("without", [False, True])
def test_any_row(channels, rows, without):
    x = torch.randn(*rows, channels, generator=torch.Generator().manual_seed(channels))
    weight = torch.linspace(0.5, 2.0, channels)
    exact = x.double()
    exact = exact / (exact.square().mean(-1, keepdim=True) + 1e-3).sqrt() * weight
    if without:
        with extension.without():
            y = rms_norm(x, weight, 1e-3)
    else:
        y = rms_norm(x, weight, 1e-3)
    assert y.shape == x.shape
    assert y.numel() == 0 or (y - exact).abs().max() <= 1e-6


def test_gradients_and_other_precisions_go_through_torch():
    x, weight = torch.randn(1, 8, dtype=torch.float64, requires_grad=True), torch.rand(8, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, weight: rms_norm(x, weight, 1e-3), (x, weight.requires_grad_()))
