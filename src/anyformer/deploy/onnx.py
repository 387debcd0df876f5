"""Export to ONNX: one file, any batch size, always the same bytes, refused unless it computes what the model does."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.core.files import sync_folder
from anyformer.deploy.compare import TOLERANCES, ExportReport, compare, lowered, reference, unseen_images
from anyformer.deploy.runtime import OnnxModel
from anyformer.deploy.silence import cause, silenced
from anyformer.deploy.trace import trace

if TYPE_CHECKING:
    from google.protobuf.message import Message

OPSET = 18  # what torch's exporter writes without converting; ONNX Runtime fuses its GELU and attention all the same
LARGEST = 2e9  # bytes; beyond it protobuf needs a second file beside the first


@dataclass(frozen=True, kw_only=True)
class OnnxReport(ExportReport):
    """What the export to ONNX was checked for, and the version of the operators in the file."""

    opset: int


def export_onnx(
    model: nn.Module,
    example: torch.Tensor,
    path: str | Path,
    *,
    unseen: torch.Tensor | int = 20,
    tolerance: float = TOLERANCES["float32"],
) -> OnnxReport:
    """Writes a model that turns images into logits as an ONNX file, and proves that ONNX Runtime computes the same.

    The model is exported in evaluation mode, reparameterized if it is one of ours, and left untouched. The file appears
    under its name only once it has passed: a failure leaves what was there before. Takes seconds, and memory for two
    more copies of the weights.

    Args:
        model: maps images ``(batch, channels, height, width)`` to logits ``(batch, classes)``.
        example: float32 images of the size to export for; their size alone is used for tracing.
        path: the file to write.
        unseen: images to compare on, other than ``example``, or how many random ones to draw.
        tolerance: the largest absolute error allowed, over the largest absolute logit. The predicted class must be
            the same too, except where the model's two logits are closer than that.

    Raises:
        UsageError: the images have the wrong form, or ONNX is not installed.
        AnyformerError: the model cannot be exported, the file cannot be written, or it computes something else.
    """
    path = Path(path)
    images = unseen_images(example, unseen)
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    if size >= LARGEST:
        raise AnyformerError(f"{type(model).__name__} has {size / 1e9:.1f} GB of weights; one ONNX file holds 2 GB")
    content = _translate(lowered(model), example)
    original, what = reference(model), f"the ONNX file of {type(model).__name__}"
    try:
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            beside = Path(folder, path.name)
            with beside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            check_file(beside, what)
            max_error = compare(original, on_tensors(OnnxModel(beside)), images, tolerance, what)
            beside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise AnyformerError(f"cannot write {path}: {error.strerror or error}") from error
    return OnnxReport(path=path, max_error=max_error, checked=len(images), opset=OPSET)


def on_tensors(function: Callable) -> Callable[[Tensor], Tensor]:
    """A function of arrays as one of tensors."""
    return lambda images: torch.from_numpy(function(images.numpy()))


def check_file(path: Path, what: str) -> None:
    """Raises AnyformerError unless an ONNX file is well formed, all shapes in it included."""
    import onnx

    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # the checker and shape inference raise unrelated kinds
        raise AnyformerError(f"{what} is not well formed: {cause(error)}") from error


def strip(message: "Message") -> None:
    """Removes comments in place: they quote source lines with the path of this machine's files."""
    from google.protobuf.message import Message

    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                strip(part)


def _translate(model: nn.Module, example: torch.Tensor) -> bytes:
    """The model as the bytes of an ONNX file that hold nothing but the model."""
    try:
        import onnx  # noqa: F401 - only whether it is there
        import onnxscript  # noqa: F401 - only whether it is there
    except ModuleNotFoundError as error:
        raise UsageError(f'{error.name} is not installed; run `pip install "anyformer[fit]"`') from error
    program = trace(model, example, "to ONNX")  # given the model, torch would freeze a batch that cannot be left open
    with silenced(), torch.no_grad():
        try:
            translated = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                dynamic_shapes=({0: "batch"},),
                input_names=["images"],
                output_names=["logits"],
            )
            assert translated is not None
            proto = translated.model_proto
        except Exception as error:  # every stage of the exporter raises its own kind, and passes others on
            raise AnyformerError(f"cannot export {type(model).__name__} to ONNX: {cause(error)}") from error
    strip(proto)
    del proto.graph.value_info[:]  # inner shapes: runtimes infer them, and stale ones make later tools fail
    return proto.SerializeToString(deterministic=True)
