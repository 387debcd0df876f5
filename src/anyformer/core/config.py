"""Configurations: an architecture as a tree of frozen dataclasses, partial as a pattern, complete as a spec.

A field is plain (``heads: int``), ``bound()`` (the parent's value of that axis), ``derived(rule)`` (computed once when the
pattern is resolved, then an explicit number of its own), or ``linear()`` (a slot for a weighted product, whose sizes
the part's axes give). :func:`resolve` turns a pattern into a spec; :func:`edit` changes a spec at paths.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast, dataclass_transform

from anyformer.core import axes
from anyformer.core.errors import UsageError, nearest, shown

if TYPE_CHECKING:
    from anyformer.core.part import Part

MAX_LAYERS = 10_000
MAX_SIZE = 2**63 - 1  # what torch counts to


def bound() -> Any:
    """A field that takes the parent's value of the axis of this name, or of the one that the parent binds to it."""
    return dataclasses.field(default=None, metadata={"bound": True})


def derived(rule: Callable[[Any], Any]) -> Any:
    """A field that ``rule(config)`` fills once, when it was left open; from then on it is a number of its own."""
    return dataclasses.field(default=None, metadata={"derived": rule})


def linear(**options: Any) -> Any:
    """A slot for a weighted product of default form; ``options`` are given to its configuration (bias, init)."""
    return dataclasses.field(default=None, metadata={"linear": options})


@dataclass_transform(frozen_default=True, kw_only_default=True)
class Config:
    """The base of all part configurations; subclasses become frozen, keyword-only dataclasses by themselves."""

    part: "ClassVar[type[Part]]"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        dataclasses.dataclass(frozen=True, kw_only=True)(cls)

    def size(self, name: str) -> int:
        """The size of an axis: a field or property, or a descendant's (``stages.0.dim``).

        Raises:
            UsageError: where it is no whole number, negative, or more than any tensor has.
        """
        node, _, attribute = name.rpartition(".")
        try:
            value = getattr(at(self, node), attribute, None)
        except ArithmeticError as error:  # a property of numbers that do not go together
            raise UsageError(f"{self.part.name}: the size of axis {name!r} cannot be computed ({error})") from None
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= MAX_SIZE:
            raise UsageError(
                f"{self.part.name}: the size of axis {name!r} is {shown(value)}; give a whole number from 0 on"
            )
        return value

    def replace(self, **changes: Any) -> Self:
        """A copy with fields changed; nothing is resolved again. Raises UsageError for a field that there is not."""
        for name in changes:
            if name not in (known := [field.name for field in fields(self)]):
                raise UsageError(f"part {self.part.name!r} has no {name!r}{nearest(name, known)}")
        return dataclasses.replace(cast(Any, self), **changes)

    def build(self) -> "Part":
        """The module of this configuration, which must be resolved."""
        return self.part(self)


def fields(config: Config | type[Config]) -> tuple[dataclasses.Field[Any], ...]:
    """The dataclass fields of a configuration."""
    return _fields(config if isinstance(config, type) else type(config))


@cache
def _fields(kind: type[Config]) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cast(Any, kind))


def children(config: Config) -> Iterator[tuple[str, Config]]:
    """The direct child nodes of a configuration with their relative paths (``mixer``, ``blocks.3``)."""
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Config):
            yield field.name, value
        elif isinstance(value, tuple):
            for index, item in enumerate(cast(tuple[Any, ...], value)):
                if isinstance(item, Config):
                    yield f"{field.name}.{index}", item


def walk(config: Config, path: str = "") -> Iterator[tuple[str, Config]]:
    """Every node of a tree with its path, parents first; the root's path is ""."""
    yield path, config
    for name, child in children(config):
        yield from walk(child, f"{path}.{name}" if path else name)


