"""A text as the material of a fit: its parts, the windows that are looked at, and the candidates that learn what comes next."""

import hashlib
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors import torch as safetensors
from torch import Tensor, nn

from anyformer.core import registry
from anyformer.core.errors import UsageError
from anyformer.core.model import Model
from anyformer.data.corpus import Text
from anyformer.data.targets import PARTS
from anyformer.data.text import Encoded, TextBatches, encode
from anyformer.data.tokenizers import ByteTokenizer
from anyformer.fit.candidates import text_candidates
from anyformer.fit.costs import LATENCY_SECONDS, Costs, machine, time_steps
from anyformer.fit.decoding import TIMED, multiply_adds, state_bytes, time_token
from anyformer.fit.material import Material
from anyformer.train.language import NextToken, bits_of_windows
from anyformer.train.loop import Objective

CONTEXT = 256  # tokens of a window, unless the budget asks for more
LEAST_CONTEXT = 16  # of a short text
BATCH_TOKENS = 2048
VALIDATED = 2**16  # tokens of the validation part that are looked at, at most
TESTED = 2**18  # tokens of the test part, likewise
PIECE = 2**20  # bytes read together
BITS = 8  # of a byte
LEARNING_RATE = 1e-2  # of models 64 channels wide; of wider ones less in proportion
WIDTH = 64
PASSES = 3  # a training step is worth so many passes forward


@dataclass
class LanguageMaterial(Material):
    """A text in three parts, as bytes.

    Attributes:
        text: all of it.
        train: the part that trains.
        validation: windows ``(count, context + 1)`` of the part that chooses.
        test: windows of the part that tests.
        context: tokens of a window.
        parts: bytes of each part, and the digest of the division.
        notes: what was passed over and how the text was divided, in sentences.
    """

    looks: ClassVar[int] = 8  # a clock that stops a run early then finds something

    text: Text
    train: Encoded
    validation: Tensor
    test: Tensor
    context: int
    parts: dict[str, Any]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, text: Text, seed: int, context: int | None, device: str | None = None) -> "LanguageMaterial":
        """The text, divided, in windows of a context; of as many tokens as a short text allows when absent.

        Raises:
            UsageError: the text is too short.
        """
        divided = text.divide(seed)
        shortest = min(part.size for part in divided) - 1
        length = context or max(LEAST_CONTEXT, min(CONTEXT, shortest))
        if length > shortest:
            name, part = min(zip(PARTS, divided, strict=True), key=lambda pair: pair[1].size)
            raise UsageError(
                f"{text.where} has {text.size:,} bytes, of which {name} gets {part.size:,}, and a window takes "
                f"{length + 1:,}; give more text{'' if context is None else ', or a budget of less context'}"
            )
        train, validation, test = (encode(part, ByteTokenizer()) for part in divided)
        seal = hashlib.sha256(repr([part.spans.tolist() for part in divided]).encode()).hexdigest()
        sizes = dict(zip(PARTS, (part.size for part in divided), strict=True))
        return cls(
            text,
            train,
            windows(validation, length, VALIDATED),
            windows(test, length, TESTED),
            length,
            {**sizes, "seed": seed, "digest": seal},
            divided[0].notes,
            config={"vocabulary": 256, "tokenizer": "bytes", "trained_context": length},
            device=device,
        )

    @property
    def batch(self) -> int:
        """Windows a batch."""
        return max(1, BATCH_TOKENS // self.context)

    @property
    def epoch(self) -> int:
        """Steps in which every window is seen once."""
        return self.batches(0).epoch_steps

    @property
    def looked_at(self) -> int:
        """Windows of the validation part that are looked at."""
        return len(self.validation)

    def choose(self, trials: int) -> None:
        """All that are small and take a window, however many are wanted: a budget of text is often met by few of them."""
        self.candidates = {c.name: c for c in text_candidates() if longest(c.name) >= self.context}

    def setting(self, runtime: str) -> dict[str, Any]:
        """Costs hold for a context and a batch."""
        return {"context": self.context, "batch": self.batch, "runtime": runtime, **machine()}

    def measure(self, name: str, work: Path, runtime: str) -> Costs:
        """A token's multiply-adds are the mean over a window; its time is that of a stream behind one."""
        started = time.perf_counter()
        model = self.create(name, seed=0).eval()
        ids = self.validation[:1, :-1]
        macs = multiply_adds(model, ids) // self.context
        timed, held = time_token(model, self.before(model), LATENCY_SECONDS), state_bytes(model, ids)
        size = len(safetensors.save(model.state_dict()))
        step = time_steps(self.train_step(model))
        tests = self.test.numel() / self.context / self.batch  # in steps
        return Costs(
            params=sum(parameter.numel() for parameter in model.parameters()),
            macs=macs,
            size_bytes=size,
            latency_ms=timed,
            step_seconds=step,
            export_seconds=step * tests / PASSES,
            measure_seconds=time.perf_counter() - started,
            state_bytes=held,
            context=model.data_config["context"],
        )

    def create(self, name: str, seed: int) -> Model:
        """A fresh model, which knows the most tokens that it takes."""
        model = super().create(name, seed)
        model.data_config = {**self.config, "context": registry.system_of(name).data_config(name).get("context")}
        return model

    def before(self, model: Model) -> Tensor:
        """The tokens that a timed one follows: a window, or as much of it as leaves room for what is timed."""
        most = model.data_config["context"] or math.inf
        return self.validation[:1, : min(self.context, max(1, most - TIMED))]

    def learning_rate(self, name: str, model: Any) -> float:
        """Less for wider models."""
        return LEARNING_RATE * min(1.0, WIDTH / model.config.dim)

    def objective(self) -> Objective:
        """The next byte, and what parts ask of themselves."""
        return NextToken()

    def batches(self, seed: int) -> TextBatches:
        """Windows of the training part by step."""
        return TextBatches(self.train, context=self.context, size=self.batch, seed=seed)

    def score(self, model: nn.Module) -> float:
        """The share of a byte's bits that need not be said."""
        return 1 - self.bits(model, self.validation).mean().item() / BITS

    def bits(self, model: nn.Module, rows: Tensor) -> Tensor:
        """The mean bits a byte of each window, ``(count,)`` float64."""
        return bits_of_windows(model, rows, self.batch)


def longest(name: str) -> float:
    """The most tokens that a model takes."""
    return registry.system_of(name).data_config(name).get("context") or math.inf


def spread(text: Encoded, most: int) -> np.ndarray:
    """A text of bytes, or so many bytes of it in pieces that lie evenly."""
    count = max(1, -(-text.count // PIECE))
    length = PIECE if text.count <= most else max(1, most // count)
    places = [number * PIECE for number in range(count)]
    return np.concatenate([text.read(place, min(length, text.count - place)) for place in places])


def windows(text: Encoded, context: int, most: int) -> Tensor:
    """Windows ``(count, context + 1)`` of a text that do not overlap: all, or those of so many tokens, evenly spread."""
    whole = (text.count - 1) // context
    count = min(whole, max(1, most // context))
    places = [number * whole // count * context for number in range(count)]
    return torch.from_numpy(np.stack([text.read(place, context + 1).astype(np.int64) for place in places]))
