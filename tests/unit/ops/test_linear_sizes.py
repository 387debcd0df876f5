"""The size classes of products: what falls together, and that a probe measures the class it is asked for."""

import pytest
import torch

from anyformer.ops import kernels
from anyformer.ops import linear as module


@pytest.mark.parametrize(
    ("rows", "features_in", "features_out", "expected"),
    [
        (0, 500, 500, None),
        (1, 499, 500, None),
        (1, 500, 500, "1x448x448"),
        (8, 500, 500, "8x448x448"),
        (8, 499, 500, None),
        (64, 176, 177, None),
        (64, 192, 192, "64x192x192"),
        (197, 192, 768, "192x192x768"),
        (3152, 192, 576, "3072x192x512"),
        (1, 4096, 50_257, "1x4096x4096"),
        (100_000, 4096, 4096, "64x4096x4096"),
        (0, 0, 0, None),
    ],
)
def test_size_classes(rows, features_in, features_out, expected):
    x, weight = torch.empty(rows, features_in, device="meta"), torch.empty(features_out, features_in, device="meta")
    assert module._size_class(x, weight) == expected


@pytest.mark.parametrize("size", ["1x1024x1024", "8x512x512", "64x192x384", "192x192x768"])
@pytest.mark.parametrize("operation", ["linear", "linear gelu"])
def test_a_probe_runs_both_kernels_on_products_of_its_class(operation, size):
    if not module._HAS_ONEDNN:
        pytest.skip("torch was built without oneDNN")
    outputs = {name: call() for name, call in module._contestants(operation, size).items()}
    assert set(outputs) == set(kernels.KERNELS)
    torch.testing.assert_close(outputs["mkl"], outputs["onednn"], rtol=1e-5, atol=0.0)
    rows, features_in, features_out = map(int, size.split("x"))
    x, weight = torch.empty(rows, features_in, device="meta"), torch.empty(features_out, features_in, device="meta")
    assert module._size_class(x, weight) == size
