"""What every test starts from: few threads, so that runs beside each other stay quick, and one random state."""

import os
import tempfile
from collections.abc import Callable

# Before torch: threads that wait must not spin long, as they would stop the tests that run beside them; and what is measured
# of this machine during tests is not to be remembered.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
os.environ["ANYFORMER_CACHE"] = tempfile.mkdtemp(prefix="anyformer-tests-")

import pytest
import torch
from torch import nn

torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def oracle() -> Callable[..., nn.Module]:
    """Gives the reference model of a name of ours."""
    from anyformer.verify.oracles import oracle

    return oracle
