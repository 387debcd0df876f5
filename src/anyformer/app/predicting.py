"""``anyformer predict``: classes and scores of pictures."""

import json
from dataclasses import asdict
from pathlib import Path

from anyformer.fit.predict import predict


def print_predictions(folder: Path, images: list[Path], as_json: bool) -> None:
    """Print one line a picture, or a JSON list."""
    predictions = predict(folder, images)
    if as_json:
        print(json.dumps([asdict(prediction) for prediction in predictions], indent=1))
        return
    for prediction in predictions:
        print(f"{prediction.file}\t{prediction.label}\t{prediction.score:.4f}")
