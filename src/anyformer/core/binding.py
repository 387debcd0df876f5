"""The axes of a whole model: every tensor's dimensions over axes that are named once for the model, and slicing by them.

A part's axis names are its own; what holds it binds some of them (equal names, ``binds``, linear slots). What is left
unbound is an axis of the model, named by the path of its owner (``stages.2.dim``, ``blocks.0.mixer.heads``). A
definition (``head_dim = 2 half``) refines an axis for everybody who shares it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from anyformer.core import axes
from anyformer.core.axes import Axis, Expression, Product, Sum
from anyformer.core.config import Config, bindings, children, edit, fields, walk
from anyformer.core.errors import UsageError, nearest


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
    """The axes of a resolved spec. Raises ValueError where a definition contradicts the sizes."""
    table = AxisTable()
    _visit(spec, "", {}, table)
    return table


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
                full = f"{path}.{axis}" if path else axis
                table.sizes[full] = config.size(axis)
                return Axis(full)
            name = f"{path}.{last}" if path else last
            local[axis] = Axis(name)
            table.sizes[name] = config.size(axis)
        return local[axis]

    def globally(expression: Expression) -> Expression:
        return axes.substitute(expression, {axis: name_of(axis) for axis in axes.names(expression)})

    for axis, text in part.definitions.items():
        _refine(name_of(axis), axes.parse_expression(text), config, path, local, table)
    for tensor, text in part.axes.items():
        if "." not in tensor:
            name = f"{path}.{tensor}" if path else tensor
            table.tensors[name] = tuple(globally(dimension) for dimension in axes.parse(text))
    for axis in part.reduces:
        table.reduces.update(axes.names(globally(Axis(axis))))
    bound = bindings(config)
    for child_path, child in children(config):
        where = f"{path}.{child_path}" if path else child_path
        _visit(child, where, {a: globally(e) for a, e in bound[child_path].items()}, table)


def _refine(
    axis: Expression, definition: Expression, config: Config, path: str, local: dict[str, Expression], table: AxisTable
) -> None:
    """Make ``axis`` consist of ``definition``; an axis that already consists of something must consist of the same."""
    sizes = config.size
    whole = axes.size(axis, table.sizes.__getitem__)
    if axes.size(definition, sizes) != whole:
        raise ValueError(f"{path or 'the root'}: the definition of {axis} gives another size than {whole}")
    known = table.expand(axis)
    if known != axis or not isinstance(axis, Axis):  # shared with a part that divided it before
        matched: dict[str, Expression] = {}
        if _match(definition, known, sizes, table, matched):
            local.update(matched)
        else:
            for name in {*axes.names(known), *axes.names(axis)}:
                table.frozen[name] = f"{path} divides it in another way than a part before it"
        return
    for name in axes.names(definition):
        if name not in local:
            full = f"{path}.{name}" if path else name
            local[name] = Axis(full)
            table.sizes[full] = sizes(name)
    table.refined[axis.name] = axes.substitute(definition, local)


def _match(
    definition: Expression, known: Expression, sizes: Callable[[str], int], table: AxisTable, out: dict[str, Expression]
) -> bool:
    match definition, known:
        case Axis(name), _:
            same = axes.size(known, table.sizes.__getitem__) == axes.size(definition, sizes)
            return same and out.setdefault(name, known) == known
        case (Product(ours), Product(theirs)) | (Sum(ours, _), Sum(theirs, _)):
            return len(ours) == len(theirs) and all(
                _match(a, b, sizes, table, out) for a, b in zip(ours, theirs, strict=True)
            )
        case _:
            return False


def slice_spec(spec: Config, keep: Mapping[str, Tensor]) -> Config:
    """The spec in which each axis of ``keep`` has only the kept indices.

    Raises:
        UsageError: for an axis that does not exist, or that is cut only through what it consists of.
    """
    table = axis_table(spec)
    for name, index in keep.items():
        if name in table.frozen:
            raise UsageError(f"axis {name!r} cannot be cut: {table.frozen[name]}")
        if name in table.refined:
            parts = ", ".join(axes.names(table.expand(Axis(name))))
            raise UsageError(f"axis {name!r} is cut through what it consists of: {parts}")
        if name not in table.sizes:
            raise UsageError(f"there is no axis {name!r}{nearest(name, table.sizes)}")
        if not len(index) or int(index.max()) >= table.sizes[name] or len(index.unique()) != len(index):
            raise UsageError(f"axis {name!r} must keep some of its {table.sizes[name]} indices, each at most once")

    def size(name: str) -> int:
        return len(keep[name]) if name in keep else table.sizes[name]

    changes: dict[str, int] = {}
    for path, node in walk(spec):
        own = {field.name for field in fields(node)} - table.given[path]
        for axis in own & table.local[path].keys():
            changes[f"{path}.{axis}" if path else axis] = axes.size(table.expand(table.local[path][axis]), size)
    return edit(spec, changes)


def slice_state(spec: Config, state: Mapping[str, Tensor], keep: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state dict with only the kept indices of each axis, copied."""
    table = axis_table(spec)
    sliced: dict[str, Tensor] = {}
    for name, tensor in state.items():
        for dimension, expression in enumerate(table.tensors[name]):
            index = axes.indices(table.expand(expression), table.sizes.__getitem__, keep)
            if len(index) < tensor.shape[dimension]:
                tensor = tensor.index_select(dimension, index.to(tensor.device))
        sliced[name] = tensor.clone()
    return sliced
