"""Numbers for proofs: weights, inputs and cotangents that depend on their names alone, the same on every machine."""

import numpy as np
import torch
from torch import Tensor, nn

from anyformer.data.seeds import derive_seed
from anyformer.parts.norms.batch_norm import BatchNorm

SPREAD = 0.2  # around 1 of what scales, around 0 of what is added: enough to matter, too little to grow with depth


# what is added to the weight of every pair of tokens is summed over hundreds of tokens, and would drown what they differ in
PAIRED, PAIRED_SPREAD = ".mixer.weights.bias", 0.002


def uniform(name: str, shape: tuple[int, ...]) -> Tensor:
    """Numbers in [-1, 1), float32, drawn from a generator that the name seeds."""
    drawn = np.random.default_rng(derive_seed(0, "filling", name)).random(shape, dtype=np.float32)
    return torch.from_numpy(drawn).mul_(2).sub_(1)


def fill(model: nn.Module) -> None:
    """Overwrite all parameters so that every one of them matters and activations stay of order 1 at any depth.

    A matrix or a filter gets variance 1 / fan in, so that it keeps the size of what passes. A bias lies around 0, a
    scale (of a norm, of a layer, a temperature) around 1, whatever its architecture starts it with; a table of vectors
    (positions, prefix tokens, relative biases) is uniform. All are numbers of float32, so that a model and its float64
    copy are one function.
    """
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_values(name, tuple(parameter.shape)))


@torch.no_grad()
def settle(model: nn.Module, raw: Tensor) -> None:
    """Give every batch norm the moments that it meets on ``raw``, else nothing keeps activations of order 1.

    The model is left in evaluation mode; one without batch norms is left as it is.
    """
    norms = [module for module in model.modules() if isinstance(module, BatchNorm)]
    if not norms:
        return
    kept = [norm.config for norm in norms]
    for norm in norms:
        norm.config = norm.config.replace(momentum=1.0)  # the last batch alone counts
    model.train()(raw)
    model.eval()
    for norm, config in zip(norms, kept, strict=True):
        norm.config = config


def _values(name: str, shape: tuple[int, ...]) -> Tensor:
    drawn = uniform(name, shape)
    kind = name.rpartition(".")[2]
    if kind == "bias":
        return drawn.mul_(PAIRED_SPREAD if name.endswith(PAIRED) else SPREAD)
    if drawn.numel() == shape[0]:
        return drawn.mul_(SPREAD).add_(1)
    if kind == "weight":
        fan_in = drawn.numel() // shape[0]
        return drawn.mul_((3 / fan_in) ** 0.5)
    return drawn