def at(config: Config, path: str) -> Config:
    """The node at a path. Raises UsageError with the nearest names where there is none."""
    node: Any = config
    for step in path.split(".") if path else ():
        node = _below(node, step, path)
    if not isinstance(node, Config):
        raise UsageError(f"{path!r} is {shown(node)}, not a part of this spec")
    return node


def _below(node: object, step: str, path: str) -> Any:
    """The field or item ``step`` of a node; ``path`` is what was asked for, to be named in the error."""
    if isinstance(node, tuple):
        items = cast(tuple[Any, ...], node)
        if step.isascii() and step.isdigit() and int(step) < len(items):
            return items[int(step)]
        raise UsageError(f"there is no {path!r} in this spec ({step!r} is not one of 0 to {len(items) - 1})")
    known = [field.name for field in fields(node)] if isinstance(node, Config) else []
    if step not in known:
        raise UsageError(f"there is no {path!r} in this spec ({step!r} is unknown){nearest(step, known)}")
    return getattr(node, step)


def with_children(config: Config, change: Callable[[str, Config], Config | None]) -> Config:
    """The configuration with every direct child replaced by ``change(relative path, child)``."""
    changes: dict[str, Any] = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if isinstance(value, Config):
            changes[field.name] = change(field.name, value)
        elif isinstance(value, tuple) and any(isinstance(item, Config) for item in cast(tuple[Any, ...], value)):
            items = cast(tuple[Config, ...], value)
            changes[field.name] = tuple(change(f"{field.name}.{i}", item) for i, item in enumerate(items))
    return config.replace(**changes)


def bindings(config: Config) -> dict[str, dict[str, axes.Expression]]:
    """Child path -> child axis -> expression over this part's axes: equal names, ``binds``, and linear slots."""
    own = {field.name for field in fields(config)}
    table: dict[str, dict[str, axes.Expression]] = {
        path: {f.name: axes.Axis(f.name) for f in fields(child) if f.metadata.get("bound") and f.name in own}
        for path, child in children(config)
    }
    for field in fields(config):
        if "linear" in field.metadata and field.name in table:
            outputs, inputs = axes.parse(config.part.axes[f"{field.name}.weight"])
            table[field.name] = {"outputs": outputs, "inputs": inputs}
    for path, binding in config.part.binds(config).items():
        if path in table:
            table[path].update({axis: axes.parse_expression(text) for axis, text in binding.items()})
    return table


# what a field of this name holds, a number after it or not; other names are the part's own affair
SLOTS = {
    "embed": "embed",
    "mixer": "token_mixer",
    "channel_mixer": "channel_mixer",
    "norm": "norm",
    "residual": "residual",
    "block": "block",
    "blocks": "block",
    "down": "down",
    "up": "up",
    "router": "router",
    "head": "head",
}


def resolve(pattern: Config) -> Config:
    """The spec of a pattern: every derived number, bound size and linear node filled in.

    A configuration object that stands in several places is resolved once for each set of bound sizes, so that a row of
    equal layers costs little more than one of them.

    Raises:
        UsageError: where a number is missing, or contradicts what the parent binds it to or what the part defines, or a
            part stands in a slot that it is not made for.
    """
    return _resolve(pattern, "", {})


# (identity, bound sizes) -> (the configuration, kept so that nothing else gets its identity; its spec)
_Made = dict[tuple[int, tuple[tuple[str, int], ...]], tuple[Config, Config]]


