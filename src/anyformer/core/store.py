"""Models in folders, and weights in foreign names."""

import json
import os
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase as fnmatch
from importlib.metadata import version
from math import prod
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor, nn

from anyformer.core import axes, folders, registry, serial
from anyformer.core.config import Config, resolve, walk
from anyformer.core.errors import AnyformerError, UsageError, nearest
from anyformer.core.files import read_manifest, write_manifest
from anyformer.core.foreign import read_tensors, tensors_in
from anyformer.core.initial import unfilled
from anyformer.core.keymap import KeyMap
from anyformer.core.model import FeatureExtractor, Model
from anyformer.core.numbers import pair
from anyformer.core.part import Part, build

FORMAT = 1
MEMORY_SHARE = 0.8
MAX_PARTS = 200_000  # a module takes some 4 kB beside its weights


def list_models(pattern: str = "*", *, field: str | None = None) -> list[str]:
    """The names of the models that match a shell pattern, in one field or in all."""
    return [
        name
        for name in registry.model_names()
        if fnmatch(name, pattern) and field in (None, registry.system_of(name).field)
    ]


def create_model(
    name: str,
    *,
    pretrained: bool | str | Path = False,
    features_only: bool = False,
    **options: Any,
) -> nn.Module:
    """Build a model of the catalogue by name.

    Args:
        name: one of :func:`list_models`.
        pretrained: a folder that ``save_pretrained`` wrote, to take weights from.
        features_only: give a :class:`FeatureExtractor`, whose output is the features of every stage.
        options: what the system's pattern takes: ``num_classes``, ``in_chans``, ``img_size``, ``drop_path_rate``, ...

    Raises:
        UsageError: for an unknown name (with the nearest) or option.
    """
    system = registry.system_of(name)
    if pretrained is True:
        raise UsageError(f"{name}: there is no hub copy of these weights; give a folder, or use load_weights on a file")
    given = serial.arguments(system.pattern, {"name": name, **options}, name)
    try:
        pattern = system.pattern(**given)
    except ArithmeticError as error:  # a patch of nothing
        raise UsageError(f"{name}: these sizes do not go together ({error}): {options}") from None
    model = _allocate(pattern)
    model.model_name, model.system = name, system.paper.slug
    model.options = {
        key: list(cast(tuple[Any, ...], value)) if isinstance(value, tuple) else value for key, value in given.items()
    }
    del model.options["name"]
    model.data_config = _data_config(system.data_config(name), options)
    if pretrained:
        restore(model, from_pretrained(pretrained))
    return FeatureExtractor(model) if features_only else model


