"""What the numbers contract is asked of: every different use of a mixer or a norm in the small models and in toy decoders.

A model of the registry is run once; whatever passes through its mixers and norms becomes a cell. So a part that a new
system brings is covered by itself. Parts that differ in width and in what follows from it alone are one cell.
"""

import copy
import dataclasses
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import anyformer as af
from anyformer import core
from anyformer.core import registry
from anyformer.core.config import fields
from anyformer.parts.channel_mixers.mlp import MLP
from anyformer.parts.embeds.token_table import TokenTable
from anyformer.parts.heads.vocabulary import VocabularyHead
from anyformer.parts.norms.layer_norm import LayerNorm
from anyformer.parts.positions.rotary import Rotary
from anyformer.parts.token_mixers.grouped_query_attention import GroupedQueryAttention
from anyformer.skeletons.blocks import layer_block
from anyformer.skeletons.decoder import Decoder
from anyformer.verify.filling import fill

SLOTS = ("token_mixer", "channel_mixer", "norm")
IMAGE = {"num_classes": 3, "in_chans": 1, "img_size": 8, "patch_size": 1}
DECODED = (
    GroupedQueryAttention.Config(kv_heads=2),
    GroupedQueryAttention.Config(kv_heads=2, group=2, position=Rotary.Config()),
)


@dataclasses.dataclass(frozen=True)
class Cell:
    """A part and what it was called with: float64 features ``(batch, *grid or tokens, dim)``, a context if it takes one."""

    name: str
    part: nn.Module
    x: Tensor
    context: core.Context | None

    def __call__(self, x: Tensor, context: core.Context | None = None, dtype: torch.dtype | None = None) -> Tensor:
        """The part's answer to ``x``, in another context if one is given, computed in ``dtype`` if one is given."""
        given = () if self.context is None else (context or self.context,)
        return self.module(dtype)(x if dtype is None else x.to(dtype), *given)

    def module(self, dtype: torch.dtype | None = None) -> nn.Module:
        """The part in float64, or its one copy in float32, in the same mode."""
        if dtype in (None, torch.float64):
            return self.part
        if "single" not in self.part.__dict__:  # beside the module tree
            self.part.__dict__["single"] = copy.deepcopy(self.part).float()
        return self.part.__dict__["single"].train(self.part.training)

    def on(self, grid: tuple[int, ...], batch: int = 2, seed: int = 0) -> tuple[Tensor, core.Context]:
        """Random features on another grid, with as many prefix tokens as in the model, and their context."""
        before = self.context or core.Context(layout=core.Layout(grid=tuple(self.x.shape[1:-1])))
        prefix = before.layout.prefix if before.layout else 0
        layout = core.Layout(grid=grid, prefix=prefix)
        shape = (layout.tokens,) if prefix else grid
        x = random((batch, *shape, self.x.shape[-1]), seed)
        return x, dataclasses.replace(before, layout=layout, mask=None, positions=None)

    @property
    def refuses(self) -> dict[str, str]:
        """What the part says that it cannot do."""
        return self.part.refuses  # type: ignore[return-value]


def random(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def kind(config: core.Config) -> tuple[Any, ...]:
    """What of a configuration is not a width or a consequence of one."""
    own = [(f.name, getattr(config, f.name)) for f in fields(config) if not {"bound", "derived"} & f.metadata.keys()]
    return config.part.name, *((name, _kind(value)) for name, value in own)


def _kind(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(_kind, value))
    return kind(value) if isinstance(value, core.Config) else value


def decoder(mixer: core.Config) -> core.Config:
    """The smallest model around a mixer of sequences."""
    norm = LayerNorm.Config()
    return Decoder.Config(
        dim=16,
        vocabulary=11,
        embed=TokenTable.Config(),
        blocks=(layer_block(mixer, MLP.Config(), norm),),
        norm=norm,
        head=VocabularyHead.Config(),
    )


def _models() -> Iterator[tuple[nn.Module, Tensor]]:
    for system in registry.systems().values():
        for name in system.small:
            if system.field == "vision":
                yield af.create_model(name, **IMAGE), random((2, 1, 8, 8))
            else:
                yield af.create_model(name), torch.arange(28).view(2, 14) % 11
    for mixer in DECODED:
        yield core.build(decoder(mixer)), torch.arange(28).view(2, 14) % 11


def calls(model: nn.Module, raw: Tensor) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Every mixer and norm of a model and what it is called with in one pass, filled with numbers that matter."""
    fill(model)
    model.double().eval().requires_grad_(False)
    noted: list[tuple[Any, tuple[Any, ...]]] = []
    parts = [module for module in model.modules() if getattr(module, "slot", "") in SLOTS]
    handles = [part.register_forward_pre_hook(lambda part, given: noted.append((part, given))) for part in parts]
    model(raw)
    for handle in handles:
        handle.remove()
    yield from noted


def alone(kinds: set[type[core.Part]]) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """Parts that stand in published models alone: the narrowest of each kind, by itself, on a small grid."""
    specs = [core.resolve(system.pattern(name)) for system in registry.systems().values() for name in system.names]
    nodes = [node for spec in specs for _, node in core.walk(spec) if node.part in kinds]
    for part in sorted(kinds, key=lambda part: part.name):
        config: Any = min((node for node in nodes if node.part is part), key=lambda node: node.size("dim"))
        module = config.build()
        fill(module)
        context = () if part.slot == "norm" else (core.Context(layout=core.Layout(grid=(4, 4))),)
        yield module.double().eval().requires_grad_(False), (random((2, 4, 4, config.dim)), *context)


def known() -> set[type[core.Part]]:
    """Every mixer and norm of the package; tests that run beside these may register others."""
    parts = [part for slot in SLOTS for part in registry.parts(slot).values()]
    return {part for part in parts if part.__module__.startswith("anyformer.")}


@cache
def cells() -> dict[str, Cell]:
    """All cells by name."""
    found: dict[tuple[Any, ...], tuple[Any, tuple[Any, ...]]] = {}
    for model, raw in _models():
        for part, given in calls(model, raw):
            if isinstance(given[0], Tensor) and given[0].numel():
                found.setdefault(kind(part.config), (part, given))
    for part, given in alone(known() - {type(part) for part, _ in found.values()}):
        found[kind(part.config)] = (part, given)
    made: dict[str, Cell] = {}
    for part, (x, *context) in found.values():
        name = f"{part.name}-{sum(other.part.name == part.name for other in made.values())}"
        # inside a hierarchy of chunks the context of a model has a mask, which the checks put there themselves
        made[name] = Cell(name, part, x, dataclasses.replace(context[0], mask=None) if context else None)
    return made
