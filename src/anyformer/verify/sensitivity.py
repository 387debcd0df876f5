"""Whether a comparison would notice a wrong parameter: how far each one moves what is compared."""

from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core.model import Model

FACTOR = 1.1
REPLAYED = ("embed", "block", "down")  # slots whose outputs are replayed while a later parameter is changed


def movements(model: Model, raw: Tensor, only: Collection[str] = ()) -> dict[str, float]:
    """How far scaling a parameter by ``FACTOR`` moves the scores or the features of a stage.

    Every parameter takes a forward pass of its own, which starts at the block that holds it: what comes before cannot
    change and is replayed.

    Args:
        model: The model, in evaluation mode; it is left as it was.
        raw: What it takes.
        only: Names of parameters; all when empty.

    Returns:
        By name of the parameter, the largest difference over the largest reference, in the tensor that moves most.
    """
    outputs: dict[nn.Module, Any] = {}
    handles = [unit.register_forward_hook(lambda unit, _, out: outputs.update({unit: out})) for unit in _units(model)]
    found: dict[str, float] = {}
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    with torch.no_grad():
        reference = stages_and_scores(model, raw)
        for handle in handles:
            handle.remove()
        try:
            for unit in [*outputs, model]:  # in the order of their calls; the model itself for what is in none of them
                for parameter in unit.parameters():
                    name = names[id(parameter)]
                    if name not in found and (not only or name in only):
                        found[name] = _movement(parameter, lambda: stages_and_scores(model, raw), reference)
                if unit is not model:
                    unit.__dict__["forward"] = lambda *_, output=outputs[unit]: output
        finally:
            for unit in outputs:
                unit.__dict__.pop("forward", None)
    return found


def stages_and_scores(model: Model, raw: Tensor) -> list[Tensor]:
    """What is compared: the features of every stage, and the scores last."""
    features, final, context = model.stages_of(raw)
    return [*features, model.forward_head(final, context)]


def _units(module: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules in a slot of ``REPLAYED``."""
    for child in module.children():
        if getattr(child, "slot", "") in REPLAYED:
            yield child
        else:
            yield from _units(child)


def _movement(parameter: nn.Parameter, run: Callable[[], list[Tensor]], reference: list[Tensor]) -> float:
    kept = parameter.clone()
    parameter.mul_(FACTOR)
    moved = [((new - old).abs().max() / old.abs().max()).item() for new, old in zip(run(), reference, strict=True)]
    parameter.copy_(kept)
    return max(moved)
