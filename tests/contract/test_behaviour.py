"""The small models of every system of the registry, running."""

from functools import partial

import pytest

import anyformer as af
from anyformer.core import registry
from anyformer.verify import behaviour, text_behaviour

CHECKS = {"vision": behaviour.CHECKS, "language": text_behaviour.CHECKS, "references": text_behaviour.CHECKS}
CASES = [
    (name, check) for system in registry.systems().values() for name in system.small for check in CHECKS[system.field]
]


def test_every_system_has_small_models():
    assert [slug for slug, system in registry.systems().items() if not system.small] == []


@pytest.mark.parametrize(("name", "check"), CASES)
def test_behaviour(name: str, check: str) -> None:
    assert CHECKS[registry.system_of(name).field][check](partial(af.create_model, name)) == []
