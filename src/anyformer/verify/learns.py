"""Level "learns": a real training run on real data beats a baseline by a margin that was fixed before."""

import math
import statistics

import torch

from anyformer.core import registry
from anyformer.core.errors import UsageError
from anyformer.core.store import create_model
from anyformer.data.batches import Batches, data_config
from anyformer.data.images import ImageSet
from anyformer.data.seeds import derive_seed
from anyformer.data.split import split
from anyformer.train.classification import Classification, accuracy, predict_logits
from anyformer.train.loop import Role, Trainer
from anyformer.train.schedule import WarmupCosine, adamw
from anyformer.verify.evidence import Evidence
from anyformer.verify.tasks import TASKS, Task

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
    data = task.data()
    pairs = [paired_run(name, task, data, seed) for seed in task.seeds]
    differences = [ours - theirs for ours, theirs in pairs]
    low, high = interval(differences)
    figures = {
        "accuracy": [ours for ours, _ in pairs],
        "baseline": [theirs for _, theirs in pairs],
        "mean_difference": statistics.fmean(differences),
        "interval": [low, high],
        "margin": task.margin,
    }
    reached = low > task.margin
    failure = f"it beats the baseline by at least {low:.4f} in accuracy, not by more than {task.margin}"
    return Evidence(figures, () if reached else (failure,), task.seeds)


def interval(differences: list[float]) -> tuple[float, float]:
    """The 95 % interval of the mean of paired differences, two to ten of them, by Student's t."""
    half = QUANTILES[len(differences) - 1] * statistics.stdev(differences) / math.sqrt(len(differences))
    mean = statistics.fmean(differences)
    return mean - half, mean + half


def paired_run(name: str, task: Task, data: ImageSet, seed: int) -> tuple[float, float]:
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
