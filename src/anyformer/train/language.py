"""Learning to predict the next token, and asking what was learnt."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from anyformer.core.context import Collected
from anyformer.core.errors import UsageError
from anyformer.data.text import IGNORED, Encoded, TextBatch
from anyformer.parts.embeds.token_table import Tokens


@dataclass(frozen=True, kw_only=True)
class NextToken:
    """The objective of one role, ``student``: cross entropy over the tokens that are scored.

    What parts collect under names that end in ``_loss`` (the balance of experts, say), weighted by the parts themselves, is
    added. The mean is over scored tokens: with ``accumulate``, parts of a batch that score different numbers of them count
    by their rows.
    """

    def losses(self, role: str, models: Mapping[str, nn.Module], batch: TextBatch, step: int) -> Tensor:
        """The mean loss of the batch in nats, a float32 scalar whatever the data type of the scores."""
        collected: Collected = {}
        scores = models[role](raw_of(batch), collected)
        loss = nats(scores, batch.targets) / (batch.targets != IGNORED).sum().clamp(min=1)
        auxiliary = [value for name, values in collected.items() if name.endswith("_loss") for value in values]
        return loss + sum(value.float() for value in auxiliary)


def raw_of(batch: TextBatch) -> Tensor | Tokens:
    """What a decoder takes of a batch."""
    return batch.ids if batch.keep is None else Tokens(batch.ids, batch.keep)


def nats(scores: Tensor, targets: Tensor) -> Tensor:
    """The sum of the scored tokens' negative log-probabilities, a float32 scalar.

    Args:
        scores: ``(batch, tokens, vocabulary)``, logits.
        targets: ``(batch, tokens)``.
    """
    return F.cross_entropy(scores.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED, reduction="sum")


def bits_of_windows(model: nn.Module, rows: Tensor, batch: int) -> Tensor:
    """What each token but the first of every window costs a model in bits, on average: ``(count, tokens)`` to ``(count,)``.

    Args:
        model: A decoder; it is left in evaluation mode.
        rows: Windows, each read from nothing.
        batch: Windows at a time.
    """
    model.eval()
    device = next(model.parameters()).device
    found: list[Tensor] = []
    with torch.no_grad():
        for part in rows.split(batch):
            scores = model(part[:, :-1].to(device)).float().flatten(0, 1)
            losses = F.cross_entropy(scores, part[:, 1:].flatten().to(device), reduction="none")
            found.append(losses.view(len(part), -1).double().mean(1).cpu())
    return torch.cat(found) / math.log(2)


def accuracy(scores: Tensor, targets: Tensor) -> float:
    """The share of scored tokens whose target has the largest score: ``(..., vocabulary)`` and ``(...)`` to [0, 1]."""
    scored = targets != IGNORED
    return (scores.argmax(-1)[scored] == targets[scored]).double().mean().item()


def token_accuracy(model: nn.Module, batches: Callable[[int], TextBatch], steps: int) -> float:
    """The accuracy of a model, in evaluation mode, in which it is left, over the scored tokens of some batches."""
    model.eval()
    device = next(model.parameters()).device
    right = total = 0
    with torch.no_grad():
        for step in range(steps):
            batch: TextBatch = pytree.tree_map_only(Tensor, lambda part: part.to(device), batches(step))
            scored = batch.targets != IGNORED
            right += int((model(raw_of(batch)).argmax(-1)[scored] == batch.targets[scored]).sum())
            total += int(scored.sum())
    return right / total


@dataclass(frozen=True)
class Likelihood:
    """How well a model predicts a text.

    Attributes:
        nats: the mean negative log-probability of a token.
        tokens: how many were scored.
        bytes_per_token: of the text.
    """

    nats: float
    tokens: int
    bytes_per_token: float

    @property
    def perplexity(self) -> float:
        """The number of equally likely tokens that would surprise as much."""
        return math.exp(self.nats)

    @property
    def bits_per_byte(self) -> float:
        """Comparable between tokenizers."""
        return self.nats / math.log(2) / self.bytes_per_token


def likelihood(
    model: Any, text: Encoded, *, context: int, chunk: int = 512, batch: int = 8, limit: int | None = None
) -> Likelihood:
    """How well a decoder, left in evaluation mode, predicts a text in long contexts.

    The text is cut into pieces of ``context`` tokens, each read from the beginning as a stream of chunks; every token but
    the first is scored once. Memory is that of a chunk and of the stream's state.

    Args:
        model: A decoder.
        text: Held out.
        context: Tokens that are read before everything is forgotten.
        chunk: Tokens read at once.
        batch: Pieces side by side.
        limit: Score the first so many tokens only, rounded down to whole pieces; at least one piece.

    Raises:
        UsageError: The text has not two tokens, or a size is not positive.
    """
    if min(context, chunk, batch) < 1:
        raise UsageError(f"context={context}, chunk={chunk} and batch={batch} must be positive")
    if text.count < 2:
        raise UsageError(f"the text has {text.count} tokens; it takes two for one to be predicted")
    model.eval()
    device = next(model.parameters()).device
    total, scored = 0.0, 0
    for tokens in _pieces(text, context, batch, limit):
        rows = torch.from_numpy(tokens).to(device)
        ids, targets = rows[:, :-1], rows[:, 1:]
        with torch.no_grad():
            state = model.init_state(len(ids), ids.shape[1])
            for inputs, wanted in zip(ids.split(chunk, 1), targets.split(chunk, 1), strict=True):
                scores, state = model.stream(inputs, state)
                total += nats(scores, wanted).item()
        scored += targets.numel()
    return Likelihood(total / scored, scored, text.size / text.count)


def _pieces(text: Encoded, context: int, batch: int, limit: int | None) -> Iterator[np.ndarray]:
    """Rows ``(batch, context + 1)`` that overlap by one token, then the rest of the text, shorter, by itself."""
    whole, rest = divmod(text.count - 1, context)
    if limit is not None and limit < text.count - 1 and whole:
        whole, rest = min(whole, max(1, limit // context)), 0
    for first in range(0, whole, batch):
        numbers = range(first, min(whole, first + batch))
        yield np.stack([text.read(number * context, context + 1).astype(np.int64) for number in numbers])
    if rest:
        yield text.read(whole * context, rest + 1).astype(np.int64)[None]
