"""Export to OpenVINO: two files that compute what the model does, always the same bytes."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.core.files import sync_folder
from anyformer.deploy.compare import TOLERANCES, ExportReport, compare, reference, unseen_images
from anyformer.deploy.onnx import export_onnx, on_tensors
from anyformer.deploy.runtime import OpenvinoModel, load_openvino
from anyformer.deploy.silence import cause


def export_openvino(
    model: nn.Module,
    example: torch.Tensor,
    path: str | Path,
    *,
    precision: str = "float32",
    unseen: torch.Tensor | int = 20,
    tolerance: float | None = None,
    onnx: Path | None = None,
) -> ExportReport:
    """Writes a model for OpenVINO, and proves that OpenVINO computes the same.

    The weights are written in float32 whatever the precision: it is a setting of the runtime
    (``INFERENCE_PRECISION_HINT``), under which the comparison is made. Both files appear only once they have passed.

    Args:
        model: maps images ``(batch, channels, height, width)`` to logits ``(batch, classes)``.
        example: float32 images of the size to export for.
        path: the ``.xml`` file to write; the weights go beside it, with the ending ``.bin``.
        precision: what products are computed in, ``"float32"`` or ``"bfloat16"``.
        unseen: images to compare on, other than ``example``, or how many random ones to draw.
        tolerance: the largest absolute error allowed, over the largest absolute logit; that of the precision when None.
        onnx: the model as ``export_onnx`` wrote it, which is done first when None.

    Raises:
        UsageError: the images have the wrong form, or OpenVINO is not installed or lacks the precision here.
        AnyformerError: the model cannot be exported, the files cannot be written, or they compute something else.
    """
    path = Path(path)
    images = unseen_images(example, unseen)
    try:
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            beside = Path(folder, path.name)
            if onnx is None:
                onnx = export_onnx(model, example, Path(folder, "model.onnx"), unseen=images).path
            convert(onnx, beside)
            form = on_tensors(OpenvinoModel(beside, precision=precision))
            limit = TOLERANCES[precision] if tolerance is None else tolerance
            what = f"the OpenVINO file of {type(model).__name__} in {precision}"
            max_error = compare(reference(model), form, images, limit, what)
            place(beside, path)
    except OSError as error:
        raise AnyformerError(f"cannot write {path}: {error.strerror or error}") from error
    return ExportReport(path=path, max_error=max_error, checked=len(images))


def convert(onnx: Path, path: Path) -> None:
    """An ONNX file as OpenVINO's ``.xml`` and ``.bin``, the numbers in it unchanged.

    Raises:
        UsageError: OpenVINO is not installed.
        AnyformerError: an operator has no counterpart, or the files cannot be written.
    """
    try:
        openvino = load_openvino()
    except ModuleNotFoundError as error:
        raise UsageError('OpenVINO is not installed; run `pip install "anyformer[openvino]"`') from error
    try:
        model = openvino.Core().read_model(onnx)
        for index, node in enumerate(model.get_ordered_ops()):  # else named by how many this process made before
            if node.get_type_name() != "Parameter":
                node.set_friendly_name(f"{node.get_type_name()}_{index}")
        openvino.save_model(model, path, compress_to_fp16=False)
    except Exception as error:  # every kind of failure is a RuntimeError
        raise AnyformerError(f"OpenVINO cannot convert {onnx.name}: {cause(error)}") from error


def place(beside: Path, path: Path) -> None:
    """Move the pair of files to its place, weights first, both on the disk before either is renamed."""
    pairs = [(beside.with_suffix(ending), path.with_suffix(ending)) for ending in (".bin", ".xml")]
    for source, _ in pairs:
        with source.open("rb") as file:
            os.fsync(file.fileno())
    for source, target in pairs:
        source.replace(target)
    sync_folder(path.parent)
