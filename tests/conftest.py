"""What every test starts from: few threads, so that runs beside each other stay quick, and one random state."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

# Before torch: threads that wait must not spin long, as they would stop the tests that run beside them; and what is measured
# of this machine during tests is not to be remembered.
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
os.environ["ANYFORMER_CACHE"] = tempfile.mkdtemp(prefix="anyformer-tests-")

import pytest
import torch
from torch import nn

from .raises import record_everywhere

torch.set_num_threads(min(2, torch.get_num_threads()))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--raises", metavar="FILE", help="note in FILE from where errors for users are made")


def pytest_configure(config: pytest.Config) -> None:
    if target := config.getoption("--raises"):
        record_everywhere(Path(target).absolute())


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def oracle() -> Callable[..., nn.Module]:
    """Gives the reference model of a name of ours."""
    from anyformer.verify.oracles import oracle

    return oracle
