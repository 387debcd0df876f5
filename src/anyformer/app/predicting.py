"""``anyformer predict``: classes, labels or numbers of pictures, classes of texts."""

import json
from dataclasses import asdict
from pathlib import Path

from anyformer.fit.predict import Labels, Numbers, Prediction, predict


def print_predictions(folder: Path, images: list[Path], as_json: bool, runtime: str | None = None) -> None:
    """Print one line a file, or a JSON list."""
    predictions = predict(folder, images, runtime)
    if as_json:
        print(json.dumps([asdict(prediction) for prediction in predictions], indent=1))
        return
    for prediction in predictions:
        print(_line(prediction))


def _line(prediction: Prediction | Labels | Numbers) -> str:
    match prediction:
        case Prediction(file, label, score):
            return f"{file}\t{label}\t{score:.4f}"
        case Labels(file, labels, scores):
            return "\t".join([file, *(f"{label} {scores[label]:.4f}" for label in labels)])
        case Numbers(file, values):
            return "\t".join([file, *(f"{name} {value:.6g}" for name, value in values.items())])
