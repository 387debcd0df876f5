"""Specs and patterns as JSON and YAML, read strictly against the closed registry: no dotted paths, nothing evaluated."""

import dataclasses
import inspect
import json
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any, Literal, cast

import yaml

from anyformer.core import config as configs
from anyformer.core import registry
from anyformer.core.config import Config
from anyformer.core.errors import UsageError, nearest, shown
from anyformer.core.initial import Init, Kind
from anyformer.core.part import Part

MAX_BYTES = 1_000_000
MAX_DEPTH = 32


def to_data(config: Config) -> dict[str, Any]:
    """A configuration as plain data; linear nodes of default form are left out, every other number is written."""
    slots = {field.name: field.metadata["linear"] for field in configs.fields(config) if "linear" in field.metadata}
    data: dict[str, Any] = {"part": config.part.name}
    for field in configs.fields(config):
        value = getattr(config, field.name)
        if value is None and field.default is None:
            continue
        if field.name in slots and _is_default(value, slots[field.name]):
            continue
        data[field.name] = _plain(value)
    return data


def _is_default(node: Config | None, options: Mapping[str, Any]) -> bool:
    default = configs.default_linear(options)
    return isinstance(node, type(default)) and node.replace(outputs=None, inputs=None) == default


def _plain(value: Any) -> Any:
    match value:
        case Config():
            return to_data(value)
        case Init():
            return {"init": value.kind, "value": value.value}
        case tuple():
            return [_plain(item) for item in cast(tuple[Any, ...], value)]
        case _:
            return value