def _data_config(base: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's input must look like, with the size, the channels or the vocabulary that it was made for."""
    config: dict[str, Any] = dict(base)
    if options.get("img_size") is not None:
        config["size"] = list(pair(options["img_size"]))
    if options.get("vocabulary") is not None:
        config["vocabulary"] = options["vocabulary"]
    channels = options.get("in_chans", config.get("channels"))
    if channels != config.get("channels"):
        levels = {key: [sum(config[key]) / len(config[key])] * channels for key in ("mean", "std")}
        config.update(levels, channels=channels)
    return config


def restore(model: Model, source: Model) -> None:
    """Copy the weights of another model of the same spec. Raises UsageError naming what differs."""
    ours, theirs = model.state_dict(), source.state_dict()
    differing = [k for k in {**ours, **theirs} if k not in ours or k not in theirs or ours[k].shape != theirs[k].shape]
    if differing:
        raise UsageError(f"the folder's model is another one; they differ in {', '.join(differing[:5])}")
    model.load_state_dict(theirs)


def _allocate(pattern: Config) -> Model:
    """Build, after an estimate from the axes alone that the weights fit into this machine's memory."""
    for _ in _parts(pattern):  # counted before anything is made of them
        pass
    spec = resolve(pattern)
    if not issubclass(spec.part, Model):
        raise UsageError(f"part {spec.part.name!r} is no skeleton, so it is no model by itself")
    needed, limit = 4 * sum(map(_elements, _parts(spec))), int(_memory() * MEMORY_SHARE)
    if torch.get_default_device().type != "meta" and needed > limit:
        raise UsageError(
            f"this model needs {needed / 2**30:.3g} GiB, more than the {limit / 2**30:.3g} GiB allowed here; make it smaller"
        )
    return cast(Model, build(spec))


def _parts(config: Config) -> Iterator[Config]:
    """Every node of a tree. Raises UsageError where there are too many to build."""
    for number, (_, node) in enumerate(walk(config)):
        if number == MAX_PARTS:
            raise UsageError(f"a model may have at most {MAX_PARTS} parts; give it fewer layers")
        yield node


def _elements(node: Config) -> int:
    """The number of elements of a part's own parameters and buffers, a bias that is left out included."""
    own = [text for tensor, text in node.part.axes.items() if "." not in tensor]  # linear slots are nodes of their own
    return sum(prod(axes.size(dimension, node.size) for dimension in axes.parse(text)) for text in own)


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def build_hybrid(source: str | Path | Mapping[str, Any]) -> Model:
    """Build a model from a pattern: a YAML or JSON file, or a mapping.

    A mapping with a key "part" is a whole spec. One with a key "skeleton" names a skeleton and the arguments of its
    ``pattern``: ``{"skeleton": "isotropic", "dim": 192, "embed": "patch_embed(patch=16)", "layers": "3 x ..., 1 x ...",
    "num_classes": 10}``.

    Raises:
        UsageError: where the pattern cannot be read or contradicts itself.
    """
    data, where = (source, "the pattern") if isinstance(source, Mapping) else (_read_text(Path(source)), str(source))
    if not isinstance(data, Mapping) or not {"part", "skeleton"} & data.keys():
        raise UsageError(f'{where}: expected a mapping with a key "skeleton" or "part"')
    table = dict(cast(Mapping[Any, Any], data))
    if "part" in table:
        return _allocate(serial.from_data(table))
    skeleton: Any = registry.part(str(table.pop("skeleton")))
    if not hasattr(skeleton, "pattern"):
        raise UsageError(f"{where}: {skeleton.name!r} is no skeleton")
    return _allocate(skeleton.pattern(**serial.arguments(skeleton.pattern, table, where)))


def _read_text(path: Path) -> object:
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            text = file.read(serial.MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"cannot read {path} ({error.strerror})") from error
    return serial.parse_json(text, str(path)) if path.suffix == ".json" else serial.parse_yaml(text, str(path))


def save_pretrained(
    model: Model, folder: str | Path, extra: Mapping[str, bytes] | None = None, *, format: str | None = None
) -> None:
    """Write ``config.json``, ``model.safetensors`` and the manifest of digests into a folder.

    The configuration also names the torch, the device and the number of threads of this process, on which the last bits of
    a training depend. Nothing reads them back.

    Args:
        model: any skeleton, of the catalogue or a hybrid.
        folder: made when missing; a model that lies there stays whole until the new one is on the disk.
        extra: other files for the folder and its manifest, by name.
        format: "transformers" for a folder that its classes load, of a model that is one of theirs, without ``extra``; our
            own form otherwise.

    Raises:
        UsageError: when the spec is too long to be read back, or the format is unknown or has no such model.
        AnyformerError: when the system refuses to write.
    """
    if format is not None:
        _known_folder(format)
        folders.save_folder(model, Path(folder))
        return
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    config = {
        "format": FORMAT,
        "anyformer": version("anyformer"),
        "saved_with": {
            "torch": str(torch.__version__),
            "threads": torch.get_num_threads(),
            "device": ", ".join(sorted({tensor.device.type for tensor in state.values()})),
        },
        "name": model.model_name,
        "system": model.system,
        "options": model.options,
        "data_config": model.data_config,
        "spec": serial.to_data(model.spec),
    }
    text = json.dumps(config, indent=1, allow_nan=False)
    serial.check_length(text, "the configuration of a model")
    contents = {"config.json": text.encode(), "model.safetensors": safetensors.save(state)}
    write_manifest(Path(folder), {**contents, **(extra or {})})


def from_pretrained(folder: str | Path, *, format: str | None = None) -> Model:
    """The model that :meth:`save_pretrained` or ``anyformer fit`` wrote, in eval mode.

    Args:
        folder: where it lies.
        format: "transformers" for a folder in the form of Hugging Face's transformers; our own form otherwise.

    Raises:
        AnyformerError: where a file is missing or damaged, or was written by a newer format.
        UsageError: where the spec names what this version does not know, or the format is unknown.
    """
    path = Path(folder)
    if format is not None:
        _known_folder(format)
        return _from_transformers(path)
    contents = read_manifest(path, ("config.json", "model.safetensors"))
    where = str(path / "config.json")
    config = serial.parse_json(contents["config.json"].decode(errors="replace"), where)
    match config:
        case {"format": int(number)} if number > FORMAT:
            raise AnyformerError(f"{path} has format {number}; this version reads up to {FORMAT}: update anyformer")
        case {"spec": spec, "name": str(), "options": dict(), "data_config": dict()}:
            pass
        case _:
            raise AnyformerError(f"{where} is no configuration of a model; copy the whole folder again")
    try:
        tensors = safetensors.load(contents.pop("model.safetensors"))
    except SafetensorError as error:
        raise AnyformerError(f"cannot read {path / 'model.safetensors'} ({error})") from error
    with unfilled():
        model = _allocate(serial.from_data(spec))
    _fill(model, tensors, path)
    model.model_name, model.options, model.data_config = config["name"], config["options"], config["data_config"]
    known = model.model_name in registry.model_names()
    model.system = config.get("system", registry.system_of(model.model_name).paper.slug if known else "")
    return model.eval()


def _known_folder(format: str) -> None:
    if format != "transformers":
        raise UsageError(f"no folder has the format {format!r}; known: transformers, or none for our own")


def _from_transformers(path: Path) -> Model:
    found = folders.read_folder(path)
    system = registry.system(found.system)
    with unfilled():
        model = _allocate(found.pattern)
    model.system, model.data_config = found.system, found.data_config
    model.to(dtype=next((t.dtype for t in found.tensors.values() if t.is_floating_point()), None))
    model.model_name = next((name for name in system.names if folders.same(system.pattern(name), model.spec)), "")
    return load_weights(model, found.tensors, format="transformers").eval()


def _fill(model: Model, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Give a model stored weights, each in the type that it was stored in."""
    ours = model.state_dict()
    differing = [
        k for k in {**ours, **tensors} if k not in ours or k not in tensors or ours[k].shape != tensors[k].shape
    ]
    if differing:
        raise AnyformerError(f"{path}: the weights are not those of the spec beside them: {', '.join(differing[:5])}")
    floating = next((tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), None)
    model.to(dtype=floating)  # what is computed and not stored follows the first of them
    for name, tensor in model.state_dict(keep_vars=True).items():
        tensor.data = tensor.data.to(tensors[name].dtype)
    model.load_state_dict(tensors)


def key_map(model: Model, format: str) -> KeyMap:
    """The key map between a named format and a model. Raises UsageError naming the formats there are."""
    if not model.system:
        raise UsageError("a hybrid has no published names; use save_pretrained and from_pretrained")
    keys = registry.system(model.system).keys
    if format not in keys:
        raise UsageError(
            f"{model.model_name or model.system} has no format {format!r}; "
            f"known: {', '.join(keys)}{nearest(format, keys)}"
        )
    return keys[format](model.spec)


def load_weights(model: Model, source: str | Path | Mapping[str, Tensor], *, format: str) -> Model:
    """Load a checkpoint in somebody's names, strictly.

    Args:
        model: one that :func:`create_model` made.
        source: a file (.safetensors, .npz, .pth read without executing anything) or a mapping of tensors.
        format: whose names they are: "timm", "official".

    Raises:
        UsageError: naming the first five keys that are too many, missing, or of another shape.
    """
    theirs = tensors_in(source, "the mapping") if isinstance(source, Mapping) else read_tensors(Path(source))
    targets, computed = model.state_dict(), _computed(model)
    made = key_map(model, format).load(theirs, targets, computed)
    for name, tensor in computed.items():
        if name in made and not torch.equal(made.pop(name).to(tensor), tensor):
            raise UsageError(f"the weights hold another {name} than this model computes; its size or window differs")
    model.load_state_dict(made)
    return model


def dump_weights(model: Model, *, format: str) -> dict[str, Tensor]:
    """The weights in somebody's names: the exact inverse of :func:`load_weights`.

    What needs no rearranging shares memory with the model.

    Raises:
        UsageError: for a hybrid, an unknown format, or a model that was changed beyond what the format can name.
    """
    return key_map(model, format).dump(model.state_dict(), _computed(model))


def _computed(model: nn.Module) -> dict[str, Tensor]:
    stored = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name not in stored}


def adapt(model: Model, **changes: Any) -> Model:
    """A copy of a catalogue model for other inputs or outputs: ``img_size``, ``in_chans``, ``num_classes``, ``patch_size``.

    Tensors whose axes keep their sizes are copied; each part whose own tensors change says how (``adapted``): position
    tables are resampled, input filters summed or spread over the channels; a head for other classes starts fresh.

    Raises:
        UsageError: for a hybrid or an unknown change, or where a tensor changes and its part knows no way.
    """
    if not model.model_name:
        raise UsageError("a hybrid is not adapted: edit its pattern and build it again")
    options = {**model.options, **changes}
    adapted = cast(Model, create_model(model.model_name, **options))
    like = next(model.parameters())
    adapted.to(device=like.device, dtype=like.dtype)
    adapted.data_config = _data_config(model.data_config, changes)
    theirs, ours = model.state_dict(), adapted.state_dict()
    for name in sorted(theirs.keys() ^ ours.keys()):
        if not name.startswith("head."):
            raise UsageError(f"adapting changes the structure: {name} has no counterpart")
    with torch.no_grad():
        for name, tensor in ours.items():
            source = theirs.get(name)
            if source is None or (name.startswith("head.") and source.shape != tensor.shape):
                continue
            path, _, own = name.rpartition(".")
            part, old = cast(Part, adapted.get_submodule(path)), cast(Part, model.get_submodule(path))
            if _sizes(part, own) != _sizes(old, own):
                source = part.adapted(own, source, old.config)
            tensor.copy_(source)
    return adapted.train(model.training)


def _sizes(part: Part, tensor: str) -> dict[str, int]:
    """The sizes of all axes of a part's own tensor: 2 x 8 positions are others than 4 x 4 of the same shape."""
    names = [name for dimension in axes.parse(part.axes[tensor]) for name in axes.names(dimension)]
    return {name: part.config.size(name) for name in names}
