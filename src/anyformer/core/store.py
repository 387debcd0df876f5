"""Models in folders, and weights in foreign names."""

import json
import os
from collections.abc import Mapping
from fnmatch import fnmatchcase as fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from anyformer.core import registry, serial
from anyformer.core.binding import axis_table
from anyformer.core.config import Config, resolve
from anyformer.core.errors import AnyformerError, UsageError, nearest
from anyformer.core.files import read_manifest, write_manifest
from anyformer.core.foreign import read_tensors
from anyformer.core.keymap import KeyMap
from anyformer.core.model import FeatureExtractor, Model
from anyformer.core.part import Part, build

FORMAT = 1
MEMORY_SHARE = 0.8


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
    try:
        pattern = system.pattern(name, **options)
    except TypeError as error:
        raise UsageError(f"{name}: {str(error).split('() ')[-1]}") from None
    model = _allocate(pattern)
    model.model_name, model.options = name, options
    model.data_config = system.data_config(name)
    if pretrained is True:
        raise UsageError(f"{name}: there is no hub copy of these weights; give a folder, or use load_weights on a file")
    if pretrained:
        restore(model, from_pretrained(pretrained))
    return FeatureExtractor(model) if features_only else model


def restore(model: Model, source: Model) -> None:
    """Copy the weights of another model of the same spec. Raises UsageError naming what differs."""
    ours, theirs = model.state_dict(), source.state_dict()
    differing = [k for k in {**ours, **theirs} if k not in ours or k not in theirs or ours[k].shape != theirs[k].shape]
    if differing:
        raise UsageError(f"the folder's model is another one; they differ in {', '.join(differing[:5])}")
    model.load_state_dict(theirs)


def _allocate(pattern: Config) -> Model:
    """Build, after an estimate from the axes alone that the weights fit into this machine's memory."""
    spec = resolve(pattern)
    table = axis_table(spec)
    elements = sum(torch.Size(table.shape(name)).numel() for name in table.tensors)
    limit = int(_memory() * MEMORY_SHARE)
    if torch.get_default_device().type != "meta" and elements * 4 > limit:
        raise UsageError(
            f"this model needs {elements * 4 / 2**30:.1f} GiB, more than the {limit / 2**30:.1f} allowed here"
        )
    model = build(spec)
    if not isinstance(model, Model):
        raise UsageError(f"part {spec.part.name!r} is no skeleton, so it is no model by itself")
    return model


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
    if isinstance(source, Mapping):
        data: Any = dict(source)
        where = "the pattern"
    else:
        path = Path(source)
        where = str(path)
        if not path.is_file():
            raise UsageError(f"there is no file {path}")
        text = path.read_text(encoding="utf-8", errors="replace")
        data = serial.parse_json(text, where) if path.suffix == ".json" else serial.parse_yaml(text, where)
    if not isinstance(data, dict) or not {"part", "skeleton"} & data.keys():
        raise UsageError(f'{where}: expected a mapping with a key "skeleton" or "part"')
    table = cast(dict[str, Any], data)
    if "part" in table:
        return _allocate(serial.from_data(table))
    skeleton: Any = registry.part(str(table.pop("skeleton")))
    if not hasattr(skeleton, "pattern"):
        raise UsageError(f"{where}: {skeleton.name!r} is no skeleton")
    try:
        return _allocate(skeleton.pattern(**table))
    except TypeError as error:
        raise UsageError(f"{where}: {str(error).split('() ')[-1]}") from None


def save_pretrained(model: Model, folder: str | Path, extra: Mapping[str, bytes] | None = None) -> None:
    """Write ``config.json``, ``model.safetensors`` and the manifest of digests into a folder.

    Raises:
        AnyformerError: when the system refuses to write.
    """
    config = {
        "format": FORMAT,
        "anyformer": version("anyformer"),
        "name": model.model_name,
        "options": model.options,
        "data_config": model.data_config,
        "spec": serial.to_data(model.spec),
    }
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    contents = {"config.json": json.dumps(config, indent=1).encode(), "model.safetensors": save_safetensors(state)}
    write_manifest(Path(folder), {**contents, **(extra or {})})