def from_data(data: object, where: str = "", depth: int = 0) -> Config:
    """The configuration that plain data describes, unresolved.

    Raises:
        UsageError: for an unknown part or key, a value of the wrong type, NaN or infinity, or too deep a tree.
    """
    place = where or "the root"
    if depth > MAX_DEPTH:
        raise UsageError(f"{place}: a spec may be at most {MAX_DEPTH} levels deep")
    table = _mapping(data)
    name = table.get("part")
    if not isinstance(name, str):
        raise UsageError(f'{place}: expected a mapping with a key "part" that names the part, got {shown(data)}')
    kind = registry.part(name).Config
    hints = _hints(kind)
    known = {field.name: field for field in configs.fields(kind)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key == "part":
            continue
        if key not in known:
            raise UsageError(f"{place}: part {name!r} has no {shown(key)}{nearest(str(key), known)}")
        left_open = value is None and known[key].default is None
        values[key] = None if left_open else _read(value, hints[key], f"{where}.{key}" if where else key, depth)
    missing = [f.name for f in known.values() if f.default is dataclasses.MISSING and f.name not in values]
    if missing:
        raise UsageError(f"{place}: part {name!r} needs {', '.join(missing)}")
    return kind(**values)


def arguments(function: Callable[..., Any], data: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Plain data as the keyword arguments of a function, checked against its type hints.

    Raises:
        UsageError: for an unknown or missing argument, or a value of the wrong type.
    """
    known = inspect.signature(function).parameters
    hints = typing.get_type_hints(function)
    for name in data:
        if name not in known:
            raise UsageError(f"{where}: there is no {shown(name)}{nearest(str(name), known)}")
    missing = [p.name for p in known.values() if p.default is p.empty and p.name not in data]
    if missing:
        raise UsageError(f"{where}: {', '.join(missing)} must be given")
    return {name: _read(value, hints[name], f"{where}: {name}", 0) for name, value in data.items()}


@cache
def _hints(kind: type[Config]) -> dict[str, Any]:
    return typing.get_type_hints(kind, localns={"Part": Part})  # only type checkers see the name where it is written


def _read(value: object, hint: Any, where: str, depth: int) -> Any:
    """A plain value as the type ``hint``; ``where`` it stands is named in errors."""
    origin: Any = typing.get_origin(hint)
    kinds: tuple[Any, ...] = typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _read_one_of(value, kinds, where, depth)
    if isinstance(hint, type) and issubclass(hint, Config):
        return from_data(value, where, depth + 1)
    if origin in (tuple, Sequence) and isinstance(value, list | tuple):
        return _read_items(cast("Sequence[object]", value), origin, kinds, where, depth)
    if hint is Init:
        return _read_init(value, where)
    if origin is Literal and value in kinds:
        return value
    if hint is float and _number(value):
        return float(cast(float, value))
    if hint in (int, bool, str, type(None)) and type(value) is hint:
        return value
    raise UsageError(f"{where}: expected {_described(hint)}, got {shown(value)}")


def _read_one_of(value: object, kinds: tuple[Any, ...], where: str, depth: int) -> Any:
    """The value as the first of the alternatives that it fits."""
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    for kind in kinds[:-1]:
        with suppress(UsageError):
            return _read(value, kind, where, depth)
    return _read(value, kinds[-1], where, depth)


def _read_items(
    items: Sequence[object], origin: Any, kinds: tuple[Any, ...], where: str, depth: int
) -> tuple[Any, ...]:
    """A list as a tuple, of one kind throughout, or of one kind a place."""
    if len(items) > configs.MAX_LAYERS:
        raise UsageError(f"{where}: at most {configs.MAX_LAYERS} entries, got {len(items)}")
    if origin is Sequence or kinds[-1] is Ellipsis:
        kinds = (kinds[0],) * len(items)
    if len(kinds) != len(items):
        raise UsageError(f"{where}: expected {len(kinds)} values, got {len(items)}")
    return tuple(
        _read(item, kind, f"{where}.{i}", depth) for i, (item, kind) in enumerate(zip(items, kinds, strict=True))
    )


def _read_init(value: object, where: str) -> Init:
    kinds = typing.get_args(Kind)
    table = _mapping(value)
    number = table.get("value", 1.0)
    if set(table) <= {"init", "value"} and table.get("init") in kinds and _number(number):
        return Init(table["init"], float(number))
    raise UsageError(
        f"{where}: an initialiser is {{init: one of {', '.join(kinds)}, value: number}}, got {shown(value)}"
    )


def _mapping(value: object) -> dict[Any, Any]:
    """The value where it is a mapping, else an empty one."""
    return cast(dict[Any, Any], value) if isinstance(value, dict) else {}


def _number(value: object) -> bool:
    """Whether a value is a number that a float can hold."""
    return type(value) in (int, float) and abs(cast(float, value)) <= sys.float_info.max


def _described(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return f"one of {', '.join(map(repr, typing.get_args(hint)))}"
    if typing.get_origin(hint) in (tuple, Sequence):
        return "a list"
    names: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
    return names.get(hint, str(hint))


def parse_json(text: str, source: str) -> Any:
    """JSON without repeated keys, NaN or infinity, at most 1 MB. ``source`` names the text in errors."""
    check_length(text, source)

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        table: dict[str, Any] = {}
        for key, value in items:
            if key in table:
                raise UsageError(f"{source}: the key {shown(key)} stands twice")
            table[key] = value
        return table

    def constant(name: str) -> Any:
        raise UsageError(f"{source}: {name} is not allowed")

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise UsageError(f"{source}: not JSON ({error.msg} at line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise UsageError(f"{source}: a spec may be at most {MAX_DEPTH} levels deep") from None
    except UsageError:
        raise
    except ValueError as error:  # a whole number of more digits than Python reads
        raise UsageError(f"{source}: not JSON that can be read ({error})") from None


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, without repeated keys, without tags, and without aliases, which could multiply a small file."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = cast(yaml.Event, self.peek_event())  # pyright: ignore[reportUnknownMemberType] - open in yaml's stubs
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        if getattr(event, "tag", None) is not None:
            raise yaml.YAMLError("tags are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        pairs: list[tuple[yaml.Node, yaml.Node]] = node.value
        keys = [key.value for key, _ in pairs if isinstance(key, yaml.ScalarNode)]
        if len(set(keys)) < len(pairs):
            raise yaml.YAMLError("a key stands twice, or is no plain word")
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, source: str) -> Any:
    """YAML of plain values only, at most 1 MB. ``source`` names the text in errors."""
    check_length(text, source)
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a subclass of the safe loader
    except RecursionError:
        raise UsageError(f"{source}: a spec may be at most {MAX_DEPTH} levels deep") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no such date, or more digits than Python reads
        raise UsageError(f"{source}: not YAML of plain values ({' '.join(str(error).split())})") from None


def check_length(text: str, source: str) -> None:
    """Raises UsageError for a text of more than ``MAX_BYTES`` characters."""
    if len(text) > MAX_BYTES:
        raise UsageError(f"{source} may be at most {MAX_BYTES} bytes long, this one has {len(text)}")


def dumps(config: Config) -> str:
    """A configuration as JSON text."""
    return json.dumps(to_data(config), indent=1)


def loads(text: str, source: str = "the spec") -> Config:
    """The resolved spec that JSON text describes. Raises UsageError as :func:`from_data` does."""
    return configs.resolve(from_data(parse_json(text, source)))
