"""What a text's bytes are after the few before them, counted: the baseline of models that learn to predict text."""

from typing import NamedTuple

import numpy as np

MAX_ORDER = 7  # bytes of context: with the next one they fill a number of 64 bits


class Counts(NamedTuple):
    """What was counted behind contexts of one length.

    Attributes:
        pairs: context and next byte as one number, sorted.
        times: how often each was seen.
        contexts: sorted.
        totals: how often each was seen.
        kinds: how many different bytes followed each.
    """

    pairs: np.ndarray
    times: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    kinds: np.ndarray


class ByteNGram:
    """The next byte's probability after up to ``order`` bytes, each length interpolated with the shorter one.

    ``P(c | h) = (n(h c) + k(h) P(c | h')) / (n(h) + k(h))`` with ``k(h)`` the number of different bytes seen after ``h`` and
    ``h'`` without its first byte (Witten and Bell 1991, method C); the shortest is one of 256. Cost: sorting the text once
    an order.

    Args:
        text: ``(count,)`` uint8, what is counted.
        order: Bytes of context, 0 to 7.
    """

    def __init__(self, text: np.ndarray, order: int) -> None:
        if not 0 <= order <= MAX_ORDER:
            raise ValueError(f"an order of {order} bytes; give 0 to {MAX_ORDER}")
        self.counts = [_count(pairs_of(text, length)) for length in range(order + 1)]

    def probabilities(self, text: np.ndarray) -> np.ndarray:
        """Of every byte of a text given those before it, ``(count,)`` float64; its first ones have less context."""
        found = np.full(len(text), 1 / 256)
        for length, counts in enumerate(self.counts):
            pairs = pairs_of(text, length)
            times = _looked_up(pairs, counts.pairs, counts.times)
            total = _looked_up(pairs >> np.uint64(8), counts.contexts, counts.totals)
            kinds = _looked_up(pairs >> np.uint64(8), counts.contexts, counts.kinds)
            shorter = found[length:]
            seen = total > 0
            shorter[seen] = (times[seen] + kinds[seen] * shorter[seen]) / (total[seen] + kinds[seen])
        return found

    def bits_per_byte(self, text: np.ndarray) -> float:
        """The mean negative logarithm to base 2 of the probabilities."""
        return float(-np.log2(self.probabilities(text)).mean())


def pairs_of(text: np.ndarray, length: int) -> np.ndarray:
    """Every ``length + 1`` bytes in a row as one number, ``(count - length,)`` uint64, the last byte lowest."""
    count = max(0, len(text) - length)
    pairs = np.zeros(count, np.uint64)
    for place in range(length + 1):
        pairs = pairs << np.uint64(8) | text[place : place + count].astype(np.uint64)
    return pairs


def _count(pairs: np.ndarray) -> Counts:
    different, times = np.unique(pairs, return_counts=True)
    contexts, first, kinds = np.unique(different >> np.uint64(8), return_index=True, return_counts=True)
    totals = np.add.reduceat(times, first) if len(times) else times
    return Counts(different, times, contexts, totals, kinds)


def _looked_up(keys: np.ndarray, known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The values of keys, 0 for those that are not known."""
    if not len(known):
        return np.zeros(len(keys), np.int64)
    places = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[places] == keys, values[places], 0)
