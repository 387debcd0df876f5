"""An exported model in ONNX Runtime: arrays of images in, logits out."""

import os
from pathlib import Path

import numpy as np

from anyformer.core.errors import AnyformerError, UsageError


class OnnxModel:
    """An ONNX file as a function: float32 images ``(batch, channels, height, width)`` to logits ``(batch, classes)``.

    Args:
        path: the file that ``export_onnx`` wrote.
        threads: threads that one call may use; every core this process may run on when None.

    Raises:
        UsageError: there is no such file, or ONNX Runtime is not installed.
        AnyformerError: the file is not a model that ONNX Runtime can load.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UsageError(f"there is no ONNX file {self.path}")
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise UsageError('ONNX Runtime is not installed; run `pip install "anyformer[fit]"`') from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = available_cores() if threads is None else threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what matters is raised; the log would only repeat it
        try:
            self._session = onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the binding has an exception class for each status, without a common base
            raise AnyformerError(f"ONNX Runtime cannot load {self.path}: {_first_line(error)}") from error
        (self._input,) = self._session.get_inputs()

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Logits of a batch.

        Raises:
            UsageError: the array is not float32, or not of the size the model was exported for.
        """
        expected = self._input.shape
        fits = images.ndim == len(expected) and all(
            size == want for size, want in zip(images.shape, expected, strict=True) if isinstance(want, int)
        )
        if images.dtype != np.float32 or not fits:
            sizes = ", ".join(map(str, expected))
            raise UsageError(
                f"{self.path.name} takes float32 images of size ({sizes}), not {images.dtype} {images.shape}"
            )
        (logits,) = self._session.run(None, {self._input.name: images})
        return np.asarray(logits)


def available_cores() -> int:
    """The number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
