"""The runtimes that a fit measures in and a prediction runs in; torch is imported for its own runtime alone."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from anyformer.core.errors import UsageError, nearest
from anyformer.deploy.runtime import OnnxModel, OpenvinoModel

if TYPE_CHECKING:
    from torch import nn

RUNTIMES = {"onnx": "onnxruntime", "openvino": "openvino", "eager": "torch"}  # and what reports call them

Run = Callable[[np.ndarray], np.ndarray]


def check_runtime(runtime: str) -> str:
    """The runtime itself. Raises UsageError for one that is unknown or not installed."""
    if runtime not in RUNTIMES:
        known = ", ".join(RUNTIMES)
        raise UsageError(f"there is no runtime {runtime!r}; known: {known}{nearest(runtime, RUNTIMES)}")
    if runtime != "eager":
        from anyformer.deploy.runtime import available

        if runtime not in available():
            extra = "openvino" if runtime == "openvino" else "fit"
            raise UsageError(f'runtime {runtime} is not installed; run `pip install "anyformer[{extra}]"`')
    return runtime


def open_model(folder: Path, runtime: str = "onnx", file: str = "model.onnx") -> Run:
    """The model of a fitted folder as a function: float32 images ``(batch, channels, height, width)`` to outputs.

    Args:
        folder: that a fit wrote.
        runtime: one of ``RUNTIMES``; ``eager`` reads the weights, the others the exported file.
        file: the exported file.

    Raises:
        UsageError: the runtime is unknown or not installed.
        AnyformerError: a file is missing or damaged.
    """
    check_runtime(runtime)
    if runtime == "eager":
        from anyformer.core.store import from_pretrained

        return as_function(from_pretrained(folder))
    return open_file(folder / file, runtime)


def open_file(path: Path, runtime: str) -> Run:
    """An exported file in a runtime."""
    return OpenvinoModel(path) if runtime == "openvino" else OnnxModel(path)


def as_function(model: "nn.Module") -> Run:
    """A torch model in evaluation mode as a function of arrays."""
    import torch

    module = model.eval()

    def run(images: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(images)).numpy()

    return run
