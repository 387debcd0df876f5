"""Sequences with a class each, drawn one by one: batches for learning to classify without end."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from anyformer.core.errors import UsageError
from anyformer.data.batches import Batch
from anyformer.data.labelled_text import padded


@dataclass(frozen=True, kw_only=True)
class LabelledSequences(ABC):
    """A task whose sequences are pure functions of its seed and their number; its call gives the batch of a step.

    No sequence comes twice, so that there are no epochs. Learn from one seed and test with another.

    Args:
        size: Rows a batch.
        seed: Of all that is drawn.
    """

    size: int = 32
    seed: int = 0

    @property
    @abstractmethod
    def vocabulary(self) -> int:
        """How many different tokens there are."""

    @property
    @abstractmethod
    def classes(self) -> int:
        """How many classes there are."""

    @abstractmethod
    def sample(self, number: int) -> tuple[np.ndarray, int]:
        """The tokens ``(tokens,)`` of a sequence, and its class."""

    @abstractmethod
    def check(self) -> None:
        """Raises UsageError where the sizes do not go together."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UsageError(f"{type(self).__name__}: size={self.size}, give at least one row")
        self.check()

    def __call__(self, step: int) -> Batch:
        """The batch of a step, counted from 0: rows of tokens stand for pictures, as in ``LabelledBatches``."""
        drawn = [self.sample(step * self.size + row) for row in range(self.size)]
        rows = padded([tokens for tokens, _ in drawn])
        return Batch(cast(Any, rows), torch.tensor([label for _, label in drawn]))
