"""Exponential moving averages of weights, which generalize better than the weights of the last step."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from anyformer.train.sharding import cut_like


class Average:
    """The moving average of a model's floating-point parameters and buffers; the rest is the model's own.

    Polyak and Juditsky (1992), as ``average <- d average + (1 - d) weights`` after every step, where ``d`` is ``decay``
    but at most ``(1 + step) / (10 + step)``, so that the first weights are soon forgotten. Memory for a copy of the
    weights, and a pass over them each step.

    Args:
        model: The model whose weights are followed.
        decay: The share of the average that a step keeps, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = model, decay
        self.values = {name: value.clone() for name, value in self._followed().items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes the weights in after a step, counted from 0."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        for name, value in self._followed().items():
            self.values[name].lerp_(value, weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the averaged weights for the length of the block."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    def load(self, saved: dict[str, Tensor]) -> None:
        """Loads whole tensors."""
        self.values = {name: cut_like(saved[name].to(ours.device), ours) for name, ours in self.values.items()}

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, value in self._followed().items():
            kept = value.clone()
            value.copy_(self.values[name])
            self.values[name].copy_(kept)

    def _followed(self) -> dict[str, Tensor]:
        return {name: value for name, value in self.model.state_dict().items() if value.is_floating_point()}
