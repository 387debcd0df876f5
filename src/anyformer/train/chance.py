"""The random states of Python, NumPy and torch, kept apart from those of the rest of the program."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seeded(seed: int) -> dict[str, Any]:
    """The states that seeding all three with ``seed`` would give."""
    with preserved():
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        return capture()


def capture() -> dict[str, Any]:
    """The present states, as nested containers of tensors, numbers and strings."""
    numpy_state: Any = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
    return {"python": random.getstate(), "numpy": numpy_state, "torch": torch.get_rng_state()}


def restore(states: dict[str, Any]) -> None:
    """Makes states that ``capture`` gave the present ones."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])


@contextmanager
def preserved() -> Iterator[None]:
    """Undoes, at the end of the block, whatever the block does to the random states."""
    states = capture()
    try:
        yield
    finally:
        restore(states)
