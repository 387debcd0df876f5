"""What travels beside the features through a network: where the tokens lie, which count, and what to collect."""

from dataclasses import dataclass, field
from math import prod
from typing import Self, dataclass_transform

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from anyformer.core.errors import UsageError


@dataclass(frozen=True)
class Layout:
    """How the token axis is laid out: ``prefix`` tokens (class, distillation, register, query) before a grid.

    With a prefix the features are ``(batch, prefix + prod(grid), channels)``, without one ``(batch, *grid, channels)``.
    """

    grid: tuple[int, ...]
    prefix: int = 0

    @property
    def tokens(self) -> int:
        """The number of tokens, prefix included."""
        return self.prefix + prod(self.grid)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Prefix tokens ``(batch, prefix, channels)`` and grid features ``(batch, *grid, channels)``, as views."""
        flat = x.flatten(1, -2)
        batch, _, channels = flat.shape
        return flat[:, : self.prefix], flat[:, self.prefix :].reshape(batch, *self.grid, channels)

    def join(self, prefix: Tensor, grid: Tensor) -> Tensor:
        """The inverse of :meth:`split`."""
        return torch.cat((prefix, grid.flatten(1, -2)), dim=1) if self.prefix else grid


Collected = dict[str, list[Tensor]]
Edges = tuple[Tensor, Tensor, Tensor]


def _no_edges() -> dict[str, Edges]:
    # dict[str, Edges] in its place, as a factory, cannot be compiled
    return {}


@dataclass(frozen=True)
class Context:
    """One forward pass's surroundings; every part may read it, only embeds and ``down`` parts return another.

    Attributes:
        layout: grid and prefix of the features; for ragged data one row of all tokens.
        mask: ``(batch, tokens)``, True where a token counts.
        offsets: ``(batch + 1,)`` starts of ragged rows packed as ``(1, total, channels)``.
        positions: positions of the tokens where they are not 0, 1, 2, ...
        coordinates: ``(total, d)`` coordinates of ragged points.
        edges: name -> (senders, receivers, features).
        memory: features to attend to, with a context of their own: they have another layout and another mask.
        condition: what the output is conditioned on.
        sink: where :meth:`collect` writes; absent unless the caller asked for it.
    """

    layout: Layout | None = None
    mask: Tensor | None = None
    offsets: Tensor | None = None
    positions: Tensor | None = None
    coordinates: Tensor | None = None
    edges: dict[str, Edges] = field(default_factory=_no_edges)
    memory: "tuple[Tensor, Context] | None" = None
    condition: Tensor | None = None
    sink: Collected | None = None

    def collect(self, name: str, tensor: Tensor) -> None:
        """Hand out an auxiliary tensor (a loss, a routing, a feature); nothing happens unless a sink was given."""
        if self.sink is not None:
            self.sink.setdefault(name, []).append(tensor)


def grid_of(context: Context, part: object) -> tuple[int, ...]:
    """The grid that a part needs whole.

    Raises:
        UsageError: where there is none, it is empty, some of its tokens are masked, or prefix tokens stand before it.
    """
    layout = context.layout
    if layout is None or layout.prefix:
        raise UsageError(
            f"{type(part).__name__} needs features on a grid without prefix tokens, got {layout}; take an embed without "
            f"them, or wrap the part in one that lays them aside with layout.split"
        )
    if 0 in layout.grid:
        raise UsageError(
            f"{type(part).__name__} needs at least one token, the grid is {layout.grid}; give a larger image"
        )
    if context.mask is not None:
        raise UsageError(f"{type(part).__name__} works on the whole grid; give it features without a mask")
    return layout.grid


@dataclass_transform()
class State:
    """What a mixer carries from one chunk of a stream to the next; subclasses become dataclasses by themselves.

    Fields are tensors, numbers, states, or lists of these. The call that takes a state may overwrite it, so whoever goes
    on from one point twice clones it first. States are pytrees: a step of a stream compiles and exports.
    """

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        dataclass(cls)
        torch.export.register_dataclass(cls, serialized_type_name=f"{cls.__module__}.{cls.__qualname__}")

    def clone(self) -> Self:
        """A branch: both go on from this point, and neither sees the other's tokens."""
        return pytree.tree_map_only(Tensor, torch.clone, self)


# Registered as pytrees so that single parts export and compile; sizes are constants of the exported program.
pytree.register_constant(Layout)
torch.export.register_dataclass(Context, serialized_type_name="anyformer.core.context.Context")
