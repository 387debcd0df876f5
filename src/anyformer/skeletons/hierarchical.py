"""Networks inside networks: a block that lets deeper blocks work on fewer tokens."""

from typing import Any

import torch
from torch import Tensor

from anyformer import core
from anyformer.ops.segments import without_autocast


class HierarchicalState(core.State):
    """Where a stream stands in a hierarchical block.

    Attributes:
        down: the state of what chooses the tokens that go on.
        blocks: the states of the blocks inside, which have seen those tokens alone.
        up: the state of what brings their features back.
    """

    down: Any
    blocks: list[Any]
    up: Any


class HierarchicalBlock(core.Block, name="hierarchical_block"):
    """``skip(x) + up(norm2(blocks(down(x))))`` of ``x = norm(x)``: blocks of their own on fewer and wider tokens.

    The layers before it, in whatever holds it, are its encoder, those behind it its decoder; the blocks inside may be
    hierarchical themselves, which makes a hierarchy of several stages. Inside, tokens get ``width - dim`` learned channels
    more, the same for all, which are cut off again. ``skip`` is computed in the type of its weights, autocast or not,
    because all that the encoder knows of single tokens passes it (arXiv:2507.07955, section 2; number from memory).

    ``down`` gives the tokens that go on and a context of theirs. To stand in a stream, it and ``up`` need ``init_state(batch,
    like)``, and ``stream(x, ctx, state) -> (x, ctx, trace, state)`` and ``stream(x, trace, state) -> (x, state)``.

    Shapes: ``(batch, tokens, dim)`` to the same. Cost: that of the parts, and ``dim * dim`` multiply-adds a token.
    """

    class Config(core.Config):
        """``width`` channels inside, no fewer than ``dim``; ``pad`` are at first what the additional ones hold."""

        dim: int = core.bound()
        width: int = core.derived(lambda c: c.dim)
        norm: core.Config
        down: core.Config
        blocks: tuple[core.Config, ...]
        norm2: core.Config
        up: core.Config
        skip: core.Config = core.linear(init=core.ZEROS)
        pad_init: core.Init = core.ZEROS

        @property
        def more(self) -> int:
            """Channels that there are inside alone."""
            return self.width - self.dim

    axes = {"skip.weight": "dim dim", "pad": "more"}
    definitions = {"width": "dim + more"}

    @classmethod
    def binds(cls, config: Config) -> dict[str, dict[str, str]]:
        """What stands inside is wider."""
        inside = [*(f"blocks.{i}" for i in range(len(config.blocks))), "norm2"]
        return {path: {"dim": "width"} for path in inside}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.pad = self.parameter("pad", config.pad_init) if config.more else None

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Go down, work there, come up."""
        x = self.norm(x)
        y, inner, trace = self.down(x, ctx)
        y = self._widened(y)
        for block in self.blocks:
            y = block(y, inner)
        return self._joined(x, self.up(self._narrowed(y), trace))

    def init_state(self, batch: int, capacity: int, like: Tensor) -> HierarchicalState:
        """Before the first token; there may be as many tokens inside as outside."""
        blocks = [block.init_state(batch, capacity, like) for block in self.blocks]
        return HierarchicalState(
            down=self.down.init_state(batch, like), blocks=blocks, up=self.up.init_state(batch, like)
        )

    def stream(self, x: Tensor, ctx: core.Context, state: HierarchicalState) -> tuple[Tensor, HierarchicalState]:
        """The next tokens; where none of them goes down, nothing is computed there."""
        x = self.norm(x)
        y, inner, trace, down = self.down.stream(x, ctx, state.down)
        y, states = self._widened(y), state.blocks
        if y.shape[1]:
            states = []
            for block, before in zip(self.blocks, state.blocks, strict=True):
                y, after = block.stream(y, inner, before)
                states.append(after)
        y, up = self.up.stream(self._narrowed(y), trace, state.up)
        return self._joined(x, y), HierarchicalState(down=down, blocks=states, up=up)

    def _widened(self, x: Tensor) -> Tensor:
        return x if self.pad is None else torch.cat((x, self.pad.expand(*x.shape[:-1], -1)), dim=-1)

    def _narrowed(self, x: Tensor) -> Tensor:
        return self.norm2(x)[..., : self.config.dim]

    def _joined(self, x: Tensor, y: Tensor) -> Tensor:
        dtype = next(self.skip.parameters(), x).dtype
        with without_autocast(x):
            return (y + self.skip(x.to(dtype))).to(x.dtype)
