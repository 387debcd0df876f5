"""Specs and patterns as JSON and YAML, read strictly against the closed registry: no dotted paths, nothing evaluated."""

import json
import math
import types
import typing
from collections.abc import Mapping
from functools import cache
from typing import Any, Literal, cast

import yaml

from anyformer.core import config as configs
from anyformer.core import registry
from anyformer.core.config import Config
from anyformer.core.errors import UsageError, nearest
from anyformer.core.initial import Init
from anyformer.core.part import Part

MAX_BYTES = 1_000_000
MAX_DEPTH = 32
MAX_NODES = 100_000


def to_data(config: Config) -> dict[str, Any]:
    """A configuration as plain data; linear nodes of default form are left out, every other number is written."""
    slots = {field.name: field.metadata["linear"] for field in configs.fields(config) if "linear" in field.metadata}
    data: dict[str, Any] = {"part": config.part.name}
    for field in configs.fields(config):
        value = getattr(config, field.name)
        if value is None or (field.name in slots and _is_default(value, slots[field.name])):
            continue
        data[field.name] = _plain(value)
    return data


def _is_default(node: Config, options: Mapping[str, Any]) -> bool:
    default = configs.default_linear(options)
    return type(node) is type(default) and node.replace(outputs=None, inputs=None) == default


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
    if not isinstance(data, dict) or not isinstance(data.get("part"), str):
        raise UsageError(f'{place}: expected a mapping with a key "part" that names the part, got {_short(data)}')
    table = cast(dict[str, Any], data)
    kind = registry.part(table["part"]).Config
    hints = _hints(kind)
    known = {field.name: field for field in configs.fields(kind)}
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key == "part":
            continue
        if key not in known:
            raise UsageError(f"{place}: part {table['part']!r} has no {key!r}{nearest(str(key), known)}")
        inner = f"{where}.{key}" if where else key
        values[key] = None if value is None else _read(value, hints[key], inner, depth)
    try:
        return kind(**values)
    except TypeError as error:
        raise UsageError(f"{place}: part {table['part']!r}: {str(error).split('() ')[-1]}") from None


@cache
def _hints(kind: type[Config]) -> dict[str, Any]:
    return typing.get_type_hints(kind, localns={"Part": Part})


def _read(value: object, hint: Any, where: str, depth: int) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        return _read(value, next(a for a in arguments if a is not type(None)), where, depth)
    if isinstance(hint, type) and issubclass(hint, Config):
        return from_data(value, where, depth + 1)
    if origin is tuple and isinstance(value, list | tuple):
        items = cast("list[object]", value)
        if len(items) > configs.MAX_LAYERS:
            raise UsageError(f"{where}: at most {configs.MAX_LAYERS} entries, got {len(items)}")
        if arguments[-1] is not Ellipsis and len(arguments) != len(items):
            raise UsageError(f"{where}: expected {len(arguments)} values, got {len(items)}")
        inner = [arguments[0]] * len(items) if arguments[-1] is Ellipsis else arguments
        return tuple(_read(v, h, f"{where}.{i}", depth) for i, (v, h) in enumerate(zip(items, inner, strict=True)))
    if hint is Init and isinstance(value, dict):
        table = cast(dict[str, Any], value)
        kinds = typing.get_args(typing.get_type_hints(Init)["kind"])
        number = table.get("value", 1.0)
        if set(table) <= {"init", "value"} and table.get("init") in kinds and _number(number):
            return Init(table["init"], float(number))
        raise UsageError(f"{where}: an initialiser is {{init: one of {', '.join(kinds)}, value: number}}")
    if origin is Literal and value in arguments:
        return value
    if hint is float and _number(value):
        return float(cast(float, value))
    if hint in (int, bool, str) and type(value) is hint:
        return value
    wanted = f"one of {', '.join(map(repr, arguments))}" if origin is Literal else getattr(hint, "__name__", str(hint))
    raise UsageError(f"{where}: expected {wanted}, got {_short(value)}")


def _number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(cast(float, value))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def parse_json(text: str, source: str) -> Any:
    """JSON without repeated keys, NaN or infinity, at most 1 MB. ``source`` names the text in errors."""
    _check_length(text, source)

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        keys = [key for key, _ in items]
        if len(set(keys)) < len(keys):
            raise UsageError(f"{source}: the key {next(k for k in keys if keys.count(k) > 1)!r} stands twice")
        return dict(items)

    def constant(name: str) -> Any:
        raise UsageError(f"{source}: {name} is not allowed")

    try:
        return json.loads(text, object_pairs_hook=pairs, parse_constant=constant)
    except json.JSONDecodeError as error:
        raise UsageError(f"{source}: not JSON ({error.msg} at line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise UsageError(f"{source}: a spec may be at most {MAX_DEPTH} levels deep") from None


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, without repeated keys, and without aliases, which could multiply a small file."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]  # pyright: ignore[reportUnknownMemberType]
        if len({str(key) for key in keys}) < len(keys):
            raise yaml.YAMLError("a key stands twice")
        return super().construct_mapping(node, deep)


def parse_yaml(text: str, source: str) -> Any:
    """YAML of plain values only, at most 1 MB. ``source`` names the text in errors."""
    _check_length(text, source)
    try:
        return yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a subclass of the safe loader
    except RecursionError:
        raise UsageError(f"{source}: a spec may be at most {MAX_DEPTH} levels deep") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{source}: not YAML of plain values ({' '.join(str(error).split())})") from None


def _check_length(text: str, source: str) -> None:
    if len(text) > MAX_BYTES:
        raise UsageError(f"{source}: a spec may be at most {MAX_BYTES} bytes long, this one has {len(text)}")


def dumps(config: Config) -> str:
    """A configuration as JSON text."""
    return json.dumps(to_data(config), indent=1)


def loads(text: str, source: str = "the spec") -> Config:
    """The resolved spec that JSON text describes. Raises UsageError as :func:`from_data` does."""
    return configs.resolve(from_data(parse_json(text, source)))
