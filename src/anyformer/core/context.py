"""What travels beside the features through a network: where the tokens lie, which count, and what to collect."""

from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor


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


@dataclass(frozen=True)
class Context:
    """One forward pass's surroundings; every part may read it, only ``down`` and ``up`` parts return a changed one.

    Attributes:
        layout: grid and prefix of the features; absent for ragged data.
        mask: ``(batch, tokens)``, True where a token counts.
        offsets: ``(batch + 1,)`` starts of ragged rows packed as ``(1, total, channels)``.
        positions: positions of the tokens where they are not 0, 1, 2, ...
        coordinates: ``(total, d)`` coordinates of ragged points.
        edges: name -> (senders, receivers, features).
        memory: features to attend to.
        condition: what the output is conditioned on.
        sink: where :meth:`collect` writes; absent unless the caller asked for it.
    """

    layout: Layout | None = None
    mask: Tensor | None = None
    offsets: Tensor | None = None
    positions: Tensor | None = None
    coordinates: Tensor | None = None
    edges: dict[str, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict[str, tuple[Tensor, Tensor, Tensor]])
    memory: Tensor | None = None
    condition: Tensor | None = None
    sink: Collected | None = None

    def collect(self, name: str, tensor: Tensor) -> None:
        """Hand out an auxiliary tensor (a loss, a routing, a feature); nothing happens unless a sink was given."""
        if self.sink is not None:
            self.sink.setdefault(name, []).append(tensor)


def grid_of(context: Context, part: object) -> tuple[int, ...]:
    """The grid that a part needs. Raises ValueError where there is none or prefix tokens stand before it."""
    layout = context.layout
    if layout is None or layout.prefix:
        raise ValueError(f"{type(part).__name__} needs features on a grid without prefix tokens, got layout {layout}")
    return layout.grid


def _register() -> None:
    # Registered as pytrees so that single parts export and compile; sizes are constants of the exported program.
    constant: Any = torch.utils._pytree.register_constant  # pyright: ignore[reportPrivateUsage]
    constant(Layout)
    torch.export.register_dataclass(Context, serialized_type_name="anyformer.core.context.Context")


_register()
