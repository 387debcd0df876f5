"""The closed registry: which parts and systems exist, found by walking the package, never by a dotted path in a file."""

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase as fnmatch
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

from anyformer.core.errors import UsageError, nearest
from anyformer.core.paper import Paper, Published

if TYPE_CHECKING:
    from anyformer.core.config import Config
    from anyformer.core.folders import Folder
    from anyformer.core.keymap import KeyMap
    from anyformer.core.part import Part

_PARTS: "dict[str, type[Part]]" = {}


def register(part: "type[Part]") -> None:
    """Enter a part under its name. Raises ValueError when another part has it already."""
    known = _PARTS.get(part.name)
    if known is not None and (known.__module__, known.__qualname__) != (part.__module__, part.__qualname__):
        raise ValueError(f"two parts are named {part.name!r}: {known.__module__} and {part.__module__}")
    _PARTS[part.name] = part


def parts(slot: str | None = None) -> "dict[str, type[Part]]":
    """All parts by name, or those of one slot."""
    _discover()
    return {name: part for name, part in sorted(_PARTS.items()) if slot in (None, part.slot)}


def part(name: str) -> "type[Part]":
    """The part of a name. Raises UsageError with the nearest names."""
    if name not in _PARTS:
        _discover()
    if name not in _PARTS:
        raise UsageError(f"no part is named {name!r}{nearest(name, _PARTS)}")
    return _PARTS[name]


@dataclass(frozen=True)
class System:
    """One paper's file, as the rest of the library sees it.

    Attributes:
        paper: what it is.
        field: the folder it lies in.
        names: its models' names.
        small: those of them that are not of the paper, for small images, tight budgets and tests; smallest first.
        smallest_patch: the smallest stride of a stem that suits the system, in pixels; of pictures alone.
        pattern: ``pattern(name, **options)`` gives the pattern of a model.
        published: figures as printed, by model name.
        keys: format name -> key map between the format's names and ours, for a spec.
        data_config: ``data_config(name)`` gives mean, standard deviation, size, crop and interpolation of pictures, or the
            vocabulary, the tokenizer and the longest context of text.
        folders: how its models stand in the folders of transformers.
        inert: parameters, by shell pattern, that the architecture has and nothing depends on -> why.
    """

    paper: Paper
    field: str
    names: tuple[str, ...]
    small: tuple[str, ...]
    smallest_patch: int
    pattern: "Callable[..., Config]"
    published: Mapping[str, Published]
    keys: "Mapping[str, Callable[[Config], KeyMap]]"
    data_config: Callable[[str], dict[str, Any]]
    folders: "tuple[Folder, ...]"
    inert: Mapping[str, str]

    def is_inert(self, parameter: str) -> bool:
        """Whether nothing depends on a parameter of ours."""
        return any(fnmatch(parameter, pattern) for pattern in self.inert)


@cache
def systems() -> dict[str, System]:
    """All systems by slug."""
    return {
        module.PAPER.slug: System(
            paper=module.PAPER,
            field=module.__name__.split(".")[-2],
            names=tuple(module.SIZES),
            small=module.SMALL,
            smallest_patch=getattr(module, "SMALLEST_PATCH", 1),
            pattern=module.pattern,
            published=module.PUBLISHED,
            keys=module.KEYS,
            data_config=module.data_config,
            folders=getattr(module, "FOLDERS", ()),
            inert=getattr(module, "INERT", {}),
        )
        for module in _walk("anyformer.systems")
        if hasattr(module, "PAPER")
    }


@cache
def _models() -> dict[str, System]:
    return {name: system for system in systems().values() for name in system.names}


def model_names() -> tuple[str, ...]:
    """The names of all models, in the order of their systems."""
    return tuple(_models())


def system_of(model: str) -> System:
    """The system that a model name belongs to. Raises UsageError with the nearest names."""
    if model not in _models():
        raise UsageError(f"no model is named {model!r}{nearest(model, _models())}; `anyformer list` shows all")
    return _models()[model]


def system(slug: str) -> System:
    """The system of a slug. Raises UsageError with the nearest slugs."""
    if slug not in systems():
        raise UsageError(f"no system is named {slug!r}{nearest(slug, systems())}; `anyformer list` shows all")
    return systems()[slug]


def _walk(package: str) -> list[ModuleType]:
    root = importlib.import_module(package)
    found = sorted(info.name for info in pkgutil.walk_packages(root.__path__, f"{package}.") if not info.ispkg)
    return [importlib.import_module(name) for name in found]


@cache
def _discover() -> None:
    for package in ("anyformer.parts", "anyformer.skeletons", "anyformer.systems"):
        _walk(package)
