"""Classes, labels or numbers of new pictures, from the folder of a fit alone; torch is imported for its own runtime only.

Classes of texts are those of :mod:`anyformer.fit.predict_text`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anyformer.core.errors import AnyformerError
from anyformer.core.files import read_manifest
from anyformer.data.decode import decode
from anyformer.fit.runtimes import open_model

BATCH = 64  # pictures at most in memory, and in one call
THRESHOLD = 0.5  # of belief, from which a label is given


@dataclass(frozen=True)
class Prediction:
    """The class that a picture or a text most likely is of, and the model's belief in it, the softmax of its logits."""

    file: str
    label: str
    score: float


@dataclass(frozen=True)
class Labels:
    """The labels that a picture has, those with a belief of one half or more, and the belief in every one."""

    file: str
    labels: list[str]
    scores: dict[str, float]


@dataclass(frozen=True)
class Numbers:
    """The numbers of a picture, by the name of their column."""

    file: str
    values: dict[str, float]


def predict(
    folder: str | Path, files: Sequence[str | Path], runtime: str | None = None
) -> list[Prediction] | list[Labels] | list[Numbers]:
    """One prediction for each file, in order, of the kind that the model was fitted for.

    Pictures are decoded and normalised as they were for training, and run in batches through the exported model.

    Args:
        folder: What ``anyformer fit`` wrote; its files are checked against their digests first.
        files: Pictures of any size, or texts.
        runtime: "onnx", "openvino" or "eager"; the one that the fit was asked for when absent.

    Raises:
        UsageError: a file cannot be read as a picture or is an empty text, the folder holds a language model, or Pillow or
            the runtime is not installed.
        AnyformerError: the folder or one of its files is missing, damaged or no result of a fit.
    """
    folder = Path(folder)
    if "tokenizer" in _config(folder):
        from anyformer.fit.predict_text import predict_texts

        return predict_texts(folder, files, runtime)
    data, classes = _description(folder)
    run = open_model(folder, runtime or data.get("runtime", "onnx"), data.get("file", "model.onnx"))
    predictions: list[Any] = []
    for start in range(0, len(files), BATCH):
        some = files[start : start + BATCH]
        images = np.stack([decode(Path(file), data["size"][0], data["channels"]) for file in some])
        outputs = run(normalize(images, data))
        if outputs.shape[1] != len(classes):
            raise AnyformerError(
                f"{folder} has {len(classes)} classes in config.json and {outputs.shape[1]} in its model; fit again"
            )
        predictions += [_prediction(str(file), row, classes, data) for file, row in zip(some, outputs, strict=True)]
    return predictions


def _prediction(file: str, row: np.ndarray, classes: list[str], data: dict[str, Any]) -> Prediction | Labels | Numbers:
    match data.get("kind", "classes"):
        case "multilabel":
            scores = dict(zip(classes, (1 / (1 + np.exp(-row.astype(np.float64)))).tolist(), strict=True))
            return Labels(file, [name for name, score in scores.items() if score >= THRESHOLD], scores)
        case "regression":
            values = row.astype(np.float64) * np.array(data["spread"]) + np.array(data["center"])
            return Numbers(file, dict(zip(classes, values.tolist(), strict=True)))
        case _:
            scores = softmax(row[None])[0]
            return Prediction(file, classes[scores.argmax()], float(scores.max()))


def normalize(images: np.ndarray, data_config: dict[str, Any]) -> np.ndarray:
    """What ``data.batches.normalize`` gives, to the bit: uint8 ``(batch, channels, height, width)`` to float32."""
    mean, std = (np.array(data_config[name], np.float32)[:, None, None] for name in ("mean", "std"))
    return (images.astype(np.float32) / np.float32(255) - mean) / std


def softmax(logits: np.ndarray) -> np.ndarray:
    """Scores ``(batch, classes)`` that sum to one, in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _description(folder: Path) -> tuple[dict[str, Any], list[str]]:
    """The data configuration and the names of the classes, after the model's file has been checked, too."""
    data = _config(folder)
    missing = [name for name in ("mean", "std", "size", "channels", "classes") if name not in data]
    if missing:
        raise AnyformerError(
            f"{folder / 'config.json'} says nothing of {', '.join(missing)}; give a folder that `anyformer fit` wrote"
        )
    read_manifest(folder, (data.get("file", "model.onnx"),))
    return data, data["classes"]


def _config(folder: Path) -> dict[str, Any]:
    return json.loads(read_manifest(folder, ("config.json",))["config.json"]).get("data_config") or {}
