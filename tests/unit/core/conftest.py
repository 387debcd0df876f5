"""What the engine's tests share."""

import pytest
from hypothesis import settings

from anyformer.core import registry

settings.register_profile("engine", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("engine")


@pytest.fixture(scope="module")
def own_parts():
    """Parts that a module's tests define leave the registry with the module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_PARTS", dict(registry.parts()))
        yield
