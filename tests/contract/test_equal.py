"""Level "equal", quick: the smallest published model of every system at a small size, and its largest small one whole."""

import pytest

from anyformer.core import registry
from anyformer.verify.equal import LEAST_MOVEMENT, compare, equal, movements_of
from anyformer.verify.structure import counted, native_size
from anyformer.verify.subjects import absent, subject_of

SMALL = [system.small[-1] for system in registry.systems().values() if not absent(system.small[-1])]
SMALLEST = [
    min(set(system.names) - set(system.small), key=lambda name: counted(name, native_size(name)).params)
    for system in registry.systems().values()
    if system.field == "vision"  # of text the smallest have more than a hundred million parameters: see the ledger
]


@pytest.mark.parametrize("name", SMALL)
def test_equal_small(name: str) -> None:
    assert equal(name).failures == ()


@pytest.mark.parametrize("name", SMALLEST)
def test_equal_at_a_small_size(name: str) -> None:
    assert compare(name, subject_of(name).other, batch=2).failures() == []


@pytest.mark.parametrize("name", SMALLEST)
def test_every_parameter_moves_what_is_compared(name: str) -> None:
    declared = registry.system_of(name).is_inert
    inert = {parameter for parameter, moved in movements_of(name).items() if not moved > LEAST_MOVEMENT}
    assert {parameter for parameter in inert if not declared(parameter)} == set()


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALLEST)
def test_equal_at_both_sizes(name: str) -> None:
    assert equal(name).failures == ()
