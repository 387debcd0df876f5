"""Level "learns": a real training run on real data beats a baseline by a margin that was fixed before."""

import math
import statistics
from typing import Any

import numpy as np
import torch

from anyformer.core import registry
from anyformer.core.errors import UsageError
from anyformer.core.store import create_model
from anyformer.data.batches import Batches, data_config
from anyformer.data.images import ImageSet
from anyformer.data.seeds import derive_seed
from anyformer.data.split import split
from anyformer.data.text import TextBatches, encode
from anyformer.data.tokenizers import ByteTokenizer
from anyformer.train.classification import Classification, accuracy, predict_logits
from anyformer.train.language import NextToken, likelihood
from anyformer.train.loop import Role, Trainer
from anyformer.train.ngram import ByteNGram
from anyformer.train.schedule import WarmupCosine, adamw
from anyformer.verify.evidence import Evidence
from anyformer.verify.tasks import TASKS, PictureTask, TextTask

# The 97.5 % point of Student's t by degrees of freedom, for two-sided 95 % intervals of few runs.
QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def learns(name: str) -> Evidence:
    """Train a model on its field's task, once a seed, and hold it against the baseline by the task's rule.

    Raises:
        UsageError: There is no task for the field, or scikit-learn is not installed.
    """
    field = registry.system_of(name).field
    if field not in TASKS:
        raise UsageError(f"there is no task for the field {field!r} of {name}; known: {', '.join(TASKS)}")
    task = TASKS[field]
    if isinstance(task, TextTask):
        measure, pairs = "bits_per_byte", [paired_text_run(name, task, seed) for seed in task.seeds]
        differences = [theirs - ours for ours, theirs in pairs]
    else:
        data = task.data()
        measure, pairs = "accuracy", [paired_run(name, task, data, seed) for seed in task.seeds]
        differences = [ours - theirs for ours, theirs in pairs]
    low, high = interval(differences)
    figures = {
        measure: [ours for ours, _ in pairs],
        "baseline": [theirs for _, theirs in pairs],
        "mean_difference": statistics.fmean(differences),
        "interval": [low, high],
        "margin": task.margin,
    }
    reached = low > task.margin
    failure = (
        f"it beats the baseline by at least {low:.4f} in {measure.replace('_', ' ')}, not by more than {task.margin}"
    )
    return Evidence(figures, () if reached else (failure,), task.seeds)


def interval(differences: list[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of paired differences, two to ten of them, by Student's t."""
    half = QUANTILES[len(differences) - 1] * statistics.stdev(differences) / math.sqrt(len(differences))
    mean = statistics.fmean(differences)
    return mean - half, mean + half


def paired_run(name: str, task: PictureTask, data: ImageSet, seed: int) -> tuple[float, float]:
    """The accuracies on one division of the data: of a model trained on it, and of the baseline."""
    parts = split(data.labels, seed)
    images, labels = data.images[parts.train], data.labels[parts.train]
    test, truth = data.images[parts.test], data.labels[parts.test]
    config = data_config(images)
    batches = Batches(images, labels, config, size=task.batch, seed=seed, augmentation=task.augmentation)
    steps = task.epochs * batches.epoch_steps
    torch.manual_seed(derive_seed(seed, "weights"))
    model = create_model(name, **task.model)
    schedule = WarmupCosine(steps=steps, warmup=int(task.warmup * steps))
    student = Role(model, adamw(model, task.learning_rate, task.weight_decay), schedule)
    Trainer({"student": student}, Classification(smoothing=task.smoothing), batches, seed=seed).run(steps)
    ours = accuracy(predict_logits(model, test, config), truth)
    baseline = (task.baseline(images, labels, test) == truth).double().mean().item()
    return ours, baseline


def paired_text_run(name: str, task: TextTask, seed: int) -> tuple[float, float]:
    """The bits per byte on one division of the text: of a model trained on it, and of the baseline."""
    train, _, test = (encode(part, ByteTokenizer()) for part in task.text().divide(seed))
    batches = TextBatches(train, context=task.context, size=task.batch, seed=seed)
    torch.manual_seed(derive_seed(seed, "weights"))
    model: Any = create_model(name)
    schedule = WarmupCosine(steps=task.steps, warmup=int(task.warmup * task.steps))
    student = Role(model, adamw(model, task.learning_rate, task.weight_decay), schedule)
    Trainer({"student": student}, NextToken(), batches, seed=seed).run(task.steps)
    ours = likelihood(model, test, context=task.context, chunk=task.context, batch=64, limit=task.tested)
    read = test.read(0, ours.tokens + 1).astype(np.uint8)
    probabilities = ByteNGram(train.read(0, train.count).astype(np.uint8), task.order).probabilities(read)
    return ours.bits_per_byte, float(-np.log2(probabilities[1:]).mean())
