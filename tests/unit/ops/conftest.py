"""What the tests of numerics share: a kernel table of their own, and uninitialised memory that shows."""

import pytest
import torch
from hypothesis import settings

settings.register_profile("numerics", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("numerics")


@pytest.fixture(autouse=True, scope="session")
def own_kernel_table(tmp_path_factory):
    """No test reads or writes the user's table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANYFORMER_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def poisoned_memory():
    """Every tensor allocated without values is filled with NaN, so that what is read before it is written shows."""
    before = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0])
    torch.utils.deterministic.fill_uninitialized_memory = before[1]
