"""Structural reparameterization (RepVGG, arXiv:2101.03697, section 3.3): from the form that is trained to the one that is used.

Parallel branches, batch norms, skip connections and layer scales are linear in evaluation mode, so single convolutions
and linear layers take them in. Which part has a deploy form, and what it is, the part says itself (``Part.deployed``).
"""

import copy
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import nn

from anyformer.core.config import Config, with_children
from anyformer.core.initial import unfilled
from anyformer.core.model import Model
from anyformer.core.part import Part, Shared, build


@dataclass(frozen=True, kw_only=True)
class Reparameterize:
    """The pass of :func:`reparameterize`; there is nothing to choose."""

    def apply(self, models: tuple[Model, ...], data: object = None) -> tuple[tuple[Model, ...], dict[str, Any]]:
        """The deploy form of every model, and what became of the parameters; ``data`` is not looked at.

        Returns:
            The new models, and ``{"parameters": ((before, after), ...)}``, one pair a model.
        """
        made = tuple(reparameterize(model) for model in models)
        return made, {"parameters": tuple((_count(a), _count(b)) for a, b in zip(models, made, strict=True))}


@torch.no_grad()
def reparameterize(model: Model) -> Model:
    """A new model in evaluation mode, equal to this one in evaluation mode, whose spec is the deploy form.

    A model in training mode is taken as it would be in evaluation mode: batch norms are folded with the running moments
    that they have, which are mean 0 and variance 1 where nothing was trained. The arithmetic is done in float64 and the
    result is in the type of the model's first parameter. What is used in two places stays as it is. The given model is
    not touched; one without anything to fold is copied.

    Costs a float64 copy of the model in memory, and time in proportion to its weights.
    """
    like = next(model.parameters())
    lowered = copy.deepcopy(model).double().eval()
    targets = [module.target for module in lowered.modules() if isinstance(module, Shared)]
    shared = {inner for target in targets for inner in target.modules()}
    with unfilled():
        _lower(lowered, shared)
        deployed = cast(Model, build(_spec("", lowered.config, dict(lowered.named_modules()))))
    deployed.to(device=like.device, dtype=like.dtype).load_state_dict(lowered.state_dict())
    deployed.model_name, deployed.system, deployed.options, deployed.data_config = (
        model.model_name,
        model.system,
        copy.deepcopy(model.options),
        copy.deepcopy(model.data_config),
    )
    return deployed.eval()


def _lower(module: nn.Module, shared: set[nn.Module]) -> nn.Module:
    """The deploy form of a module, its children first; a part that holds something used elsewhere keeps its own form."""
    for name, child in module.named_children():
        setattr(module, name, _lower(child, shared))
    keeps = not isinstance(module, Part) or any(inner in shared for inner in module.modules())
    return module if keeps else cast(Part, module).deployed()


def _spec(path: str, config: Config, modules: dict[str, nn.Module]) -> Config:
    """The configuration of a module with those that its children have now."""

    def child(name: str, node: Config) -> Config:
        where = f"{path}.{name}" if path else name
        return _spec(where, cast(Part, modules[where]).config, modules) if where in modules else node

    return with_children(config, child)


def _count(model: Model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
