"""Models in the folders of Hugging Face's transformers: ``config.json`` in its words, weights in its names."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

from safetensors import torch as safetensors
from torch import Tensor

from anyformer.core import registry, serial
from anyformer.core.config import Config, fields, resolve
from anyformer.core.errors import AnyformerError, UsageError, nearest
from anyformer.core.files import write_manifest
from anyformer.core.foreign import read_tensors
from anyformer.core.initial import Init

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
MISSING = object()


class Settings:
    """What a ``config.json`` says; every question that it cannot answer is one sentence.

    Attributes:
        values: the file's own keys.
        where: the file's name, for the sentences.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values, self.where = values, where

    def number(self, key: str, default: Any = MISSING) -> Any:
        """A positive number. Raises UsageError where there is neither it nor a default."""
        value = self.values.get(key)
        if value is None and default is not MISSING:
            return default
        if value is None:
            raise UsageError(f"{self.where} does not say {key}, which its model_type needs")
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            raise UsageError(f"{self.where}: {key} is {value!r}; it must be a number above 0")
        return value

    def within(self, key: str) -> "Settings":
        """The settings of a mapping inside; empty where it is absent."""
        value = self.values.get(key)
        if not isinstance(value, Mapping | None):
            raise UsageError(f"{self.where}: {key} is {value!r}; it must be a mapping")
        return Settings(cast(Mapping[str, Any], value or {}), f"{self.where}, {key}")

    def flag(self, key: str, default: bool) -> bool:
        """True or false. Raises UsageError where it is anything else."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise UsageError(f"{self.where}: {key} is {value!r}; it must be true or false")
        return value

    def expect(self, **values: Any) -> None:
        """Raises UsageError where a key is there and has another value than the one that is built here."""
        for key, value in values.items():
            found = self.values.get(key)
            if found is not None and found != value:
                raise UsageError(f"{self.where}: {key} is {found!r}; only {value!r} is built here")


@dataclass(frozen=True)
class Folder:
    """How a system's models stand in the folders of transformers.

    Attributes:
        model_type: the key of ``config.json`` that names the architecture.
        architecture: the class that is to load it.
        read: the pattern of a ``config.json``.
        write: the keys of ``config.json`` for a spec; None for one of another kind.
        tied: names that files leave out -> the name under which their tensor is there.
    """

    model_type: str
    architecture: str
    read: Callable[[Settings], Config]
    write: Callable[[Any], dict[str, Any] | None]
    tied: Mapping[str, str] = field(default_factory=dict[str, str])


class Found(NamedTuple):
    """What lies in a folder of transformers.

    Attributes:
        pattern: of the model.
        system: the slug.
        data_config: of the model.
        tensors: by their names.
    """

    pattern: Config
    system: str
    data_config: dict[str, Any]
    tensors: dict[str, Tensor]


def read_folder(path: Path) -> Found:
    """Everything that a folder of transformers says of a model.

    Raises:
        UsageError: for an architecture, or a setting of one, that is not built here.
        AnyformerError: where a file is missing or damaged.
    """
    where = path / "config.json"
    try:
        text = where.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise AnyformerError(f"cannot read {where} ({error.strerror}); give a folder of transformers") from error
    values = serial.parse_json(text, str(where))
    if not isinstance(values, Mapping):
        raise AnyformerError(f"{where} is no mapping; copy the whole folder again")
    table = cast(Mapping[str, Any], values)
    known = {folder.model_type: (folder, slug) for slug, s in registry.systems().items() for folder in s.folders}
    kind = str(table.get("model_type"))
    if kind not in known:
        raise UsageError(
            f"{where}: no model here has model_type {kind!r}; known: {', '.join(sorted(known))}{nearest(kind, known)}"
        )
    folder, slug = known[kind]
    pattern = folder.read(Settings(table, str(where)))
    tokenizer = path / "tokenizer.json"
    context = table.get("max_position_embeddings")
    data = {
        "vocabulary": cast(Any, resolve(pattern)).vocabulary,
        "tokenizer": str(tokenizer) if tokenizer.is_file() else "bytes",
        "context": context if isinstance(context, int) else None,
    }
    if "decoder_start_token_id" in table:
        data["start"] = table["decoder_start_token_id"]
    tensors = read_weights(path)
    there = {name: tensors[source] for name, source in folder.tied.items() if source in tensors}
    return Found(pattern, slug, data, {**there, **tensors})


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of a folder, from one file or from those that its index names. Raises AnyformerError without any."""
    for name in WEIGHTS:
        if (path / name).is_file():
            return read_tensors(path / name)
        index = path / f"{name}.index.json"
        if not index.is_file():
            continue
        match serial.parse_json(index.read_text(encoding="utf-8", errors="replace"), str(index)):
            case {"weight_map": dict(found)}:  # pyright: ignore[reportUnknownVariableType] - of anything
                places = {str(place) for place in cast(dict[str, Any], found).values()}
            case _:
                places = set[str]()
        if not places or any(Path(place).name != place for place in places):
            raise AnyformerError(f"{index} names no files beside it; copy the whole folder again")
        return {key: tensor for shard in sorted(places) for key, tensor in read_tensors(path / shard).items()}
    raise AnyformerError(f"{path} has no {' and no '.join(WEIGHTS)}; copy the whole folder again")


def save_folder(model: Any, folder: Path) -> None:
    """Write a model as transformers would. Raises UsageError for one that transformers has no words for."""
    for form in registry.system(model.system).folders if model.system else ():
        values = form.write(model.spec)
        if values is not None and same(form.read(Settings(values, "config.json")), model.spec):
            break
    else:
        what = model.model_name or "a hybrid"
        raise UsageError(
            f"{what} cannot be written for transformers, which has no such model; save it in our own format"
        )
    from anyformer.core.store import dump_weights

    theirs = dump_weights(model, format="transformers")
    tensors = {name: tensor.detach().contiguous() for name, tensor in theirs.items() if name not in form.tied}
    dtype = next((str(t.dtype).removeprefix("torch.") for t in tensors.values() if t.is_floating_point()), "float32")
    config = {"architectures": [form.architecture], "model_type": form.model_type, "dtype": dtype, **values}
    context = model.data_config.get("context")
    if context is not None:
        config["max_position_embeddings"] = context
    contents = {
        "config.json": json.dumps(config, indent=1, allow_nan=False).encode(),
        "model.safetensors": safetensors.save(tensors, {"format": "pt"}),
    }
    write_manifest(folder, contents)


def same(pattern: Config, spec: Config) -> bool:
    """Whether two trees are one architecture; how weights would start does not count."""
    return _without_starts(resolve(pattern)) == _without_starts(spec)


def _without_starts(value: Any) -> Any:
    match value:
        case Config():
            return value.replace(**{f.name: _without_starts(getattr(value, f.name)) for f in fields(value)})
        case tuple():
            items = cast(tuple[Any, ...], value)
            once = {id(item): _without_starts(item) for item in items}  # equal layers are one object
            return tuple(once[id(item)] for item in items)
        case _:
            return None if isinstance(value, Init) else value
