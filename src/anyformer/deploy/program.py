"""Export as a torch program (``.pt2``): the graph and the weights alone, for torch without this library.

A ``.pt2`` file is read with ``torch.export.load``, which can run code that the file holds: read your own only.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from anyformer.core.files import write_atomic
from anyformer.deploy.compare import TOLERANCES, ExportReport, compare, lowered, reference, unseen_images
from anyformer.deploy.eager import InPrecision
from anyformer.deploy.silence import silenced
from anyformer.deploy.trace import trace


@dataclass(frozen=True, kw_only=True)
class ProgramReport(ExportReport):
    """What a program was checked for, and the program itself."""

    program: torch.export.ExportedProgram


def export_torch(
    model: nn.Module,
    example: torch.Tensor,
    path: str | Path,
    *,
    precision: str = "float32",
    unseen: torch.Tensor | int = 20,
    tolerance: float | None = None,
) -> ProgramReport:
    """Writes a model as a torch program for any batch size, once the program has computed what the model does.

    Args:
        model: maps images ``(batch, channels, height, width)`` to logits ``(batch, classes)``.
        example: float32 images of the size to export for.
        path: the ``.pt2`` file to write.
        precision: of the weights and products, ``"float32"`` or ``"bfloat16"``; images and logits stay in float32.
        unseen: images to compare on, other than ``example``, or how many random ones to draw.
        tolerance: the largest absolute error allowed, over the largest absolute logit; that of the precision when None.

    Raises:
        UsageError: the images have the wrong form.
        AnyformerError: the model cannot be exported, the file cannot be written, or it computes something else.
    """
    path, name = Path(path), type(model).__name__
    images = unseen_images(example, unseen)
    made = lowered(model)
    if precision != "float32":
        made = InPrecision(made, precision)
    program = trace(made, example, "as a torch program")
    limit = TOLERANCES[precision] if tolerance is None else tolerance
    what = f"the torch program of {name} in {precision}"
    max_error = compare(reference(model), program.module(), images, limit, what)
    for graph in program.graph_module.modules():
        for node in graph.graph.nodes if isinstance(graph, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # source lines with the path of this machine's files
    content = io.BytesIO()
    with silenced():
        torch.export.save(program, content)
    write_atomic(path, content.getvalue())
    return ProgramReport(path=path, max_error=max_error, checked=len(images), program=program)
