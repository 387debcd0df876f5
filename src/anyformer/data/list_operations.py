"""ListOps: nested lists of digits under operators, whose value is the class (Nangia and Bowman 2018, arXiv:1804.06028).

The long form is that of Long Range Arena (arXiv:2011.04006): its operators, probabilities, depth, arguments and lengths are
read from the official code's generator. To get the value a model must find every list's operator and end.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from anyformer.core.errors import UsageError
from anyformer.data.labelled_sequences import LabelledSequences
from anyformer.data.seeds import derive_seed

DIGITS = 10
OPERATORS = ("MIN", "MAX", "MED", "SM")
PAD, FIRST_DIGIT = 0, 1
FIRST_OPERATOR = FIRST_DIGIT + DIGITS
END = FIRST_OPERATOR + len(OPERATORS)
NAMES = ("", *map(str, range(DIGITS)), *(f"[{name}" for name in OPERATORS), "]")
LIST_SHARE = 0.25  # of arguments that are lists themselves, where the depth allows it
ATTEMPTS = 100_000


@dataclass(frozen=True, kw_only=True)
class ListOperations(LabelledSequences):
    """Expressions such as ``[MAX 2 9 [MIN 4 7 ] 0 ]``; MED is the median rounded down, SM the sum modulo 10.

    An argument is a list with probability ``LIST_SHARE``, a digit otherwise, and a digit where the depth is reached; lists
    have 2 to ``arguments`` arguments. Expressions outside of the lengths are drawn again.

    Args:
        depth: Lists within one another at most, the outermost included.
        arguments: Of a list at most.
        shortest: Tokens of an expression, at least.
        longest: Tokens of an expression, at most.
    """

    depth: int = 10
    arguments: int = 10
    shortest: int = 501
    longest: int = 1999

    def check(self) -> None:
        """See :class:`~anyformer.data.labelled_sequences.LabelledSequences`."""
        if self.depth < 1 or self.arguments < 2 or self.shortest > self.longest:
            raise UsageError(
                f"ListOps of depth {self.depth} with {self.arguments} arguments and {self.shortest} to {self.longest} tokens "
                f"cannot be drawn; give a depth of at least 1, two arguments, and a shortest length below the longest"
            )

    @property
    def vocabulary(self) -> int:
        """A pad, the digits, the operators, and the end of a list."""
        return len(NAMES)

    @property
    def classes(self) -> int:
        """The digits."""
        return DIGITS

    def sample(self, number: int) -> tuple[np.ndarray, int]:
        """See :class:`~anyformer.data.labelled_sequences.LabelledSequences`."""
        seed = derive_seed(self.seed, "ListOperations", number)
        chance = random.Random(seed).random  # noqa: S311 - to be drawn again, not to be secret
        for _ in range(ATTEMPTS):
            tokens = self._expression(chance)
            if self.shortest <= len(tokens) <= self.longest:
                return np.array(tokens), value(tokens)
        raise UsageError(
            f"no expression of depth {self.depth} with up to {self.arguments} arguments has {self.shortest} to {self.longest} "
            f"tokens in {ATTEMPTS:,} attempts; allow other lengths or depths"
        )

    def _expression(self, chance: Callable[[], float]) -> list[int]:
        """One list with what it holds; it is left off as soon as it is too long."""
        tokens: list[int] = []
        open_lists: list[int] = []  # how many arguments each still needs
        while len(tokens) <= self.longest:
            if not open_lists or (len(open_lists) < self.depth and chance() <= LIST_SHARE):
                open_lists.append(2 + int(chance() * (self.arguments - 1)))
                tokens.append(FIRST_OPERATOR + int(chance() * len(OPERATORS)))
                continue
            tokens.append(FIRST_DIGIT + int(chance() * DIGITS))
            open_lists[-1] -= 1
            while not open_lists[-1]:
                tokens.append(END)
                open_lists.pop()
                if not open_lists:
                    return tokens
                open_lists[-1] -= 1
        return tokens


def value(tokens: list[int]) -> int:
    """What an expression comes to, a digit; O(tokens)."""
    lists: list[list[int]] = [[]]
    for token in tokens:
        if token == END:
            operator, *digits = lists.pop()
            lists[-1].append(_apply(OPERATORS[operator - FIRST_OPERATOR], digits))
        elif token >= FIRST_OPERATOR:
            lists.append([token])
        else:
            lists[-1].append(token - FIRST_DIGIT)
    return lists[0][0]


def _apply(operator: str, digits: list[int]) -> int:
    match operator:
        case "MIN":
            return min(digits)
        case "MAX":
            return max(digits)
        case "MED":
            ordered, half = sorted(digits), len(digits) // 2
            return ordered[half] if len(digits) % 2 else (ordered[half - 1] + ordered[half]) // 2
        case _:
            return sum(digits) % DIGITS
