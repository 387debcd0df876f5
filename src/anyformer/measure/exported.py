"""A folder that ``anyformer export`` wrote, as something to measure: its runtime, precision and size are settled."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.core.files import read_manifest

RECORD = "export.json"


@dataclass(frozen=True)
class Exported:
    """An exported model by where it lies.

    Attributes:
        source: The folder.
        name: What it is called in tables.
        runtime: What it was exported for.
        precision: What its products are computed in.
        file: The file that the runtime opens.
        shape: Channels, height and width of its images.
    """

    source: str
    name: str
    runtime: str
    precision: str
    file: Path
    shape: tuple[int, int, int]

    @classmethod
    def of(cls, folder: str | Path) -> Exported:
        """What an export recorded, after its files have been compared with their digests.

        Raises:
            UsageError: It is a torch program, which could run code of whoever wrote it while it is read.
            AnyformerError: A file is missing or damaged.
        """
        from anyformer.deploy.forms import FORMS

        path = Path(folder)
        try:
            record = json.loads(read_manifest(path, (RECORD,))[RECORD])
            runtime, precision, files = record["runtime"], record["precision"], record["files"]
            channels, height, width = map(int, record["input"]["shape"][1:])
            if runtime not in FORMS or any(Path(name).name != name for name in files):
                raise ValueError("a runtime or a place that no export has")
            read_manifest(path, tuple(files))
            file = path / next(name for name in files if not name.endswith(".bin"))
        except (ValueError, KeyError, TypeError, StopIteration) as error:
            raise AnyformerError(f"{path / RECORD} is no record of an export; export the model again") from error
        if runtime == "torch":
            raise UsageError(
                f"{file} is not opened here: reading a torch program can run code that it holds. Measure the model that it was "
                f'exported from, or open it yourself where you trust it: torch.export.load("{file}").module()'
            )
        return cls(str(path), str(path), runtime, precision, file, (channels, height, width))

    def images(self, batch: int, size: tuple[int, int] | None) -> Tensor:
        """Random images, always the same, of the size that was exported for. Raises UsageError for another."""
        _, *own = self.shape
        if size not in (None, tuple(own)):
            raise UsageError(f"{self.name} was exported for images of {own[0]} x {own[1]}; export it again for others")
        return torch.randn(batch, *self.shape, generator=torch.Generator().manual_seed(0))

    def form(self, threads: int) -> Callable[[Tensor], Tensor]:
        """The model in its runtime, as a function of images that gives scores."""
        from anyformer.deploy.onnx import on_tensors
        from anyformer.deploy.runtime import OnnxModel, OpenvinoModel

        if self.runtime == "onnx":
            return on_tensors(OnnxModel(self.file, threads))
        computed = "bfloat16" if self.precision == "bfloat16" else "float32"  # what int8 leaves is not rounded further
        return on_tensors(OpenvinoModel(self.file, threads, computed))


def is_export(folder: str | Path) -> bool:
    """Whether a folder was written by ``anyformer export``."""
    return Path(folder, RECORD).is_file()
