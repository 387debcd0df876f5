"""Generated tasks that ask a sequence model to remember: recall, copying, selective copying, induction.

Each is a frozen description whose call gives the batch of a step, a pure function of its seed and the step. Learn from one
seed and test with another; the tokens or pairs of the test may be more than those learnt from.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch

from anyformer.core.errors import UsageError
from anyformer.data.seeds import derive_seed
from anyformer.data.text import IGNORED, TextBatch


@dataclass(frozen=True, kw_only=True)
class RecallTask(ABC):
    """What the tasks share.

    Args:
        size: Rows a batch.
        seed: Of all that is drawn.
    """

    size: int = 64
    seed: int = 0

    @property
    @abstractmethod
    def vocabulary(self) -> int:
        """How many different tokens there are."""

    @abstractmethod
    def rows(self, chance: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and targets of one batch, ``(size, tokens)`` int64 each."""

    def __call__(self, step: int) -> TextBatch:
        """The batch of a step, counted from 0."""
        chance = np.random.Generator(np.random.PCG64(derive_seed(self.seed, type(self).__name__, step)))
        ids, targets = self.rows(chance)
        return TextBatch(torch.from_numpy(ids), torch.from_numpy(targets))

    def __post_init__(self) -> None:
        if self.size < 1:
            raise UsageError(f"{type(self).__name__}: size={self.size}, give at least one row")
        self.check()

    @abstractmethod
    def check(self) -> None:
        """Raises UsageError where the sizes do not go together."""


