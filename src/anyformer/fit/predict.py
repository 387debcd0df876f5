"""Classes of new pictures, from the folder of a fit alone; torch is neither needed nor imported."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anyformer.core.errors import AnyformerError
from anyformer.core.files import read_manifest
from anyformer.data.decode import decode
from anyformer.deploy.runtime import OnnxModel

BATCH = 64  # pictures at most in memory, and in one call


@dataclass(frozen=True)
class Prediction:
    """The class that a picture most likely shows, and the model's belief in it, the softmax of its logits."""

    file: str
    label: str
    score: float


def predict(folder: str | Path, files: Sequence[str | Path]) -> list[Prediction]:
    """One prediction for each file, in order.

    Pictures are decoded and normalised as they were for training, and run in batches through the exported model.

    Args:
        folder: What ``anyformer fit`` wrote; its files are checked against their digests first.
        files: Pictures of any size.

    Raises:
        UsageError: a file cannot be read as a picture, or Pillow or ONNX Runtime is not installed.
        AnyformerError: the folder or one of its files is missing, damaged or no result of a fit.
    """
    folder = Path(folder)
    data, classes = _description(folder)
    model = OnnxModel(folder / "model.onnx")
    predictions: list[Prediction] = []
    for start in range(0, len(files), BATCH):
        some = files[start : start + BATCH]
        images = np.stack([decode(Path(file), data["size"][0], data["channels"]) for file in some])
        scores = softmax(model(normalize(images, data)))
        if scores.shape[1] != len(classes):
            raise AnyformerError(
                f"{folder} has {len(classes)} classes in config.json and {scores.shape[1]} in model.onnx; fit again"
            )
        predictions += [
            Prediction(str(file), classes[row.argmax()], float(row.max()))
            for file, row in zip(some, scores, strict=True)
        ]
    return predictions


def normalize(images: np.ndarray, data_config: dict[str, Any]) -> np.ndarray:
    """What ``data.batches.normalize`` gives, to the bit: uint8 ``(batch, channels, height, width)`` to float32."""
    mean, std = (np.array(data_config[name], np.float32)[:, None, None] for name in ("mean", "std"))
    return (images.astype(np.float32) / np.float32(255) - mean) / std


def softmax(logits: np.ndarray) -> np.ndarray:
    """Scores ``(batch, classes)`` that sum to one, in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _description(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The data configuration and the names of the classes."""
    contents = read_manifest(folder, ("config.json", "model.onnx"))
    data = json.loads(contents["config.json"]).get("data_config") or {}
    missing = [name for name in ("mean", "std", "size", "channels", "classes") if name not in data]
    if missing:
        raise AnyformerError(
            f"{folder / 'config.json'} says nothing of {', '.join(missing)}; give a folder that `anyformer fit` wrote"
        )
    return data, data["classes"]
