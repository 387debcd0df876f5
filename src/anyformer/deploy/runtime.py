"""The runtimes of this machine: exported files as functions of arrays, and any model as a function of tensors.

Neither importing this module nor running an exported file imports torch.
"""

import os
import shutil
import sys
import sysconfig
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from anyformer.core.errors import AnyformerError, UsageError, nearest

if TYPE_CHECKING:
    from torch import Tensor, nn

RUNTIMES = ("eager", "compiled", "onnx", "openvino")
PRECISIONS = ("float32", "bfloat16")


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
        _check(images, self._input.shape, self.path)
        (logits,) = self._session.run(None, {self._input.name: images})
        return np.asarray(logits)


class OpenvinoModel:
    """A model in OpenVINO on the CPU, as a function like ``OnnxModel``.

    Args:
        path: the ``.xml`` file that ``export_openvino`` wrote, its ``.bin`` beside it; or an ONNX file.
        threads: threads that one call may use; every core this process may run on when None.
        precision: what products are computed in, ``"float32"`` or ``"bfloat16"``. OpenVINO's own choice would be the
            second wherever the processor has it, with errors of a few percent, so it is told.

    Raises:
        UsageError: there is no such file, OpenVINO is not installed, or this processor lacks the precision.
        AnyformerError: the file is not a model that OpenVINO can load.
    """

    def __init__(self, path: str | Path, threads: int | None = None, precision: str = "float32") -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UsageError(f"there is no OpenVINO or ONNX file {self.path}")
        try:
            core = load_openvino().Core()
        except ModuleNotFoundError as error:
            raise UsageError('OpenVINO is not installed; run `pip install "anyformer[openvino]"`') from error
        if precision == "bfloat16" and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            raise UsageError("this processor has no bfloat16 in OpenVINO; choose float32")
        settings = {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[precision],
            "INFERENCE_NUM_THREADS": available_cores() if threads is None else threads,
            "PERFORMANCE_HINT": "LATENCY",
        }
        try:
            self._compiled: Any = core.compile_model(core.read_model(self.path), "CPU", settings)
        except Exception as error:  # every kind of failure is a RuntimeError of several lines
            raise AnyformerError(f"OpenVINO cannot load {self.path}: {_first_line(error)}") from error
        sizes = self._compiled.input(0).partial_shape
        self._shape = [size.get_length() if size.is_static else "batch" for size in sizes]

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Logits of a batch.

        Raises:
            UsageError: the array is not float32, or not of the size the model was exported for.
        """
        _check(images, self._shape, self.path)
        return np.array(self._compiled(images)[0])  # a copy: the runtime's own memory is used again by the next call


def available() -> tuple[str, ...]:
    """The runtimes that can be used here, of ``RUNTIMES``."""
    return tuple(runtime for runtime in RUNTIMES if not _obstacle(runtime))


def runner(
    model: "nn.Module",
    runtime: str,
    example: "Tensor",
    *,
    precision: str = "float32",
    threads: int | None = None,
) -> "Callable[[Tensor], Tensor]":
    """A copy of a model in a runtime, as a function of float32 images that gives float32 logits.

    The function stands alone: what happens to the model afterwards does not change it. Making one takes seconds for
    ``"onnx"`` and ``"openvino"``, whose outputs are compared with the model's first, and up to minutes for ``"compiled"``.

    Args:
        model: maps images ``(batch, channels, height, width)`` to logits ``(batch, classes)``.
        runtime: one of ``RUNTIMES``.
        example: float32 images of the size to come, at least one. Any batch size can be run; ``"compiled"`` compiles
            anew for the first that differs.
        precision: what products are computed in: ``"float32"`` or ``"bfloat16"``, which ONNX Runtime lacks on a CPU.
        threads: threads that one call may use. When None: as many as torch uses for the first two runtimes, every core
            this process may run on for the others.

    Raises:
        UsageError: the runtime, the precision or the images cannot be; it names the extra or compiler that is missing.
        AnyformerError: the model cannot be translated for the runtime.
    """
    if runtime not in RUNTIMES:
        raise UsageError(f"there is no runtime {runtime!r}; known: {', '.join(RUNTIMES)}{nearest(runtime, RUNTIMES)}")
    if precision not in PRECISIONS:
        raise UsageError(f"a runner computes in {' or '.join(PRECISIONS)}, not in {precision!r}")
    if (runtime, precision) == ("onnx", "bfloat16"):
        raise UsageError("ONNX Runtime computes in no bfloat16 on a CPU; choose float32 or another runtime")
    obstacle = _obstacle(runtime)
    if obstacle:
        raise UsageError(f"runtime {runtime}: {obstacle}")
    import torch

    from anyformer.deploy import eager
    from anyformer.deploy.onnx import export_onnx

    if runtime in ("eager", "compiled"):
        return eager.runner(model, example, compiled=runtime == "compiled", precision=precision, threads=threads)
    with TemporaryDirectory() as folder:
        path = export_onnx(model, example, Path(folder, "model.onnx"), unseen=12).path
        session = OnnxModel(path, threads) if runtime == "onnx" else OpenvinoModel(path, threads, precision)
    return lambda images: torch.from_numpy(session(images.numpy()))


def _obstacle(runtime: str) -> str:
    """Why a runtime cannot be used here; "" when it can."""
    if runtime == "compiled":
        return _compiler_obstacle()
    try:
        if runtime in ("onnx", "openvino"):
            import onnx  # noqa: F401 - only whether it is there
            import onnxruntime  # noqa: F401 - only whether it is there
            import onnxscript  # noqa: F401 - only whether it is there
        if runtime == "openvino":
            load_openvino()
    except ModuleNotFoundError as error:
        extra = "openvino" if error.name == "openvino" else "fit"
        return f'{error.name} is not installed; run `pip install "anyformer[{extra}]"`'
    return ""


def _compiler_obstacle() -> str:
    compiler = os.environ.get("CXX") or "g++"
    if not shutil.which(compiler):
        return f"no C++ compiler {compiler} is found; install one (Debian: apt install g++), or name it in CXX"
    if not Path(sysconfig.get_paths()["include"], "Python.h").is_file():
        return "Python's C headers are missing; install them (Debian: apt install python3-dev)"
    return ""


def load_openvino() -> Any:
    """The module ``openvino``, without its telemetry, which would report the import to its maker's server.

    Raises:
        ModuleNotFoundError: it is not installed.
    """
    telemetry = "openvino_telemetry"
    before = sys.modules.get(telemetry)
    sys.modules[telemetry] = None  # type: ignore[assignment]  # as if not installed: OpenVINO works without
    try:
        import openvino
    finally:
        del sys.modules[telemetry]
        if before is not None:
            sys.modules[telemetry] = before
    return openvino


def _check(images: np.ndarray, expected: Sequence[int | str], path: Path) -> None:
    fits = images.ndim == len(expected) and all(
        size == want for size, want in zip(images.shape, expected, strict=True) if isinstance(want, int)
    )
    if images.dtype != np.float32 or not fits:
        sizes = ", ".join(map(str, expected))
        raise UsageError(f"{path.name} takes float32 images of size ({sizes}), not {images.dtype} {images.shape}")


def available_cores() -> int:
    """The number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