def _resolve(pattern: Config, path: str, made: _Made) -> Config:
    config = _filled(pattern, path)
    _check_slots(config, path)
    table = bindings(config)

    def child_spec(name: str, child: Config) -> Config:
        known = {field.name for field in fields(child)}
        sizes = tuple((axis, axes.size(e, config.size)) for axis, e in table[name].items() if axis in known)
        key = id(child), sizes
        if key not in made:
            where = f"{path}.{name}" if path else name
            for axis, value in sizes:
                given = getattr(child, axis)
                if given not in (None, value):
                    maker = path or "what holds it"
                    raise UsageError(f"{where}.{axis} is {shown(given)}, but {maker} makes it {value}")
            made[key] = child, _resolve(child.replace(**dict(sizes)) if sizes else child, where, made)
        return made[key][1]

    spec = with_children(config, child_spec)
    for axis, text in spec.part.definitions.items():
        whole, defined = spec.size(axis), axes.size(axes.parse_expression(text), spec.size)
        if whole != defined:
            raise UsageError(f"{path or 'the root'} ({spec.part.name}): {axis} is {whole}, but {text!r} is {defined}")
    return spec


def _check_slots(config: Config, path: str) -> None:
    """Whether every child can stand where it does: a linear slot, or a field that is named for a slot (``norm2``)."""
    for name, child in children(config):
        slot = child.part.slot
        field = next(f for f in fields(config) if f.name == name.partition(".")[0])
        wanted = "linear" if "linear" in field.metadata else SLOTS.get(field.name.rstrip("0123456789"))
        if wanted is not None and slot not in (wanted, "any"):
            where = f"{path}.{name}" if path else name
            raise UsageError(f"{where} must be a {wanted}, but {child.part.name!r} is a {slot}")


def _filled(config: Config, path: str) -> Config:
    """The configuration with its own derived numbers and linear slots filled; those of its children are not looked at."""
    for field in fields(config):
        if getattr(config, field.name) is not None:
            continue
        where = f"{path or 'the root'} ({config.part.name}): {field.name}"
        if field.metadata.get("bound"):
            raise UsageError(f"{where} is not given by what holds it")
        if "derived" in field.metadata:
            try:
                value = field.metadata["derived"](config)
            except (ArithmeticError, TypeError, ValueError) as error:
                raise UsageError(f"{where} cannot be derived ({error}); check the numbers beside it") from None
            config = config.replace(**{field.name: value})
        elif "linear" in field.metadata:
            config = config.replace(**{field.name: default_linear(field.metadata["linear"])})
    return config


def default_linear(options: Mapping[str, Any]) -> Config:
    """The configuration of a linear slot that nobody filled, sizes still open."""
    from anyformer.core import registry  # the registry knows parts, parts know configurations

    return registry.part("linear").Config(**options)


def reopen(spec: Config) -> Config:
    """The pattern that resolves to ``spec`` with the least said: bound sizes and default linear nodes left out."""

    def child(name: str, node: Config) -> Config | None:
        known = {field.name for field in fields(node)}
        node = reopen(node.replace(**{axis: None for axis in table[name] if axis in known}))
        field = slots.get(name)
        return None if field is not None and node == default_linear(field.metadata["linear"]) else node

    table = bindings(spec)
    slots = {field.name: field for field in fields(spec) if "linear" in field.metadata}
    return with_children(spec, child)


def edit(spec: Config, changes: Mapping[str, Any]) -> Config:
    """The spec with the nodes or fields at the given paths changed, and all that follows from them resolved again.

    ``edit(spec, {"head.num_classes": 10, "blocks.0.mixer.qkv": LowRank.Config(rank=4)})``.
    """
    pattern = reopen(spec)
    for path, value in changes.items():
        pattern = _set(pattern, path.split("."), value, path)
    return resolve(pattern)


def _set(node: object, steps: list[str], value: Any, path: str) -> Any:
    """The node with what lies ``steps`` below it replaced by ``value``."""
    if not steps:
        return value
    step, rest = steps[0], steps[1:]
    child = _below(node, step, path)
    if isinstance(node, Config):
        if child is None and rest:
            options = next(field.metadata.get("linear") for field in fields(node) if field.name == step)
            child = default_linear(options) if options is not None else None
        return node.replace(**{step: _set(child, rest, value, path)})
    items = list(cast(tuple[Any, ...], node))
    items[int(step)] = _set(child, rest, value, path)
    return tuple(items)
