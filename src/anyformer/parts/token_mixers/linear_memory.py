"""What mixers with a memory of fixed size have in common: forward and stream are one function, from a state or from none."""

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from anyformer import core


class MemoryState(core.State):
    """Where a stream of a linear mixer stands.

    Attributes:
        memory: ``(batch, heads, key, value)``, or ``(batch, channels)`` of a vector recurrence; float32 at least.
        convolution: the last inputs of a short convolution; None where there is none.
    """

    memory: Tensor
    convolution: Tensor | None


class LinearMemory(core.TokenMixer):
    """The base of these mixers, which define :meth:`mix` and the shape of the memory."""

    @abstractmethod
    def mix(self, x: Tensor, ctx: core.Context, state: MemoryState | None) -> tuple[Tensor, MemoryState]:
        """Mix tokens from a state, None being the one before the first token."""

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        """Mix whole rows, or packed sequences."""
        return self.mix(x, ctx, None)[0]

    def stream(self, x: Tensor, ctx: core.Context, state: MemoryState) -> tuple[Tensor, MemoryState]:
        """Mix the next tokens."""
        return self.mix(x, ctx, state)

    def init_state(self, batch: int, capacity: int, like: Tensor) -> MemoryState:
        """Zeros."""
        config: Any = self.config
        memory = like.new_zeros(batch, config.heads, config.key, config.value, dtype=at_least_single(like))
        convolution = getattr(self, "convolution", None)
        return MemoryState(
            memory=memory, convolution=None if convolution is None else convolution.init_state(batch, like)
        )

    def scaled(self, scale: Tensor) -> bool:
        """By the last product."""
        return self.out_proj.scaled(scale)


def at_least_single(x: Tensor) -> torch.dtype:
    """Single precision, or that of the tensor where it is higher: gates near 1 need it."""
    return torch.promote_types(x.dtype, torch.float32)


def heads(x: Tensor, count: int) -> Tensor:
    """``(batch, tokens, count * width)`` to ``(batch, count, tokens, width)``."""
    return x.unflatten(-1, (count, -1)).transpose(1, 2)


def merged(x: Tensor) -> Tensor:
    """The inverse of :func:`heads`."""
    return x.transpose(1, 2).flatten(2)


def counted(ctx: core.Context, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Tensors of heads, ``(batch, heads, tokens, ...)``, with zeros at the tokens that do not count."""
    if ctx.mask is None:
        return tensors
    out = ~ctx.mask[:, None]
    return tuple(x.masked_fill(out if x.ndim == 3 else out[..., None], 0.0) for x in tensors)


def unit(x: Tensor, eps: float) -> Tensor:
    """``x / sqrt(sum(x ** 2) + eps)`` over the last axis."""
    wide = x.to(at_least_single(x))
    return (wide * (wide.square().sum(-1, keepdim=True) + eps).rsqrt()).to(x.dtype)
