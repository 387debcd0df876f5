"""Activations that stand by themselves, because what comes before them is no weighted product that could take them in."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F

from anyformer.ops.linear import Activation

ACTIVATIONS: dict[Activation, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}
"""By the names that linear layers know them by."""
