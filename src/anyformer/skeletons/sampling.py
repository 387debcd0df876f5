"""Choosing the next token from its scores: the likeliest, or one at random from what is left of the distribution."""

import torch
from torch import Tensor

from anyformer.core.errors import UsageError


def check_choice(temperature: float, top_k: int | None, top_p: float | None) -> None:
    """Raises UsageError where a distribution cannot be cut so."""
    if not 0 <= temperature < float("inf"):
        raise UsageError(f"temperature={temperature}: give 0 for the likeliest token, or a positive number")
    if top_k is not None and top_k < 1:
        raise UsageError(f"top_k={top_k}: give the number of likeliest tokens to choose from, 1 or more")
    if top_p is not None and not 0 < top_p <= 1:
        raise UsageError(f"top_p={top_p}: give the share of probability to choose from, above 0 and at most 1")


def ranked(
    scores: Tensor, *, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> tuple[Tensor, Tensor]:
    """The tokens that may be chosen with their probabilities, likeliest first where some are cut off.

    First the ``top_k`` likeliest are kept, then of these the fewest whose probabilities reach ``top_p`` (nucleus sampling,
    arXiv:1904.09751, section 3.1).

    Args:
        scores: ``(rows, vocabulary)``, logits.
        temperature: Divides the scores; positive.
        top_k: How many tokens stay; all when absent.
        top_p: The share that stays; all when absent.

    Returns:
        Probabilities ``(rows, kept)`` float64 that sum to 1, zero for what is cut off, and tokens ``(rows, kept)`` int64.
    """
    scaled = scores.double()
    scaled = (scaled - scaled.amax(-1, keepdim=True)) / temperature  # shifted first: a tiny temperature overflows
    if top_k is None and top_p is None:  # sorting a large vocabulary takes longer than all else here
        tokens = torch.arange(scaled.shape[-1], device=scaled.device).expand_as(scaled)
    elif top_k is not None and top_k < scaled.shape[-1]:
        scaled, tokens = scaled.topk(top_k, dim=-1)
    else:
        scaled, tokens = scaled.sort(dim=-1, descending=True, stable=True)
    chances = scaled.softmax(-1)
    if top_p is not None:
        before = chances.cumsum(-1) - chances
        chances = chances.masked_fill(before >= top_p, 0.0)
        chances = chances / chances.sum(-1, keepdim=True)
    return chances, tokens


def draw(chances: Tensor, tokens: Tensor, uniform: Tensor) -> Tensor:
    """One token a row, by inversion: the first at which the probabilities add up to more than the row's random number.

    A row's token depends on its own number alone, so that a row of a batch draws what it would draw by itself.

    Args:
        chances: ``(rows, kept)`` probabilities.
        tokens: ``(rows, kept)`` int64.
        uniform: ``(rows,)`` in [0, 1), of the type of ``chances``.

    Returns:
        ``(rows,)`` int64.
    """
    sums = chances.cumsum(-1)
    places = (sums <= (uniform[:, None] * sums[:, -1:])).sum(-1, keepdim=True)
    # rounding may leave the last sum at the number itself; and no token of probability zero is ever drawn
    last = ((chances > 0) * torch.arange(chances.shape[-1], device=chances.device)).amax(-1, keepdim=True)
    return tokens.gather(-1, places.minimum(last))[:, 0]


def greedy(scores: Tensor) -> Tensor:
    """The likeliest token of each row: ``(rows, vocabulary) -> (rows,)``."""
    return scores.argmax(-1)
