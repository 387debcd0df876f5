"""Several processes that train one model, as ``torchrun`` starts them, and the device that each computes on.

Every process does the same calls with the same arguments; what must happen once (a file written, a clock read) happens
in the first process, which tells the others. Nothing wraps the models: gradients are averaged between a role's backward
and its step, so that any objective with any roles runs as it does in one process. One started alone pays nothing.

``torchrun --nproc-per-node 2 program.py``, where the program has::

    with processes.joined() as device, Checkpoints("run", config) as store:
        model = shard(create_model("vit_mini").to(device))  # or without ``shard``: a copy of the weights in each process
        run = Trainer({"student": Role(model, adamw(model))}, objective, batches, device=device, store=store)
        run.run(1000)

Each process makes the whole batch and computes on its share, so that the run is that of one process with the same batches.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from anyformer.core.errors import AnyformerError, UsageError

Value = TypeVar("Value")


@contextmanager
def joined(device: str = "auto") -> Iterator[torch.device]:
    """Joins the processes that ``torchrun`` started, for the length of the block; gives this one's device.

    In a program started alone the block only gives the device. Gradients travel by gloo between CPUs and by the
    device's own library (NCCL) between accelerators, of which each process on a machine takes the next.

    Raises:
        UsageError: This machine has no such device.
    """
    chosen = pick_device(device)
    if "WORLD_SIZE" not in os.environ:
        yield chosen
        return
    if chosen.type != "cpu":
        torch.accelerator.set_device_index(chosen.index or 0)
    dist.init_process_group()
    try:
        yield chosen
    finally:
        dist.destroy_process_group()


def pick_device(name: str) -> torch.device:
    """The device of a name: ``cpu``, ``cuda``, ``mps``, ..., or ``auto``: this machine's accelerator, else its CPU.

    Raises:
        UsageError: This machine has no such device.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    known = ["cpu", accelerator.type] if accelerator else ["cpu"]
    try:
        device = torch.device(known[-1] if name == "auto" else name)
    except RuntimeError:
        device = None
    if device is None or device.type not in known:
        raise UsageError(f"there is no device {name!r} here; this torch sees {', '.join(known)}; choose one or 'auto'")
    if device.type == "cpu":
        return torch.device("cpu")
    index = int(os.environ.get("LOCAL_RANK", 0)) if device.index is None else device.index
    if index >= torch.accelerator.device_count():
        raise UsageError(
            f"there is no device {device.type}:{index} here, the machine has {torch.accelerator.device_count()}; start "
            f"fewer processes or choose another"
        )
    return torch.device(device.type, index)


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this one, counted from 0."""
    return dist.get_rank() if count() > 1 else 0


def by_first(work: Callable[[], Value]) -> Value:
    """Does the work in the first process and gives what came of it in all.

    Raises:
        AnyformerError: The work did; in all processes, so that none waits for one that has ended.
    """
    if count() == 1:
        return work()
    outcome: list[Any] = [None]
    if rank() == 0:
        try:
            outcome = [work()]
        except AnyformerError as error:
            outcome = [error]
    dist.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
    if isinstance(outcome[0], AnyformerError):
        raise outcome[0]
    return outcome[0]


def of_all(value: Value) -> list[Value]:
    """The values of all processes, in order."""
    values: list[Any] = [value]
    if count() > 1:
        values = [None] * count()
        dist.all_gather_object(values, value)
    return values


def largest(*numbers: int) -> list[int]:
    """The largest of each number over the processes, so that all decide alike."""
    if count() == 1:
        return list(numbers)
    tensor = torch.tensor(numbers)
    dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor.tolist()


def average(tensors: Sequence[Tensor]) -> None:
    """Replaces each tensor by its mean over the processes: one message a data type, without overlap with computing."""
    if count() == 1:
        return
    for kind in {(tensor.dtype, tensor.device) for tensor in tensors}:
        alike = [tensor for tensor in tensors if (tensor.dtype, tensor.device) == kind]
        flat = torch.cat([tensor.reshape(-1) for tensor in alike])
        dist.all_reduce(flat)
        parts = (flat / count()).split([tensor.numel() for tensor in alike])
        for tensor, part in zip(alike, parts, strict=True):
            tensor.copy_(part.view_as(tensor))


def average_gradients(parameters: Sequence[nn.Parameter]) -> None:
    """Averages gradients; a parameter that no process used stays without one, as it would in one process."""
    if count() == 1 or not parameters:
        return
    used = largest(*(int(parameter.grad is not None) for parameter in parameters))
    gradients = []
    for parameter, use in zip(parameters, used, strict=True):
        if use and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        if parameter.grad is not None:
            gradients.append(parameter.grad)
    average(gradients)


def shares(batch: Any, number: int, device: torch.device | None) -> list[tuple[float, Any]]:
    """A batch as this process's parts of it, each with its share of the rows.

    Args:
        batch: Nested tuples, lists and dicts, of tensors with one number of rows.
        number: Parts for each process.
        device: Where the parts go; they stay where they are when absent.

    Returns:
        Pairs of rows of the part over rows of the batch, and the part: sums of means over the parts, weighted so, are
        the mean over the batch.

    Raises:
        UsageError: The batch cannot be cut into so many.
    """
    leaves, structure = pytree.tree_flatten(batch)
    if (total := number * count()) == 1:
        return [(1.0, _to(leaves, structure, device))]
    rows = {len(leaf) if leaf.ndim else 0 for leaf in leaves if isinstance(leaf, Tensor)}
    if len(rows) != 1 or min(rows) < total:
        raise UsageError(
            f"a batch with tensors of {sorted(rows)} rows cannot be cut into {total} parts, one for each process and step "
            f"of accumulation; make batches larger"
        )
    parts = []
    cut = [leaf.tensor_split(total) if isinstance(leaf, Tensor) else [leaf] * total for leaf in leaves]
    for part in list(zip(*cut, strict=True))[rank() * number : (rank() + 1) * number]:
        length = next(len(leaf) for leaf in part if isinstance(leaf, Tensor))
        parts.append((length / min(rows), _to(part, structure, device)))
    return parts


def _to(leaves: Sequence[Any], structure: Any, device: torch.device | None) -> Any:
    if device is not None:
        leaves = [leaf.to(device, non_blocking=True) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    return pytree.tree_unflatten(leaves, structure)
