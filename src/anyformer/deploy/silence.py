"""Exporters and compilers without their remarks, which are about their own code."""

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Neither warnings, log lines nor prints in this block: what they might mean, a comparison of the outputs catches."""
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(None), contextlib.redirect_stderr(None):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def cause(error: BaseException) -> str:
    """The first line of the error at the bottom: it names the operator, where those above give advice on torch."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).strip().partition("\n")[0] or type(error).__name__
