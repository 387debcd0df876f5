"""The numbers contract of every mixer and norm that exists, plain and with uninitialised memory poisoned."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from anyformer.core import registry

from .cells import Cell, cells, known
from .checks import CHECKS
from .tolerances import EXCUSED, KNOWN

CELLS = cells()


@contextmanager
def poisoned() -> Iterator[None]:
    """Have torch fill what it allocates with NaN before anything is written there."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def made_of_poison() -> dict[str, Cell]:
    with poisoned():
        return cells.__wrapped__()


def _marks(check: str, part: str) -> list[pytest.MarkDecorator]:
    cell = (check, part)
    return [
        *([pytest.mark.skip(EXCUSED[cell])] if cell in EXCUSED else []),
        *([pytest.mark.xfail(strict=True, reason=KNOWN[cell])] if cell in KNOWN else []),
    ]


ALL = [
    pytest.param(name, check, marks=_marks(check, cell.part.name)) for name, cell in CELLS.items() for check in CHECKS
]


@pytest.mark.parametrize(("name", "check"), ALL)
def test_numbers(name: str, check: str) -> None:
    assert CHECKS[check](CELLS[name]) == []


@pytest.mark.parametrize(("name", "check"), ALL)
def test_poisoned_numbers(name: str, check: str, made_of_poison: dict[str, Cell]) -> None:
    with poisoned():
        assert CHECKS[check](made_of_poison[name]) == []


def test_every_mixer_and_norm_has_a_cell() -> None:
    assert known() - {type(cell.part) for cell in CELLS.values()} == set()


def test_what_the_tables_name_exists() -> None:
    assert {part for _, part in (*EXCUSED, *KNOWN)} <= registry.parts().keys()
    assert {check for check, _ in (*EXCUSED, *KNOWN)} <= CHECKS.keys()
