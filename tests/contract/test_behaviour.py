"""The small models of every system of the registry, running."""

from functools import partial

import pytest

import anyformer as af
from anyformer.core import registry
from anyformer.verify.levels import behaviours

CASES = [(name, check) for system in registry.systems().values() for name in system.small for check in behaviours(name)]


def test_every_system_has_small_models():
    assert [slug for slug, system in registry.systems().items() if not system.small] == []


@pytest.mark.parametrize(("name", "check"), CASES)
def test_behaviour(name: str, check: str) -> None:
    assert behaviours(name)[check](partial(af.create_model, name)) == []
