"""The axes of a whole model: every tensor's dimensions over axes that are named once for the model, and slicing by them.

A part's axis names are its own; what holds it binds some of them (equal names, ``binds``, linear slots). What is left
unbound is an axis of the model, named by the path of its owner (``stages.2.dim``, ``blocks.0.mixer.heads``). A
definition (``head_dim = 2 half``) refines an axis for everybody who shares it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from anyformer.core import axes
from anyformer.core.axes import Axis, Expression, Product, Sum
from anyformer.core.config import Config, bindings, children, edit, fields, walk
from anyformer.core.errors import UsageError, nearest
from anyformer.core.vocabulary import Shared


@dataclass
class AxisTable:
    """All axes of a spec.

    Attributes:
        sizes: model axis -> number of indices.
        tensors: tensor name -> one expression a dimension, over model axes, definitions not yet put in.
        local: node path -> the part's own axis name -> expression over model axes.
        given: node path -> the axis names that what holds the node binds.
        reduces: the model axes over which some part reduces non-linearly.
        refined: model axis -> what it consists of.
        frozen: model axis -> why nothing can be cut from it.
    """

    sizes: dict[str, int] = field(default_factory=dict[str, int])
    tensors: dict[str, tuple[Expression, ...]] = field(default_factory=dict[str, tuple[Expression, ...]])
    local: dict[str, dict[str, Expression]] = field(default_factory=dict[str, dict[str, Expression]])
    given: dict[str, set[str]] = field(default_factory=dict[str, set[str]])
    reduces: set[str] = field(default_factory=set[str])
    refined: dict[str, Expression] = field(default_factory=dict[str, Expression])
    frozen: dict[str, str] = field(default_factory=dict[str, str])

    def expand(self, expression: Expression) -> Expression:
        """The expression with every refined axis replaced by what it consists of."""
        expanded = axes.substitute(expression, self.refined)
        return expression if expanded == expression else self.expand(expanded)

    def shape(self, tensor: str) -> tuple[int, ...]:
        """The shape of a tensor as its axes say."""
        return tuple(axes.size(dimension, self.sizes.__getitem__) for dimension in self.tensors[tensor])

    def atoms(self) -> tuple[str, ...]:
        """The axes that can be cut: those that consist of nothing else and are not frozen."""
        used = {name for dims in self.tensors.values() for dim in dims for name in axes.names(self.expand(dim))}
        return tuple(name for name in self.sizes if name in used and name not in self.frozen)


def axis_table(spec: Config) -> AxisTable:
    """The axes of a resolved spec."""
    table = AxisTable()
    _visit(spec, "", {}, table)
    table.reduces |= {inner for name in table.reduces for inner in axes.names(table.expand(Axis(name)))}
    _freeze(spec, table)
    return table


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _visit(config: Config, path: str, given: Mapping[str, Expression], table: AxisTable) -> None:
    part = config.part
    local = dict(given)
    table.local[path] = local
    table.given[path] = set(given)

    def name_of(axis: str) -> Expression:
        if axis.isdigit():
            return Axis(axis)
        if axis not in local:
            node, _, last = axis.rpartition(".")
            if node:  # a descendant's axis: it stands under the descendant's own name
                table.sizes[_join(path, axis)] = config.size(axis)
                return Axis(_join(path, axis))
            local[axis] = Axis(_join(path, last))
            table.sizes[_join(path, last)] = config.size(axis)
        return local[axis]

    def globally(expression: Expression) -> Expression:
        return axes.substitute(expression, {axis: name_of(axis) for axis in axes.names(expression)})

    for axis, text in part.definitions.items():
        _refine(name_of(axis), axes.parse_expression(text), config, path, local, table)
    for tensor, text in part.axes.items():
        if "." not in tensor:
            table.tensors[_join(path, tensor)] = tuple(globally(dimension) for dimension in axes.parse(text))
    for axis in part.reduces:
        table.reduces.update(axes.names(globally(Axis(axis))))
    bound = bindings(config)
    for child_path, child in children(config):
        given_here = {axis: globally(expression) for axis, expression in bound[child_path].items()}
        _visit(child, _join(path, child_path), given_here, table)


def _refine(
    axis: Expression, definition: Expression, config: Config, path: str, local: dict[str, Expression], table: AxisTable
) -> None:
    """Make ``axis`` consist of ``definition``; an axis that already consists of something must consist of the same."""
    known = table.expand(axis)
    undivided = axis.name if isinstance(axis, Axis) and known == axis else ""
    matched: dict[str, Expression] = {}
    same = not undivided and _match(definition, known, config.size, table, matched)  # as a part before divided it
    if same and all(local.get(name, expression) == expression for name, expression in matched.items()):
        local.update(matched)
        return
    for name in axes.names(definition):
        if name not in local:
            local[name] = Axis(_join(path, name))
            table.sizes[_join(path, name)] = config.size(name)
    inner = axes.substitute(definition, local)
    if undivided:
        table.refined[undivided] = inner
    else:
        for name in {*axes.names(known), *axes.names(axis), *axes.names(inner)}:
            table.frozen[name] = f"{path} divides it in another way than a part before it"


def _match(
    definition: Expression, known: Expression, sizes: Callable[[str], int], table: AxisTable, out: dict[str, Expression]
) -> bool:
    match definition, known:
        case Axis(name), _ if name.isdigit():
            return known == definition
        case Axis(name), _:
            same = axes.size(known, table.sizes.__getitem__) == axes.size(definition, sizes)
            return same and out.setdefault(name, known) == known
        case (Product(ours), Product(theirs)) | (Sum(ours, _), Sum(theirs, _)):
            return len(ours) == len(theirs) and all(
                _match(a, b, sizes, table, out) for a, b in zip(ours, theirs, strict=True)
            )
        case _:
            return False


def _freeze(spec: Config, table: AxisTable) -> None:
    """Note the axes that cannot be cut: declared ``fixed``, of a size that no field holds, or tied to another axis."""
    inner = {name for expression in table.refined.values() for name in axes.names(expression)}
    for path, node in walk(spec):
        held = {field.name for field in fields(node)} | inner | table.refined.keys()
        for axis, expression in table.local[path].items():
            name = _join(path, axis)
            if axis in node.part.fixed:
                table.frozen.update(dict.fromkeys(axes.names(table.expand(expression)), node.part.fixed[axis]))
            elif expression == Axis(name) and not held & {axis, name}:
                table.frozen.setdefault(name, "its size follows from other numbers; what has it is made anew, not cut")
        if isinstance(node, Shared.Config):
            for axis, expression in table.local[path].items():
                theirs = table.local.get(node.path, {}).get(axis, expression)
                if theirs != expression:
                    reason = f"{path} ties it to another axis by sharing {node.path}"
                    table.frozen.update(dict.fromkeys((*axes.names(expression), *axes.names(theirs)), reason))
    for name, reason in tuple(table.frozen.items()):
        for part in axes.names(table.expand(Axis(name))):
            table.frozen.setdefault(part, reason)


def slice_spec(spec: Config, keep: Mapping[str, Tensor]) -> Config:
    """The spec in which each axis of ``keep`` has only the kept indices; every other number stays as it is.

    Raises:
        UsageError: for an axis that does not exist, is frozen, or is cut only through what it consists of.
    """
    table = axis_table(spec)
    _check(table, keep)

    def size(name: str) -> int:
        return len(keep[name]) if name in keep else table.sizes[name]

    changes: dict[str, int] = {}
    for path, node in walk(spec):
        own = {field.name for field in fields(node)} - table.given[path]
        for axis in own & table.local[path].keys():
            changes[_join(path, axis)] = axes.size(table.expand(table.local[path][axis]), size)
    sliced = edit(spec, changes)
    for name, found in axis_table(sliced).sizes.items():
        wanted = axes.size(table.expand(Axis(name)), size)
        if found != wanted:
            raise UsageError(
                f"cutting {', '.join(keep)} would make axis {name!r} {found} long and its tensors {wanted}; "
                "its size follows from other numbers"
            )
    return sliced


def slice_state(spec: Config, state: Mapping[str, Tensor], keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state dict of ``spec``, copied, with only the kept indices of each axis, in the order of ``keep``.

    Raises:
        UsageError: as :func:`slice_spec` does, and for a tensor that is not of this spec.
    """
    table = axis_table(spec)
    _check(table, keep)
    sliced: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name not in table.tensors or table.shape(name) != tuple(tensor.shape):
            raise UsageError(f"{name} of shape {tuple(tensor.shape)} is not of this spec{nearest(name, table.tensors)}")
        for dimension, expression in enumerate(map(table.expand, table.tensors[name])):
            if keep.keys() & set(axes.names(expression)):
                index = axes.indices(expression, table.sizes.__getitem__, keep)
                tensor = tensor.index_select(dimension, index.to(tensor.device))
        sliced[name] = tensor.clone()
    return sliced


def _check(table: AxisTable, keep: Mapping[str, Tensor]) -> None:
    for name, index in keep.items():
        if name not in table.sizes:
            raise UsageError(f"there is no axis {name!r}{nearest(name, table.sizes)}")
        if name in table.frozen:
            raise UsageError(f"axis {name!r} cannot be cut: {table.frozen[name]}")
        if name in table.refined:
            parts = ", ".join(axes.names(table.expand(Axis(name))))
            raise UsageError(f"axis {name!r} is cut through what it consists of: {parts}")
        size = table.sizes[name]
        if index.dtype != torch.int64 or index.dim() != 1 or not len(index):
            raise UsageError(f"axis {name!r} must keep some of its {size} indices, given as a row of int64")
        first, last = int(index.min()), int(index.max())
        if first < 0 or last >= size:
            raise UsageError(f"axis {name!r} has the indices 0 to {size - 1}, asked to keep {first} to {last}")
        if int(torch.bincount(index).max()) > 1:
            raise UsageError(f"axis {name!r} is asked to keep an index twice")
