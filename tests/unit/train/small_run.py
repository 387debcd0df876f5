"""A run with everything that makes resuming hard: convolution, batch norm, dropout, averages, shuffling, augmentation."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from anyformer.data.augment import Augmentation
from anyformer.data.batches import Batches, data_config
from anyformer.train.checkpoint import Checkpoints
from anyformer.train.classification import Classification, accuracy, predict_logits
from anyformer.train.log import Log
from anyformer.train.loop import Role, Trainer
from anyformer.train.schedule import WarmupCosine, adamw

CHANCE = torch.Generator().manual_seed(0)
LABELS = torch.arange(50) % 3
IMAGES = (torch.randint(0, 128, (50, 1, 8, 8), generator=CHANCE) + 60 * LABELS[:, None, None, None]).to(torch.uint8)
CONFIG = {"model": "small", "seed": 3}


def make_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.GELU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(216, 3)
    ).to(memory_format=torch.channels_last)


def make_trainer(directory: Path | None = None, *, model_seed: int = 1, **changes: Any) -> Trainer:
    """The run, on the checkpoints of a directory; the model's seed matters only at step 0."""
    config = data_config(IMAGES)
    model = make_model(model_seed)
    arguments: dict[str, Any] = {
        "seed": 3,
        "ema": 0.9,
        "every": 6,
        "save_every": 5,
        "evaluate": lambda models: accuracy(predict_logits(models["student"], IMAGES, config), LABELS),
        "store": Checkpoints(directory, CONFIG) if directory else None,
        "log": Log(directory / "log.jsonl") if directory else None,
    }
    return Trainer(
        {"student": Role(model, adamw(model, 0.01), WarmupCosine(steps=40, warmup=5))},
        Classification(),
        Batches(IMAGES, LABELS, config, size=8, seed=3, augmentation=Augmentation()),
        **(arguments | changes),
    )


def outcome(trainer: Trainer) -> dict[str, Any]:
    """All that a run has made, without what the clock says."""
    role = trainer.roles["student"]
    assert role.optimizer is not None
    assert trainer.best is not None
    return {
        "step": trainer.step,
        "model": dict(role.model.state_dict()),
        "optimizer": role.optimizer.state_dict(),
        "average": trainer.weights("student"),
        "best": vars(trainer.best),
        "log": [{**record, "seconds": None} for record in trainer.log.read()] if trainer.log else None,
    }
