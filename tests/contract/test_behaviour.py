"""The small models of every system of the registry, running."""

from functools import partial

import pytest

import anyformer as af
from anyformer.core import registry
from anyformer.verify.behaviour import CHECKS

SMALL = [name for system in registry.systems().values() for name in system.small]


def test_every_system_has_small_models():
    assert [slug for slug, system in registry.systems().items() if not system.small] == []


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", SMALL)
def test_behaviour(name: str, check: str) -> None:
    assert CHECKS[check](partial(af.create_model, name)) == []
