"""Every model of the registry, on the meta device: `pytest -k swin` runs those of one system."""

from functools import cache

import pytest

from anyformer.core import registry
from anyformer.core.model import Model
from anyformer.verify.structure import CHECKS, on_meta


@cache
def model(name: str) -> Model:
    return on_meta(name)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", registry.model_names())
def test_structure(name: str, check: str) -> None:
    assert CHECKS[check](model(name)) == []
