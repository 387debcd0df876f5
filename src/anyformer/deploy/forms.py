"""Every form that a model can be written in here, each compared with the model before it is handed out."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from anyformer.core.errors import UsageError
from anyformer.deploy.compare import reference, unseen_images
from anyformer.deploy.eager import on_threads
from anyformer.deploy.onnx import OnnxReport, check_file, export_onnx, on_tensors
from anyformer.deploy.openvino import convert, export_openvino
from anyformer.deploy.program import export_torch
from anyformer.deploy.quantize import Calibration, Judgement, judge, quantize_onnx
from anyformer.deploy.runtime import OnnxModel, OpenvinoModel, available_cores

PRECISIONS = ("float32", "bfloat16", "int8")  # the most exact first
FORMS = {  # the most widely read first
    "onnx": ("float32", "int8"),
    "openvino": ("float32", "bfloat16", "int8"),
    "torch": ("float32", "bfloat16"),
}


@dataclass(frozen=True, kw_only=True)
class Form:
    """A model as files for a runtime, which passed its comparison here.

    Attributes:
        runtime: Of ``FORMS``.
        precision: What products are computed in.
        files: All that the form consists of.
        max_error: The largest error over the largest logit; None for int8, which is judged.
        judgement: What int8 did to the predictions; None otherwise.
        run: The form as a function of images that gives logits.
        size_bytes: Of all files together.
    """

    runtime: str
    precision: str
    files: tuple[Path, ...]
    max_error: float | None
    judgement: Judgement | None
    run: Callable[[Tensor], Tensor]
    size_bytes: int


def check_form(runtime: str, precision: str) -> None:
    """Raises UsageError for a precision that a runtime has no form of."""
    if precision not in FORMS[runtime]:
        raise UsageError(f"{runtime} is written in {' or '.join(FORMS[runtime])}, not in {precision}")


class Writer:
    """Writes the forms of one model; what several of them need is made once.

    Args:
        model: maps images ``(batch, channels, height, width)`` to logits ``(batch, classes)``.
        example: float32 images of the size to export for.
        folder: for all files, each form in a folder of its own.
        unseen: images to compare on, or how many random ones to draw.
        calibration: real pictures for int8.
        threads: threads that one call of a form may use; every core this process may run on when None.

    Raises:
        UsageError: the images have the wrong form.
    """

    def __init__(
        self,
        model: nn.Module,
        example: Tensor,
        folder: Path,
        *,
        unseen: Tensor | int = 20,
        calibration: Calibration | None = None,
        threads: int | None = None,
    ) -> None:
        self.model, self.example, self.folder = model, example, folder
        self.unseen, self.calibration = unseen_images(example, unseen), calibration
        self.threads = available_cores() if threads is None else threads

    def write(self, runtime: str, precision: str) -> Form:
        """One form of ``FORMS``.

        Raises:
            UsageError: the runtime is not installed, has no such form, or int8 is asked for without calibration.
            AnyformerError: the form cannot be written, or computes something else than the model.
        """
        check_form(runtime, precision)
        folder = self._folder(runtime, precision)
        judgement = error = None
        match runtime:
            case "onnx":
                path = self._quantized if precision == "int8" else self._onnx.path
                run = on_tensors(OnnxModel(path, self.threads))
                files = (path,)
                if precision == "float32":
                    error = self._onnx.max_error
            case "openvino":
                path = folder / "model.xml"
                if precision == "int8":
                    convert(self._quantized, path)
                else:
                    options = {"precision": precision, "unseen": self.unseen, "onnx": self._onnx.path}
                    error = export_openvino(self.model, self.example, path, **options).max_error
                computed = "float32" if precision == "int8" else precision  # what int8 leaves is not rounded further
                run = on_tensors(OpenvinoModel(path, self.threads, computed))
                files = (path, path.with_suffix(".bin"))
            case _:
                path = folder / "model.pt2"
                report = export_torch(self.model, self.example, path, precision=precision, unseen=self.unseen)
                run, error, files = self._in_torch(report.program.module()), report.max_error, (path,)
        if precision == "int8":
            assert self.calibration is not None
            judgement = judge(reference(self.model), run, self.calibration, f"the int8 form for {runtime}")
        return Form(
            runtime=runtime,
            precision=precision,
            files=files,
            max_error=error,
            judgement=judgement,
            run=run,
            size_bytes=sum(file.stat().st_size for file in files),
        )

    @cached_property
    def _onnx(self) -> OnnxReport:
        path = self._folder("onnx", "float32") / "model.onnx"
        return export_onnx(self.model, self.example, path, unseen=self.unseen)

    @cached_property
    def _quantized(self) -> Path:
        if self.calibration is None:
            raise UsageError("int8 needs real pictures for its scales; name them with --calibrate")
        path = self._folder("onnx", "int8") / "model.onnx"
        quantize_onnx(self._onnx.path, path, self.calibration.images)
        check_file(path, "the int8 ONNX file")
        return path

    def _folder(self, runtime: str, precision: str) -> Path:
        path = self.folder / f"{runtime}-{precision}"
        path.mkdir(exist_ok=True)
        return path

    def _in_torch(self, module: nn.Module) -> Callable[[Tensor], Tensor]:
        def run(images: Tensor) -> Tensor:
            with torch.no_grad(), on_threads(self.threads):
                return module(images)

        return run
