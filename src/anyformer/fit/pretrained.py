"""Pretrained weights for candidates: found in a folder or on the hub, and adapted to the pictures at hand."""

import os
from pathlib import Path
from typing import Any, cast

from anyformer.core import registry
from anyformer.core.errors import AnyformerError, UsageError
from anyformer.core.foreign import read_tensors
from anyformer.core.model import Model
from anyformer.core.store import adapt, create_model, from_pretrained, load_weights

HUB = "hub:"
HEADS = ("head.bias", "head.fc.bias", "classifier.bias", "fc.bias")  # how timm names what has one number a class


class Weights:
    """Where candidates may start from: a folder, or a repository of the Hugging Face hub, fetched when it is asked for.

    Either holds folders that ``save_pretrained`` wrote, each named as its model, or files ``NAME.safetensors`` in timm's
    names; or it is one such folder; or, on the hub, it is named as one model (``owner/NAME.tag``) and holds its
    ``model.safetensors`` in timm's names. A hub that cannot be reached is no error: candidates then start fresh, and
    ``reason`` says why.

    Args:
        source: the folder, or ``hub:owner/repository``.

    Raises:
        UsageError: there is no such folder, the name is no repository's, or huggingface_hub is not installed.
    """

    def __init__(self, source: str) -> None:
        self.source, self.unreachable = source, ""
        self.places: dict[str, Path] = {}
        if source.startswith(HUB):
            self._fetch(source.removeprefix(HUB))
            return
        folder = Path(source)
        if not folder.is_dir():
            raise UsageError(f"there is no folder {source} of weights; give one, or hub:owner/repository")
        self._look_in(folder)

    @property
    def names(self) -> tuple[str, ...]:
        """The models of which there are weights."""
        return tuple(self.places)

    def reason(self, name: str) -> str:
        """Why a candidate that there are no weights of starts fresh."""
        return self.unreachable or f"{self.source} has no {name}/ and no {name}.safetensors"

    def start(self, name: str, options: dict[str, Any]) -> Model:
        """A model with the pretrained weights, adapted to other pictures and classes; fresh only in its head.

        Raises:
            AnyformerError: the weights cannot be read, or are not those of this model.
        """
        path = self.places[name]
        if path.is_dir():
            model = from_pretrained(path)
        else:
            tensors = read_tensors(path)
            classes = next((len(tensors[key]) for key in HEADS if key in tensors), 1000)
            model = cast(Model, create_model(name, num_classes=classes))
            load_weights(model, tensors, format="timm")
        return adapt(model, **options).train()

    def _look_in(self, folder: Path) -> None:
        if (folder / "config.json").is_file() and (folder / "model.safetensors").is_file():
            self.places[from_pretrained(folder).model_name or folder.name] = folder
            return
        for name in registry.model_names():
            for path in (folder / name, folder / f"{name}.safetensors"):
                if path.exists():
                    self.places.setdefault(name, path)

    def _fetch(self, repository: str) -> None:
        if repository.count("/") != 1:
            raise UsageError(f"{HUB}{repository} names no repository; write hub:owner/repository, as the hub does")
        os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
        try:
            from huggingface_hub import snapshot_download
        except ImportError:
            raise UsageError('weights from the hub need huggingface_hub: pip install "anyformer[hub]"') from None
        try:
            folder = Path(snapshot_download(repository, allow_patterns=["*.safetensors", "*.json"]))
        except Exception as error:  # the client and its transport raise unrelated kinds
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            self.unreachable = f"{HUB}{repository} cannot be reached ({first.rstrip('.')})"
            return
        name = repository.partition("/")[2].partition(".")[0]
        if name in registry.model_names() and (folder / "model.safetensors").is_file():
            self.places[name] = folder / "model.safetensors"
            return
        try:
            self._look_in(folder)
        except AnyformerError as error:
            self.unreachable = str(error)
