"""Export to ONNX: one file, any batch size, always the same bytes, refused unless it computes what the model does."""

import contextlib
import copy
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from torch import nn

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.core.files import sync_folder
from anyformer.deploy.runtime import OnnxModel

if TYPE_CHECKING:
    from google.protobuf.message import Message

OPSET = 18  # what torch's exporter writes without converting; ONNX Runtime fuses its GELU and attention all the same
LARGEST = 2e9  # bytes; beyond it protobuf needs a second file beside the first
BATCHES = (1, 3, 8)  # one, odd and full batches: a batch size frozen by the export shows in at least one of them


@dataclass(frozen=True, kw_only=True)
class OnnxReport:
    """What an export was checked for: the largest error, relative to the largest logit, over the images compared."""

    path: Path
    max_error: float
    checked: int
    opset: int


def export_onnx(
    model: nn.Module,
    example: torch.Tensor,
    path: str | Path,
    *,
    unseen: torch.Tensor | int = 20,
    tolerance: float = 1e-5,
) -> OnnxReport:
    """Writes a model that turns images into logits as an ONNX file, and proves that ONNX Runtime computes the same.

    The model is exported in evaluation mode and left untouched. The file appears under its name only once it has
    passed: a failure leaves what was there before. Takes seconds, and memory for a second copy of the weights.

    Args:
        model: maps images ``(batch, channels, height, width)`` to logits ``(batch, classes)``.
        example: float32 images of the size to export for; the first is used for tracing.
        path: the file to write.
        unseen: images to compare on, other than ``example``, or how many random ones to draw.
        tolerance: the largest absolute error allowed, over the largest absolute logit. The predicted class must be
            the same too, except where the model's two logits are closer than that.

    Raises:
        UsageError: the images have the wrong form, or ONNX is not installed.
        AnyformerError: the model cannot be exported, the file cannot be written, or it computes something else.
    """
    path = Path(path)
    images = _unseen_images(example, unseen)
    size = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    if size >= LARGEST:
        raise AnyformerError(f"{type(model).__name__} has {size / 1e9:.1f} GB of weights; one ONNX file holds 2 GB")
    model = copy.deepcopy(model).cpu().eval()
    content = _translate(model, example[:1].cpu())
    try:
        with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            beside = Path(folder, path.name)
            with beside.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            max_error = _verify(model, beside, images, tolerance)
            beside.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise AnyformerError(f"cannot write {path}: {error.strerror or error}") from error
    return OnnxReport(path=path, max_error=max_error, checked=len(images), opset=OPSET)


def _unseen_images(example: torch.Tensor, unseen: torch.Tensor | int) -> torch.Tensor:
    if example.ndim != 4 or example.dtype != torch.float32 or not len(example):
        form = f"{example.dtype} {tuple(example.shape)}"
        raise UsageError(f"the example must be float32 images (batch, channels, height, width), not {form}")
    if isinstance(unseen, int):
        unseen = torch.randn(unseen, *example.shape[1:], generator=torch.Generator().manual_seed(0))
    if unseen.shape[1:] != example.shape[1:] or unseen.dtype != example.dtype or not len(unseen):
        form = f"{unseen.dtype} {tuple(unseen.shape)}"
        raise UsageError(f"the unseen images must be at least one of the example's form, not {form}")
    return unseen.cpu()


def _translate(model: nn.Module, image: torch.Tensor) -> bytes:
    """The model as the bytes of an ONNX file that hold nothing but the model."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise UsageError(f'{error.name} is not installed; run `pip install "anyformer[fit]"`') from error
    pair = image.repeat(2, 1, 1, 1)  # a batch of one would be taken for a constant
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                model,
                (pair,),
                dynamo=True,
                verbose=False,
                opset_version=OPSET,
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                input_names=["images"],
                output_names=["logits"],
            )
            assert program is not None
            proto = program.model_proto
        except Exception as error:  # every stage of the exporter raises its own kind, and passes others on
            raise AnyformerError(f"cannot export {type(model).__name__} to ONNX: {_cause(error)}") from error
    _strip(proto)
    del proto.graph.value_info[:]  # inner shapes: runtimes infer them, and stale ones make later tools fail
    return proto.SerializeToString(deterministic=True)


def _strip(message: "Message") -> None:
    """Removes comments in place: they quote source lines with the path of this machine's files."""
    from google.protobuf.message import Message

    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                _strip(part)


def _verify(model: nn.Module, path: Path, images: torch.Tensor, tolerance: float) -> float:
    """Raises unless the file is well formed and agrees with the model on the images; gives the largest error."""
    import onnx

    name = type(model).__name__
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except Exception as error:  # the checker and shape inference raise unrelated kinds
        raise AnyformerError(f"the ONNX file of {name} is not well formed: {_cause(error)}") from error
    session = OnnxModel(path)
    expected, actual = [], []
    with torch.no_grad():
        for batch in _batches(images):
            expected.append(model(batch))
            actual.append(torch.from_numpy(session(batch.numpy())))
    want, have = torch.cat(expected).double(), torch.cat(actual).double()
    if want.shape != have.shape:
        shapes = f"{tuple(have.shape)} instead of {tuple(want.shape)}"
        raise AnyformerError(f"the ONNX file of {name} gives logits of shape {shapes}; it was not kept")
    scale = want.abs().max()
    error = ((have - want).abs().max() / scale).item() if scale > 0 else (have - want).abs().max().item()
    if not error <= tolerance:  # also when it is not a number
        raise AnyformerError(
            f"the ONNX file of {name} differs from the model by {error:.1e} of the largest logit on unseen images, "
            f"more than {tolerance:.0e}; it was not kept"
        )
    chosen = have.argmax(-1, keepdim=True)
    behind = (want.amax(-1, keepdim=True) - want.gather(-1, chosen)).max() / scale
    if behind > tolerance:
        raise AnyformerError(
            f"the ONNX file of {name} predicts another class on unseen images, where the model's logits are "
            f"{behind:.1e} of the largest apart; it was not kept"
        )
    return error


def _batches(images: torch.Tensor) -> Iterator[torch.Tensor]:
    """Batches of each size in turn, then full ones, until every image was seen; few images come round again."""
    sizes = [*BATCHES]
    while sum(sizes) < len(images):
        sizes.append(min(BATCHES[-1], len(images) - sum(sizes)))
    start = 0
    for size in sizes:
        yield images[torch.arange(start, start + size) % len(images)]
        start += size


def _cause(error: BaseException) -> str:
    """The first line of the error at the bottom: it names the operator, where those above give advice on torch."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0] or type(error).__name__


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter: its warnings are about its own code, and what they might mean the comparison catches."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
