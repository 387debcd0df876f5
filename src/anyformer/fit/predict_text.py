"""Classes of new texts, from the folder of a fit alone."""

from collections.abc import Sequence
from pathlib import Path

import torch

from anyformer.core.errors import UsageError
from anyformer.core.store import from_pretrained
from anyformer.data.decode import regular
from anyformer.data.labelled_text import MOST_BYTES, padded
from anyformer.data.tokenizers import tokenizer
from anyformer.fit.predict import Prediction

BATCH = 32  # texts at a time


def predict_texts(folder: Path, files: Sequence[str | Path], runtime: str | None) -> list[Prediction]:
    """One prediction for each file, in order, from as much of its beginning as was read in training.

    Raises:
        UsageError: a file cannot be read or is empty, the folder holds a language model, or another runtime is asked for.
        AnyformerError: the folder is damaged.
    """
    if runtime not in (None, "eager"):
        raise UsageError(f"classifiers of text run in torch, not in {runtime}; leave --runtime out")
    model = from_pretrained(folder)
    classes, most = model.data_config.get("classes"), model.data_config.get("longest")
    if classes is None or most is None:
        raise UsageError(f"{folder} holds a language model; go on from a prompt by `anyformer generate {folder}`")
    words = tokenizer(model.data_config["tokenizer"], folder)
    predictions: list[Prediction] = []
    for start in range(0, len(files), BATCH):
        some, texts = files[start : start + BATCH], []
        for file in some:
            with regular(Path(file)) as opened:
                texts.append(words.encode(opened.read(MOST_BYTES * most))[:most])
        with torch.inference_mode():
            beliefs = model(padded(texts)).double().softmax(-1)
        for file, row in zip(some, beliefs, strict=True):
            predictions.append(Prediction(str(file), classes[int(row.argmax())], float(row.max())))
    return predictions
