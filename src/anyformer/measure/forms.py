"""A model as a function in any runtime and precision, to be measured: its speed and memory, not its scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

from anyformer.core.errors import UsageError, nearest

SCALES = 16  # images that int8 takes its scales from
RANDOM_SCALES = "int8 has its scales from random images, so its error says nothing; `anyformer export` takes real ones"


def check(runtime: str, precision: str) -> None:
    """Raise UsageError for what is known to no runtime."""
    from anyformer.deploy.forms import PRECISIONS
    from anyformer.deploy.runtime import RUNTIMES

    for what, given, known in (("runtime", runtime, RUNTIMES), ("precision", precision, PRECISIONS)):
        if given not in known:
            raise UsageError(f"there is no {what} {given!r}; known: {', '.join(known)}{nearest(given, known)}")


def form(model: nn.Module, runtime: str, example: Tensor, precision: str, threads: int) -> Callable[[Tensor], Tensor]:
    """A copy of a model as a function of images that gives scores.

    Args:
        model: Images to scores.
        runtime: Of ``anyformer.deploy.runtime.RUNTIMES``.
        example: Images of the size and batch to come.
        precision: Of ``anyformer.deploy.forms.PRECISIONS``.
        threads: Threads that a call may use.

    Raises:
        UsageError: The runtime is not installed, or lacks the precision.
        AnyformerError: The model cannot be brought into this form.
    """
    from anyformer.deploy.forms import Writer
    from anyformer.deploy.quantize import Calibration
    from anyformer.deploy.runtime import OnnxModel, OpenvinoModel, runner

    if precision != "int8":
        return runner(model, runtime, example, precision=precision, threads=threads)
    if runtime not in ("onnx", "openvino"):
        raise UsageError("torch runs no int8 here; choose the runtime onnx or openvino")
    generator = torch.Generator().manual_seed(1)
    random = torch.randn(SCALES, *example.shape[1:], generator=generator)
    calibration = Calibration(images=random, held_out=random, max_loss=100)
    with TemporaryDirectory(prefix="anyformer-measure-") as folder:
        writer = Writer(model, example, Path(folder), unseen=12, calibration=calibration, threads=threads)
        file = writer.write(runtime, precision).files[0]
        # A session of its own: the writer's has been run, and keeps the memory that it needed.
        session = OnnxModel(file, threads) if runtime == "onnx" else OpenvinoModel(file, threads)
    return lambda images: torch.from_numpy(session(images.numpy()))
