"""Weights cut over the processes (FSDP2, ``fully_shard``), and the same state as whole tensors.

Zhao et al., "PyTorch FSDP: experiences on scaling fully sharded data parallel", arXiv:2304.11277.
"""

import sys
from collections import defaultdict
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from anyformer.core import Block
from anyformer.core.errors import UsageError
from anyformer.train import processes


def shard(model: nn.Module) -> nn.Module:
    """Cuts a model's parameters over the processes, each block gathered only while it computes.

    Each process then holds a share of weights, gradients and optimizer state. Move the model to its device before, and
    make the optimizer afterwards: the parameters are new ones. A model in a process alone is given back as it is.

    Raises:
        UsageError: A parameter is a scalar, which cannot be cut.
    """
    if processes.count() == 1:
        return model
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    scalars = [name for name, parameter in model.named_parameters() if parameter.ndim == 0]
    if scalars:
        raise UsageError(f"scalar parameters cannot be sharded: {', '.join(scalars[:5])}; train without sharding")
    same_everywhere(model)
    mesh = init_device_mesh(next(model.parameters()).device.type, (processes.count(),))
    owners = defaultdict(list)
    for path, parameter in model.named_parameters(remove_duplicate=False):
        owners[parameter].append(path)
    for path, module in model.named_modules():
        # What others use too must stay whole while they compute, so it is left to the model.
        if isinstance(module, Block) and all(
            owner.startswith(f"{path}.") for parameter in module.parameters() for owner in owners[parameter]
        ):
            fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


@torch.no_grad()
def same_everywhere(model: nn.Module) -> None:
    """Gives all processes the first one's weights and buffers, those that are cut excepted."""
    if processes.count() > 1:
        for tensor in model.state_dict().values():
            if not is_cut(tensor):
                dist.broadcast(tensor, src=0)


def is_cut(value: Any) -> bool:
    """Whether a value is a tensor cut over the processes."""
    module = sys.modules.get("torch.distributed.tensor")  # whose import takes a second; unless it was, nothing is cut
    return module is not None and isinstance(value, module.DTensor)


def whole(state: Any) -> Any:
    """Nested state with every cut tensor gathered: memory for all of it in every process, which all must call this."""
    return pytree.tree_map_only(Tensor, _gathered, state)


def _gathered(tensor: Any) -> Any:
    return tensor.full_tensor() if is_cut(tensor) else tensor


def load_model(model: nn.Module, saved: dict[str, Tensor]) -> None:
    """Loads whole tensors, strictly, into a model that may be cut."""
    ours = model.state_dict()
    model.load_state_dict({key: cut_like(value, ours.get(key)) for key, value in saved.items()}, strict=True)


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Loads whole state into an optimizer whose parameters may be cut."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    indices = [index for group in saved["param_groups"] for index in group["params"]]
    state = dict(saved["state"])
    for index, parameter in zip(indices, parameters, strict=True):
        if index in state and is_cut(parameter):
            state[index] = {
                name: cut_like(value, parameter) if isinstance(value, Tensor) and value.ndim else value
                for name, value in state[index].items()
            }
    optimizer.load_state_dict({**saved, "state": state})


def cut_like(value: Tensor, ours: Any) -> Tensor:
    """A whole tensor, cut as ``ours`` is; as it is where that is whole or of another shape."""
    if not is_cut(ours) or value.shape != ours.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(ours.device), ours.device_mesh, ours.placements)
