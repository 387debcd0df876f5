"""Anyformer: every efficient and hybrid Transformer as parts of one system."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anyformer.core.errors import AnyformerError, UsageError
    from anyformer.core.store import (
        adapt,
        build_hybrid,
        create_model,
        dump_weights,
        from_pretrained,
        list_models,
        load_weights,
    )
    from anyformer.fit.run import fit
    from anyformer.measure.run import measure

# Looked up on first use, so that the command line can list and help without torch.
_PUBLIC = {
    "AnyformerError": "anyformer.core.errors",
    "UsageError": "anyformer.core.errors",
    "adapt": "anyformer.core.store",
    "build_hybrid": "anyformer.core.store",
    "create_model": "anyformer.core.store",
    "dump_weights": "anyformer.core.store",
    "from_pretrained": "anyformer.core.store",
    "list_models": "anyformer.core.store",
    "load_weights": "anyformer.core.store",
}

__all__ = [
    "AnyformerError",
    "UsageError",
    "adapt",
    "build_hybrid",
    "create_model",
    "dump_weights",
    "fit",
    "from_pretrained",
    "list_models",
    "load_weights",
    "measure",
]


def __getattr__(name: str) -> Any:
    if name in ("fit", "measure"):
        return importlib.import_module(f"anyformer.{name}")  # callable; importing its modules binds the same name
    if name not in _PUBLIC:
        raise AttributeError(f"module 'anyformer' has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)
