"""What must hold of every model, whatever its size: it is looked at on the meta device, where nothing is computed."""

from collections.abc import Callable
from functools import cache
from typing import Any, cast

import torch
from torch import nn

from anyformer.core import registry, serial
from anyformer.core.binding import axis_table
from anyformer.core.config import walk
from anyformer.core.errors import UsageError
from anyformer.core.model import Model
from anyformer.core.store import create_model, dump_weights, key_map
from anyformer.measure.cost import Cost, cost
from anyformer.verify.subjects import absent, meta_raw, subject_of

TOLERANCE = 0.03  # between our count and a printed figure, before it has to be explained


def on_meta(name: str) -> Model:
    """A model without memory, as the registry makes it by default."""
    with torch.device("meta"):
        return cast(Model, create_model(name))


@cache
def native_size(name: str) -> tuple[int, ...]:
    """Height and width of the images that a model is made for, or the tokens on which a model of text is looked at."""
    return subject_of(name).native(name)


@cache
def counted(name: str, size: tuple[int, ...]) -> Cost:
    """Parameters and multiply-adds of a model for one input of this size."""
    return cost(on_meta(name), meta_raw(name, size))


def paths(model: Model) -> list[str]:
    """The path of a node in the spec is the path of its module, and every module of ours has a node."""
    nodes = dict(walk(model.spec))
    modules = {path: module.config for path, module in model.named_modules() if hasattr(module, "config")}
    return [
        f"{path or 'the root'} is {_kind(nodes.get(path))} in the spec and {_kind(modules.get(path))} in the model"
        for path in {**nodes, **modules}
        if path not in nodes or path not in modules or nodes[path] != modules[path]
    ]


def _kind(config: Any) -> str:
    return "nothing" if config is None else repr(config.part.name)


def axes(model: Model) -> list[str]:
    """Every parameter and buffer has an axis string, which gives its shape."""
    table = axis_table(model.spec)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    undeclared = [f"{name} has no axes" for name in shapes if name not in table.tensors]
    return undeclared + [
        f"{name} is {shape}, its axes say {table.shape(name)}"
        for name, shape in shapes.items()
        if name in table.tensors and table.shape(name) != shape
    ]


def round_trip(model: Model) -> list[str]:
    """The spec as JSON and back is the same spec."""
    again = serial.loads(serial.dumps(model.spec))
    return [] if again == model.spec else ["the spec changes on the way through JSON"]


def keys(model: Model) -> list[str]:
    """Weights in every known format's names and back keep their names and shapes."""
    failures: list[str] = []
    shapes = _shapes(model)
    for format in registry.system_of(model.model_name).keys:
        try:
            weights = dump_weights(model, format=format)
            back = key_map(model, format).load(weights, model.state_dict(), dict(model.named_buffers()))
        except UsageError as error:
            failures.append(f"{format}: {error}")
            continue
        kept = {name: tuple(tensor.shape) for name, tensor in back.items() if name in shapes}
        failures += [] if kept == shapes else [f"the {format} format changes names or shapes on the way and back"]
    return failures


def official_parameters(model: Model) -> list[str]:
    """The parameters are exactly those of the official code, if there is one: names, through the key map, and shapes."""
    subject = subject_of(model.model_name)
    if absent(model.model_name):
        return []
    with torch.device("meta"):
        theirs = _shapes(subject.oracle(model.model_name, subject.native(model.model_name)))
    ours = {name: tuple(t.shape) for name, t in dump_weights(model, format=subject.format).items()}
    return [
        f"{name} is {ours.get(name, 'absent')}, in the official code {theirs.get(name, 'absent')}"
        for name in {**theirs, **ours}
        if ours.get(name) != theirs.get(name)
    ]


def printed_figures(model: Model) -> list[str]:
    """Parameters and multiply-adds are within 3 % of what the source prints, or the difference is explained."""
    published = registry.system_of(model.model_name).published.get(model.model_name)
    if published is None or published.explained:
        return []
    count = counted(model.model_name, published.at)
    pairs = {"parameters": (count.params, published.params), "multiply-adds": (count.macs, published.macs)}
    return [
        f"{ours} {what} are counted where {published.source} prints {printed:.3g}; explain it in the system's file"
        for what, (ours, printed) in pairs.items()
        if printed is not None and abs(ours / printed - 1) > TOLERANCE
    ]


def fully_counted(model: Model) -> list[str]:
    """No operation of the model does arithmetic that the counter leaves out."""
    count = counted(model.model_name, native_size(model.model_name))
    return [f"{operation} is not counted" for operation in count.uncounted]


def refusals(model: Model) -> list[str]:
    """What a part refuses it refuses for a reason; a token mixer can stream, or says why not."""
    failures: list[str] = []
    for part in {type(module) for module in model.modules() if hasattr(module, "config")}:
        declared: dict[str, str] = cast(Any, part).refuses
        failures += [f"{part.__name__} refuses {what} without a reason" for what, why in declared.items() if not why]
        if cast(Any, part).slot == "token_mixer" and hasattr(part, "stream") == ("stream" in declared):
            failures.append(f"{part.__name__} must either have `stream` or say in `refuses` why it has not")
    return failures


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


CHECKS: dict[str, Callable[[Model], list[str]]] = {
    check.__name__: check
    for check in (paths, axes, round_trip, keys, official_parameters, printed_figures, fully_counted, refusals)
}
"""By name; each takes a model on the meta device and gives what does not hold, in words."""
