"""Level "learns": a real training run on real data beats a baseline by a margin that was fixed before."""

import math
import statistics
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anyformer.core import registry
from anyformer.core.errors import UsageError
from anyformer.core.store import create_model
from anyformer.data.batches import Batches, data_config
from anyformer.data.images import ImageSet
from anyformer.data.seeds import derive_seed
from anyformer.data.split import split
from anyformer.data.text import TextBatches, encode
from anyformer.data.tokenizers import ByteTokenizer
from anyformer.parts.embeds.token_table import Tokens
from anyformer.train.classification import Classification, accuracy, predict_logits
from anyformer.train.language import NextToken, likelihood
from anyformer.train.loop import Role, Trainer
from anyformer.train.ngram import ByteNGram
from anyformer.train.schedule import WarmupCosine, adamw
from anyformer.verify.evidence import Evidence
from anyformer.verify.tasks import TASKS, Labels, PictureTask, SequenceTask, TextTask

# The 97.5 % point of Student's t by degrees of freedom, for two-sided 95 % intervals of few runs.
QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
TOGETHER = 100  # sequences in one evaluation


def learns(name: str) -> Evidence:
    """Train a model on its field's task, once a seed, and hold it against the baseline by the task's rule.

    Raises:
        UsageError: There is no task for the field, or scikit-learn is not installed.
    """
    field = registry.system_of(name).field
    if field not in TASKS:
        raise UsageError(f"there is no task for the field {field!r} of {name}; known: {', '.join(TASKS)}")
    task, beside = TASKS[field], dict[str, Any]()
    if isinstance(task, SequenceTask):
        measure, (pairs, beside) = "accuracy", sequence_runs(name, task)
        differences = [ours - theirs for ours, theirs in pairs]
    elif isinstance(task, TextTask):
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
        **beside,
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


def sequence_runs(name: str, task: SequenceTask) -> tuple[list[tuple[float, float]], dict[str, Any]]:
    """The accuracies of model and baseline, once a seed, and what is known beside them: other baselines and the sweep."""
    rates = swept(name, task)
    best = max(rates, key=lambda rate: rates[rate])
    pairs = [(sequence_run(name, task, seed, best), judged(task.baseline, task, seed)) for seed in task.seeds]
    others = {what: [judged(labels, task, seed) for seed in task.seeds] for what, labels in task.beside.items()}
    return pairs, {**others, "learning_rate": best, "swept": {str(rate): found for rate, found in rates.items()}}


def swept(name: str, task: SequenceTask) -> dict[float, float]:
    """By learning rate, the mean accuracy of models on validation sequences of the seeds that choose among the rates."""
    return {
        rate: statistics.fmean(sequence_run(name, task, seed, rate, "validation") for seed in task.swept)
        for rate in task.learning_rates
    }


def sequence_run(name: str, task: SequenceTask, seed: int, learning_rate: float, part: str = "test") -> float:
    """The accuracy on a part of the sequences of a seed, of a model that was trained on others of it."""
    torch.manual_seed(derive_seed(seed, "weights"))
    model: Any = create_model(name, num_classes=task.data.classes, vocabulary=task.data.vocabulary)
    schedule = WarmupCosine(steps=task.steps, warmup=int(task.warmup * task.steps))
    student = Role(model, adamw(model, learning_rate, task.weight_decay), schedule)
    batches = replace(task.data, seed=derive_seed(seed, "train"))
    Trainer({"student": student}, Classification(smoothing=0.0), batches, seed=seed).run(task.steps)
    rows, labels = _sequences(task, task.tested, seed, part)
    model.eval()
    pieces = torch.arange(len(labels)).split(TOGETHER)
    with torch.no_grad():
        scores = [model(Tokens(rows.ids[some], None if rows.keep is None else rows.keep[some])) for some in pieces]
    return accuracy(torch.cat(scores), labels)


def judged(labels_of: Labels, task: SequenceTask, seed: int) -> float:
    """The accuracy of a baseline on the test sequences of a seed."""
    (rows, labels), (test, truth) = (
        _sequences(task, count, seed, part) for count, part in ((task.counted, "train"), (task.tested, "test"))
    )
    return (labels_of(rows, labels, test) == truth).double().mean().item()


def _sequences(task: SequenceTask, count: int, seed: int, part: str) -> tuple[Tokens, Tensor]:
    """The first sequences of a part, and their classes."""
    batch: Any = replace(task.data, size=count, seed=derive_seed(seed, part))(0)
    return batch.images, batch.labels
