"""The engine: parts, axes, specs, registry, key maps, context, errors. It knows no architecture.

Its vocabulary is looked up on first use, so that errors and files can be imported without torch.
"""

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anyformer.core.vocabulary import *  # noqa: F403 - a checker's view of what __getattr__ finds


def __getattr__(name: str) -> Any:
    if importlib.util.find_spec(f"anyformer.core.{name}"):  # a submodule, which the import that asks will load itself
        raise AttributeError(name)
    vocabulary = importlib.import_module("anyformer.core.vocabulary")
    if name not in vocabulary.__all__:
        raise AttributeError(f"module 'anyformer.core' has no attribute {name!r}")
    value = globals()[name] = getattr(vocabulary, name)
    return value
