"""The random states of Python, NumPy, torch and a device, kept apart from those of the rest of the program."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

CPU = torch.device("cpu")


def seeded(seed: int, device: torch.device = CPU) -> dict[str, Any]:
    """The states that seeding all of them with ``seed`` would give."""
    with preserved(device):
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
        return capture(device)


def capture(device: torch.device = CPU) -> dict[str, Any]:
    """The present states, as nested containers of tensors, numbers and strings."""
    numpy_state: Any = np.random.get_state(legacy=False)
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
    states = {"python": random.getstate(), "numpy": numpy_state, "torch": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state()
    return states


def restore(states: dict[str, Any], device: torch.device = CPU) -> None:
    """Makes states that ``capture`` gave the present ones; a device's only where they have one of its kind."""
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["torch"])
    if device.type in states:
        torch.get_device_module(device).set_rng_state(states[device.type])


@contextmanager
def preserved(device: torch.device = CPU) -> Iterator[None]:
    """Undoes, at the end of the block, whatever the block does to the random states."""
    states = capture(device)
    try:
        yield
    finally:
        restore(states, device)
