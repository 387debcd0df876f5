"""How these tests make a part by itself."""

from typing import Any

import torch

from anyformer import core
from anyformer.core import registry


def build(name: str, **settings: Any) -> Any:
    """A part with all its numbers given, in float64, its parameters random and none of them zero."""
    torch.manual_seed(0)
    part = core.build(registry.part(name).Config(**settings)).double()
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter)
    return part.eval()


def config(name: str, **settings: Any) -> core.Config:
    return registry.part(name).Config(**settings)


def on_grid(*grid: int, prefix: int = 0, **more: Any) -> core.Context:
    return core.Context(layout=core.Layout(grid=grid, prefix=prefix), **more)


def random(*shape: int, **options: Any) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, **options)
