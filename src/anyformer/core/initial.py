"""Initialisers as data: how a fresh parameter is filled is part of an architecture, so it is written in its spec."""

import math
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from anyformer.core.errors import UsageError

Kind = Literal[
    "constant",
    "normal",
    "truncated_normal",
    "uniform_fan_in",
    "xavier_uniform",
    "log_counts",
    "log_of_uniform",
    "step_bias",
]

STEPS = (1e-3, 1e-1)  # of state spaces at their start (arXiv:2312.00752, section 3.6)

_UNFILLED = ContextVar("_UNFILLED", default=False)


@dataclass(frozen=True)
class Init:
    """How a parameter starts.

    ``constant``: every element is ``value``. ``normal`` and ``truncated_normal`` (cut at two units, not two standard
    deviations, as the field's code does): standard deviation ``value``. ``uniform_fan_in``: uniform within
    1 / sqrt(fan in) times ``value``. ``xavier_uniform``: Glorot's range times ``value``. Of state spaces: ``log_counts``: the
    logarithms of 1, 2, 3, ... along the last axis. ``log_of_uniform``: the logarithm of a uniform number from 1 to
    ``value``. ``step_bias``: what softplus makes a step, log-uniform within ``STEPS``, times ``value``.
    """

    kind: Kind
    value: float = 1.0

    def __post_init__(self) -> None:
        if self.value < 0 and self.kind != "constant":
            raise UsageError(f"an initialiser's spread is not negative: {self.kind} has {self.value}")

    def fill(self, tensor: Tensor) -> None:
        """Fill ``tensor`` in place from torch's global generator; one on the meta device has nothing to fill.

        Raises:
            UsageError: where the kind needs two dimensions and the tensor has one.
        """
        if tensor.is_meta or not tensor.numel() or _UNFILLED.get():
            return
        with torch.no_grad():
            match self.kind if self.value else "constant":
                case "constant":
                    tensor.fill_(self.value)
                case "normal":
                    tensor.normal_(std=self.value)
                case "truncated_normal":
                    nn.init.trunc_normal_(tensor, std=self.value)
                case "uniform_fan_in":
                    bound = self.value / tensor[0].numel() ** 0.5
                    tensor.uniform_(-bound, bound)
                case "xavier_uniform":
                    if tensor.ndim < 2:
                        raise UsageError("xavier_uniform is for weights, not for biases and scales")
                    nn.init.xavier_uniform_(tensor, gain=self.value)
                case "log_counts":
                    tensor.copy_(torch.arange(1, tensor.shape[-1] + 1, dtype=tensor.dtype).log())
                case "log_of_uniform":
                    tensor.uniform_(1.0, self.value).log_()
                case "step_bias":
                    low, high = (math.log(step * self.value) for step in STEPS)
                    step = tensor.uniform_(low, high).exp()
                    tensor.copy_(step + (-torch.expm1(-step)).log())  # the inverse of softplus


ZEROS = Init("constant", 0.0)
ONES = Init("constant", 1.0)


@contextmanager
def unfilled() -> Generator[None]:
    """Parameters made inside hold whatever their memory held, at no cost and no random number: weights are loaded next."""
    token = _UNFILLED.set(True)
    try:
        yield
    finally:
        _UNFILLED.reset(token)