def from_pretrained(folder: str | Path) -> Model:
    """The model that :meth:`save_pretrained` or ``anyformer fit`` wrote, in eval mode.

    Raises:
        AnyformerError: where a file is missing or damaged, or was written by a newer format.
    """
    path = Path(folder)
    contents = read_manifest(path, ("config.json", "model.safetensors"))
    config = serial.parse_json(contents["config.json"].decode(), str(path / "config.json"))
    if config.get("format", 0) > FORMAT:
        raise AnyformerError(
            f"{path} has format {config['format']}; this version reads up to {FORMAT}: update anyformer"
        )
    try:
        tensors = load_safetensors(contents["model.safetensors"])
    except SafetensorError as error:
        raise AnyformerError(f"cannot read {path / 'model.safetensors'} ({error})") from error
    model = _allocate(serial.from_data(config["spec"]))
    if {k: v.shape for k, v in tensors.items()} != {k: v.shape for k, v in model.state_dict().items()}:
        raise AnyformerError(f"{path}: the weights are not those of the spec beside them")
    model = model.to(dtype=next(iter(tensors.values())).dtype)
    model.load_state_dict(tensors)
    model.model_name, model.options, model.data_config = config["name"], config["options"], config["data_config"]
    return model.eval()


def key_map(model: Model, format: str) -> KeyMap:
    """The key map between a named format and a model. Raises UsageError naming the formats there are."""
    if not model.model_name:
        raise UsageError("a hybrid has no published names; use save_pretrained and from_pretrained")
    keys = registry.system_of(model.model_name).keys
    if format not in keys:
        raise UsageError(
            f"{model.model_name} has no format {format!r}; known: {', '.join(keys)}{nearest(format, keys)}"
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
    theirs = source if isinstance(source, Mapping) else read_tensors(Path(source))
    targets, computed = model.state_dict(), _computed(model)
    made = key_map(model, format).load(theirs, targets, computed)
    for name, tensor in computed.items():
        if name in made and not torch.equal(made.pop(name).to(tensor.dtype), tensor):
            raise UsageError(f"the weights hold another {name} than this model computes; its size or window differs")
    model.load_state_dict(made)
    return model


def dump_weights(model: Model, *, format: str) -> dict[str, Tensor]:
    """The weights in somebody's names: the exact inverse of :func:`load_weights`."""
    return key_map(model, format).dump(model.state_dict(), _computed(model))


def _computed(model: nn.Module) -> dict[str, Tensor]:
    stored = model.state_dict().keys()
    return {name: buffer for name, buffer in model.named_buffers() if name not in stored}


def adapt(model: Model, **changes: Any) -> Model:
    """A copy of a catalogue model for other inputs or outputs: ``img_size``, ``in_chans``, ``num_classes``, ``patch_size``.

    Tensors whose shapes stay are copied; each part whose own tensors change says how (``adapt_tensor``): position tables
    are resampled, input filters summed or spread over the channels; a head for other classes starts fresh.

    Raises:
        UsageError: where a tensor changes its shape and its part knows no way.
    """
    options = {**model.options, **changes}
    adapted = cast(Model, create_model(model.model_name, **options))
    theirs = model.state_dict()
    with torch.no_grad():
        for name, tensor in adapted.state_dict().items():
            if name not in theirs:
                raise UsageError(f"adapting changes the structure: {name} has no counterpart")
            source = theirs[name]
            if source.shape != tensor.shape:
                if name.startswith("head."):
                    continue
                path, _, own = name.rpartition(".")
                part, old = cast(Part, adapted.get_submodule(path)), cast(Part, model.get_submodule(path))
                source = part.adapted(own, source, old.config)
            tensor.copy_(source)
    return adapted.train(model.training)
