"""The errors that a user may see: one clear sentence each, saying what is wrong, where, and how to mend it."""

from collections.abc import Iterable
from difflib import get_close_matches

LONGEST = 60  # characters of somebody's value that a sentence repeats


class AnyformerError(Exception):
    """Something failed while doing what was asked; the command line prints the sentence and exits with 1."""

    exit_code = 1


class UsageError(AnyformerError, ValueError):
    """What was asked for is not possible as it was asked; the command line prints the sentence and exits with 2."""

    exit_code = 2


def nearest(name: str, known: Iterable[str]) -> str:
    """The names of ``known`` closest to a misspelt ``name``, as the end of a sentence ("" when none is close)."""
    close = get_close_matches(name[:LONGEST], list(known), n=3, cutoff=0.5)
    return f"; did you mean {', '.join(close)}?" if close else ""


def shown(value: object) -> str:
    """A value as a sentence repeats it: its ``repr``, cut where it is long."""
    if isinstance(value, str):  # cut before it is written out: a hostile text may have megabytes
        value = value[: LONGEST + 1]
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits, which Python does not print
        text = "a very large number"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
