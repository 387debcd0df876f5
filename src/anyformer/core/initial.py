"""Initialisers as data: how a fresh parameter is filled is part of an architecture, so it is written in its spec."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal["constant", "normal", "truncated_normal", "uniform_fan_in", "xavier_uniform"]


@dataclass(frozen=True)
class Init:
    """How a parameter starts.

    ``constant``: every element is ``value``. ``normal`` and ``truncated_normal`` (cut at two units, not two standard
    deviations, as the field's code does): standard deviation ``value``. ``uniform_fan_in``: uniform within
    1 / sqrt(fan in) times ``value``. ``xavier_uniform``: Glorot's range times ``value``.
    """

    kind: Kind
    value: float = 1.0

    def fill(self, tensor: Tensor) -> None:
        """Fill ``tensor`` in place from torch's global generator."""
        with torch.no_grad():
            match self.kind:
                case "constant":
                    tensor.fill_(self.value)
                case "normal":
                    tensor.normal_(std=self.value)
                case "truncated_normal":
                    nn.init.trunc_normal_(tensor, std=self.value)
                case "uniform_fan_in":
                    fan_in = tensor[0].numel()
                    bound = self.value / fan_in**0.5 if fan_in else 0.0
                    tensor.uniform_(-bound, bound)
                case "xavier_uniform":
                    nn.init.xavier_uniform_(tensor, gain=self.value)


ZEROS = Init("constant", 0.0)
ONES = Init("constant", 1.0)
