"""What is measured: a model of the catalogue, a folder, or a model at hand, at any size of its input."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from anyformer.core import registry
from anyformer.core.errors import UsageError, shown
from anyformer.core.model import Model
from anyformer.core.store import adapt, create_model, from_pretrained


@dataclass(frozen=True)
class Subject:
    """A model by where it comes from.

    Attributes:
        source: A name of the catalogue, or a folder that ``save_pretrained`` or ``anyformer fit`` wrote.
        name: What it is called in tables.
    """

    source: str
    name: str

    @classmethod
    def of(cls, source: str | Path) -> Subject:
        """A subject whose name or folder is known to be there.

        Raises:
            UsageError: There is neither a folder nor a model of that name (with the nearest), or it is a file.
        """
        text = str(source)
        if Path(text).is_file():
            raise UsageError(f"{text} is a file; give the folder that it was saved, fitted or exported into, whole")
        if Path(text).is_dir():
            return cls(text, text)
        registry.system_of(text)
        return cls(text, text)

    def model(self, size: tuple[int, int] | None = None) -> Model:
        """The model in evaluation mode, for images of this height and width; of its own size when None.

        A hybrid is taken as it is: whether it takes images of that size, it says when it is run.

        Raises:
            UsageError: The model takes no images, or none of this size.
            AnyformerError: The folder is damaged.
        """
        if not Path(self.source).is_dir():
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                options: dict[str, Any] = {} if size is None else {"img_size": size}
                model: Any = create_model(self.source, **options)
            return model.eval()
        model = from_pretrained(self.source)
        kept = not model.model_name or size in (None, size_of(model))
        return (model if kept else adapt(model, img_size=size)).eval()


def size_of(model: nn.Module) -> tuple[int, int]:
    """Height and width of the images that a model is made for.

    Raises:
        UsageError: Its data configuration has no size.
    """
    size = getattr(model, "data_config", {}).get("size")
    if size is None:
        raise UsageError(f"{type(model).__name__} does not say which images it takes; give an example")
    height, width = size
    return height, width


def images(model: nn.Module, batch: int, size: tuple[int, int]) -> Tensor:
    """Random images, always the same, ``(batch, channels, *size)``."""
    channels = getattr(model, "data_config", {}).get("channels", 3)
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(0))


class AtHand:
    """A model in memory, laid into a folder of its own for as long as it is measured."""

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, Model):
            raise UsageError(f"measure takes a model of ours, a name or a folder, not {shown(type(model).__name__)}")
        self.held = model
        self.folder = TemporaryDirectory(prefix="anyformer-measure-")

    def __enter__(self) -> Subject:
        path = Path(self.folder.name, "model")
        self.held.save_pretrained(path)
        return Subject(str(path), self.held.model_name or type(self.held).__name__)

    def __exit__(self, *_: object) -> None:
        self.folder.cleanup()