@dataclass(frozen=True, kw_only=True)
class MultiQueryRecall(RecallTask):
    """MQAR (arXiv:2312.04927, section 3 and appendix): pairs of key and value, then each key once, where its value is due.

    Keys are the lower half of the vocabulary (without token 0), values the upper half. Of the places behind the pairs, every
    second may hold a query; which do is drawn with probabilities that fall as ``place^(power - 1)``, so that most queries
    come soon and some late. All other places hold random tokens, which nothing tells from a query but what they are.

    Args:
        tokens: Tokens a row.
        pairs: Of key and value.
        symbols: Size of the vocabulary.
        power: Of the law of the places.
    """

    tokens: int = 256
    pairs: int = 16
    symbols: int = 8192
    power: float = 0.01

    def check(self) -> None:
        """See :class:`RecallTask`."""
        if self.pairs < 1 or self.tokens < 4 * self.pairs or self.symbols // 2 - 1 < self.pairs or self.power <= 0:
            raise UsageError(
                f"{self.pairs} pairs need at least {4 * self.pairs} tokens and a vocabulary of {2 * self.pairs + 2}, and a "
                f"positive power; there are {self.tokens}, {self.symbols} and {self.power}"
            )

    @property
    def vocabulary(self) -> int:
        """The symbols."""
        return self.symbols

    def rows(self, chance: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`RecallTask`."""
        size, pairs, half = self.size, self.pairs, self.symbols // 2
        keys = _distinct(chance, size, pairs, half - 1) + 1
        values = _distinct(chance, size, pairs, self.symbols - half) + half
        ids = chance.integers(0, self.symbols, (size, self.tokens))
        ids[:, 0 : 2 * pairs : 2], ids[:, 1 : 2 * pairs : 2] = keys, values
        space = (self.tokens - 2 * pairs) // 2
        # The largest of these are drawn without replacement by the law (Efraimidis and Spirakis 2006); the order, hence
        # which key stands where, is random as well.
        law = np.arange(1, space + 1) ** (self.power - 1)
        race = np.log(chance.random((size, space))) / law
        places = 2 * pairs + 2 * race.argsort(1)[:, -pairs:]
        targets = np.full((size, self.tokens), IGNORED)
        np.put_along_axis(ids, places, keys, 1)
        np.put_along_axis(targets, places, values, 1)
        return ids, targets


@dataclass(frozen=True, kw_only=True)
class Copying(RecallTask):
    """Random symbols, a sign, then the same symbols again, each to be predicted from what came before it.

    Args:
        length: Symbols that are copied.
        symbols: How many different ones there are.
    """

    length: int = 64
    symbols: int = 26

    def check(self) -> None:
        """See :class:`RecallTask`."""
        _check_positive(self, length=self.length, symbols=self.symbols)

    @property
    def vocabulary(self) -> int:
        """The symbols and the sign, which is the last token."""
        return self.symbols + 1

    def rows(self, chance: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`RecallTask`."""
        text = chance.integers(0, self.symbols, (self.size, self.length))
        sign = np.full((self.size, 1), self.symbols)
        ids = np.concatenate((text, sign, text[:, :-1]), axis=1)
        return ids, np.concatenate((np.full_like(text, IGNORED), text), axis=1)


@dataclass(frozen=True, kw_only=True)
class SelectiveCopying(RecallTask):
    """Some symbols among much noise, then as many signs, at which the symbols are due in order (arXiv:2312.00752, 4.1.1).

    Args:
        tokens: Symbols and noise, before the signs.
        length: Symbols that are copied.
        symbols: How many different ones there are.
    """

    tokens: int = 4096
    length: int = 16
    symbols: int = 14

    def check(self) -> None:
        """See :class:`RecallTask`."""
        _check_positive(self, length=self.length, symbols=self.symbols)
        if self.tokens < self.length:
            raise UsageError(f"{self.length} symbols do not go into {self.tokens} tokens; give more tokens")

    @property
    def vocabulary(self) -> int:
        """The symbols, noise, and the sign: 16 as in the paper."""
        return self.symbols + 2

    def rows(self, chance: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`RecallTask`."""
        noise, sign = self.symbols, self.symbols + 1
        data = chance.integers(0, self.symbols, (self.size, self.length))
        ids = np.full((self.size, self.tokens + self.length), noise)
        ids[:, self.tokens :] = sign
        np.put_along_axis(ids, np.sort(_distinct(chance, self.size, self.length, self.tokens), axis=1), data, 1)
        targets = np.full_like(ids, IGNORED)
        targets[:, self.tokens :] = data
        return ids, targets


@dataclass(frozen=True, kw_only=True)
class InductionHeads(RecallTask):
    """A sign somewhere in random symbols, and again at the end, where the symbol that followed it is due.

    arXiv:2312.00752, section 4.1.2: learnt with 256 tokens, tested with up to a million.

    Args:
        tokens: Tokens a row.
        symbols: How many different ones there are beside the sign.
    """

    tokens: int = 256
    symbols: int = 15

    def check(self) -> None:
        """See :class:`RecallTask`."""
        _check_positive(self, symbols=self.symbols)
        if self.tokens < 3:
            raise UsageError(f"a sign, what follows it and a sign do not go into {self.tokens} tokens; give 3 or more")

    @property
    def vocabulary(self) -> int:
        """The symbols and the sign, which is the last token: 16 as in the paper."""
        return self.symbols + 1

    def rows(self, chance: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`RecallTask`."""
        ids = chance.integers(0, self.symbols, (self.size, self.tokens))
        places = chance.integers(0, self.tokens - 2, (self.size, 1))
        np.put_along_axis(ids, places, self.symbols, 1)
        ids[:, -1] = self.symbols
        targets = np.full_like(ids, IGNORED)
        targets[:, -1] = np.take_along_axis(ids, places + 1, 1)[:, 0]
        return ids, targets


def _distinct(chance: np.random.Generator, rows: int, count: int, below: int) -> np.ndarray:
    """``(rows, count)`` whole numbers below a bound, different within a row, in random order."""
    return np.stack([chance.choice(below, count, replace=False) for _ in range(rows)])


def _check_positive(task: RecallTask, **sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise UsageError(f"{type(task).__name__}: {name}={value}, give 1 or more")
