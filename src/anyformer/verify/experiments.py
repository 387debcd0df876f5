"""What the experiments behind claims share: train a small model on a task, and ask it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from anyformer.core.store import build_hybrid
from anyformer.data.recall import RecallTask
from anyformer.data.seeds import derive_seed
from anyformer.data.text import TextBatches, encode
from anyformer.data.tokenizers import ByteTokenizer
from anyformer.train.language import NextToken, likelihood, token_accuracy
from anyformer.train.loop import Role, Trainer
from anyformer.train.schedule import WarmupCosine, adamw
from anyformer.verify.tasks import SOURCES


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a training may spend.

    Attributes:
        steps: of the training.
        learning_rate: its peak, after a straight rise over a tenth of the steps; half a cosine follows.
        weight_decay: of matrices.
    """

    steps: int
    learning_rate: float = 3e-3
    weight_decay: float = 0.1


def decoder(**pattern: Any) -> dict[str, Any]:
    """A pattern of the decoder skeleton for :func:`anyformer.core.store.build_hybrid`."""
    return {"skeleton": "decoder", **pattern}


def trained(pattern: Mapping[str, Any], batches: Any, budget: Budget, seed: int) -> Any:
    """A model of a pattern after its training, in evaluation mode."""
    torch.manual_seed(derive_seed(seed, "weights"))
    model = build_hybrid(pattern)
    schedule = WarmupCosine(steps=budget.steps, warmup=budget.steps // 10)
    student = Role(model, adamw(model, budget.learning_rate, budget.weight_decay), schedule)
    Trainer({"student": student}, NextToken(), batches, seed=seed).run(budget.steps)
    return model.eval()


def recalled(pattern: Mapping[str, Any], task: RecallTask, budget: Budget, seed: int, batches: int = 8) -> float:
    """The share of answers that a model, trained on a generated task, gets right on batches that it has not seen."""
    model = trained(
        {**pattern, "vocabulary": task.vocabulary}, replace(task, seed=derive_seed(seed, "train")), budget, seed
    )
    return token_accuracy(model, replace(task, seed=derive_seed(seed, "test")), batches)


def bits(pattern: Mapping[str, Any], budget: Budget, seed: int, *, context: int = 128, batch: int = 8) -> float:
    """The bits per byte of a model, trained on the standard library's sources, on files of it that it has not seen."""
    train, _, test = (encode(part, ByteTokenizer()) for part in SOURCES.text().divide(seed))
    model = trained(pattern, TextBatches(train, context=context, size=batch, seed=seed), budget, seed)
    return likelihood(model, test, context=context, chunk=context, batch=64, limit=SOURCES.tested).bits_per_byte
