"""8-bit whole numbers: an ONNX file whose convolutions and linear layers compute in int8, judged by what it predicts.

The scales are those of real pictures: the range of every activation over the calibration images, of every weight by output
channel. Attention's products of activations, norms and activation functions stay in float32, where int8 costs most accuracy.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.deploy.compare import outputs
from anyformer.deploy.onnx import strip
from anyformer.deploy.silence import cause, silenced

OPERATORS = ["Conv", "MatMul", "Gemm"]
BATCH = 16  # calibration images run together


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Real pictures to quantize with, and others to judge by.

    Attributes:
        images: Normalised float32 ``(n, channels, height, width)``; a hundred or more, of the training part.
        held_out: Others of the same form, in neither training nor calibration.
        labels: The classes of those, ``(n,)`` int64; None where they are not known.
        max_loss: How many points (percent of the held-out images) of accuracy may be lost; where there are no labels,
            how many images may be given another class than the model gives.
    """

    images: Tensor
    held_out: Tensor
    labels: Tensor | None = None
    max_loss: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What quantization did to the predictions on the held-out images, in shares of 1.

    Attributes:
        agreement: Images given the same class as by the model.
        accuracy_before: The model's accuracy; None without labels.
        accuracy_after: The quantized form's.
        images: How many were looked at.
    """

    agreement: float
    accuracy_before: float | None
    accuracy_after: float | None
    images: int


def quantize_onnx(source: Path, path: Path, images: Tensor) -> None:
    """Writes the int8 form of an ONNX file that ``export_onnx`` wrote; the same images always give the same bytes.

    Raises:
        UsageError: there are no images, or ONNX Runtime is not installed.
        AnyformerError: the file cannot be quantized.
    """
    if not len(images):
        raise UsageError("int8 needs pictures to calibrate with; give a data set that has some")
    try:
        import onnx
        from onnxruntime import quantization
    except ModuleNotFoundError as error:
        raise UsageError(f'{error.name} is not installed; run `pip install "anyformer[fit]"`') from error

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.batches: Iterator[Tensor] = iter(images.split(BATCH))

        def get_next(self) -> Any:  # None after the last, which the base class's annotation leaves out
            batch = next(self.batches, None)
            return None if batch is None else {"images": batch.numpy()}

    try:
        with silenced():
            quantization.quantize_static(
                str(source),
                str(path),
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                op_types_to_quantize=OPERATORS,
                per_channel=True,
                activation_type=quantization.QuantType.QInt8,
                weight_type=quantization.QuantType.QInt8,
                extra_options={"MatMulConstBOnly": True},
            )
        proto = onnx.load(path)
        strip(proto)
        path.write_bytes(proto.SerializeToString(deterministic=True))
    except Exception as error:  # the quantizer fails in a dozen ways
        raise AnyformerError(f"ONNX Runtime cannot quantize {source.name}: {cause(error)}") from error


def judge(
    model: Callable[[Tensor], Tensor], form: Callable[[Tensor], Tensor], calibration: Calibration, what: str
) -> Judgement:
    """How the predictions of a quantized form differ from the model's on the held-out images.

    Raises:
        AnyformerError: more is lost than ``max_loss``.
    """
    count = len(calibration.held_out)
    want, have = (outputs(function, calibration.held_out)[:count].argmax(-1) for function in (model, form))
    agreement, labels = _share(want == have), calibration.labels
    before = after = None
    if labels is None:
        lost, of = 100 * (1 - agreement), "of the model's predictions"
    else:
        before, after = _share(want == labels), _share(have == labels)
        lost, of = 100 * (before - after), "of accuracy"
    if lost > calibration.max_loss + 1e-9:
        raise AnyformerError(
            f"{what} loses {lost:.3g} points {of} on {count} held-out images, more than the {calibration.max_loss:g} "
            "allowed; it was not kept"
        )
    return Judgement(agreement=agreement, accuracy_before=before, accuracy_after=after, images=count)


def _share(hits: Tensor) -> float:
    return hits.double().mean().item()
