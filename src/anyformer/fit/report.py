"""The page that tells what a fit found: one file, without a script, that opens offline."""

import base64
import io
import math
import operator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from anyformer.core.errors import UsageError
from anyformer.core.files import write_atomic
from anyformer.fit.budget import readable
from anyformer.fit.front import DARK, LIGHT, front_png

MOST_MISTAKES = 24
MOST_CLASSES = 40  # of a matrix that can still be read; more become a list of confusions
MOST_CONFUSIONS = 30
LARGEST = 256  # pixels along a side of a picture on the page


@dataclass(frozen=True)
class Mistake:
    """A picture or a text that the model got wrong.

    Attributes:
        file: Its name.
        label: The true class.
        predicted: The class that the model chose.
        score: The share of belief that the model gave it.
        image: ``(channels, height, width)`` uint8, one channel or three.
        text: The beginning of the text, where there is no image.
    """

    file: str
    label: str
    predicted: str
    score: float
    image: np.ndarray | None = None
    text: str = ""


def write_report(report: dict[str, Any], mistakes: list[Mistake], folder: Path) -> None:
    """Write ``report.html`` into a folder.

    Names of classes and files are foreign text: everything is escaped, and the page's own policy forbids scripts and
    whatever would come from elsewhere. Takes about a second, most of it for the picture of the front.

    Args:
        report: What ``report.json`` holds.
        mistakes: Pictures that the winner got wrong; the most believed ones are shown.
        folder: Where the page goes.

    Raises:
        KeyError: the report lacks something that the page tells.
        UsageError: jinja2, matplotlib or Pillow is not installed.
        AnyformerError: the file cannot be written.
    """
    worst = sorted(mistakes, key=lambda mistake: -mistake.score)[:MOST_MISTAKES]
    _write_page(
        "report.html",
        report,
        folder,
        confusion=report["confusion"] and confusion(report["confusion"]["classes"], report["confusion"]["matrix"]),
        mistakes=[(mistake, *_picture(mistake.image)) for mistake in worst],
        thing="text" if "texts" in report["data"] else "picture",
        count=report["data"]["texts" if "texts" in report["data"] else "images"],
    )


def write_language_report(report: dict[str, Any], folder: Path) -> None:
    """Write ``report.html`` of a language model into a folder; the text of samples is foreign text, too.

    Args:
        report: What ``report.json`` holds.
        folder: Where the page goes.

    Raises:
        As :func:`write_report`.
    """
    _write_page("language.html", report, folder)


def _write_page(template: str, report: dict[str, Any], folder: Path, **more: Any) -> None:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError:
        raise UsageError('the page needs jinja2: pip install "anyformer[fit]"') from None

    environment: Any = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.getitem = operator.getitem  # jinja's own turns a missing key into nothing, to be told of later or never
    environment.filters |= {
        "digits": digits,
        "percent": percent,
        "readable": _readable,
        "score": _score,
        "cell": _cell,
        "title_case": _title_case,
    }
    part = "test" if report["test"] else "validation"
    page = environment.get_template(template).render(
        report=report,
        part=part,
        result=report[part],
        budget=report["budget"],
        measured=report["budget"]["measured"],
        latency=report["budget"]["measured"]["latency_ms"],
        baseline=report["baseline"],
        candidates=sorted(report["candidates"], key=lambda row: _rank(row, report["kind"])),
        starts=any(row["start"] != "fresh" for row in report["candidates"]),
        front={name: _uri(front_png(report, theme)) for name, theme in (("light", LIGHT), ("dark", DARK))},
        name=lambda text: Markup("<bdi>{}</bdi>").format(text),
        **more,
    )
    write_atomic(folder / "report.html", page.encode("utf-8", "backslashreplace"))  # an argument may be no UTF-8


def wilson(accuracy: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a proportion by Wilson's score (Wilson 1927), sound also for 0, for 1 and for few samples."""
    z = 1.959963984540054
    middle = (accuracy + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(accuracy * (1 - accuracy) / n + z * z / (4 * n * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def percent(share: float, n: int) -> str:
    """A share of ``n`` with no more digits than ``n`` bears; 100 % is said of all of them only."""
    digits = 1 if n < 1000 else 2
    shown = round(100 * share, digits)
    if shown == 100 and share < 1:
        shown = 100 - 10.0**-digits
    return f"{shown:.{digits}f}\N{NO-BREAK SPACE}%"


def digits(value: float) -> str:
    """A positive number with three digits, written out."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}"


def confusion(classes: list[str], matrix: list[list[int]]) -> dict[str, Any]:
    """What the page shows of a confusion matrix, rows the true classes: all of it, or the commonest confusions."""
    pairs = [
        (count, classes[row], classes[column], sum(counts))
        for row, counts in enumerate(matrix)
        for column, count in enumerate(counts)
        if count and row != column
    ]
    return {
        "classes": classes,
        "rows": list(zip(classes, matrix, (sum(counts) for counts in matrix), strict=True)),
        "pairs": sorted(pairs, key=lambda pair: -pair[0])[:MOST_CONFUSIONS],
        "wrong": sum(count for count, *_ in pairs),
        "whole": len(classes) <= MOST_CLASSES,
        "upright": max(map(len, classes)) > 3,
    }


def _rank(row: dict[str, Any], kind: str) -> tuple[bool, float]:
    """The winner first, then by score, those without one last."""
    better = 1 if kind == "language" else -1  # of bits, fewer are
    return row["status"] != "winner", math.inf if row["score"] is None else better * row["score"]


def _score(value: float, n: int, kind: str) -> str:
    """A score on ``n`` pictures: a share of them, or a number that is none."""
    return percent(value, n) if kind == "classes" else f"{value:.3f}"


def _cell(value: float | None) -> str:
    """A number in a table; a dash where there is none."""
    if value is None:
        return "\N{EN DASH}"
    return f"{value:,}" if isinstance(value, int) else f"{value:.3g}"


def _title_case(text: str) -> str:
    """With a capital at the beginning."""
    return text[:1].upper() + text[1:]


def _readable(value: float, quantity: str) -> str:
    return readable(quantity, value)


def _picture(image: np.ndarray | None) -> tuple[str, int]:
    """A picture for the page, and its shorter side; nothing of a text."""
    return ("", 0) if image is None else (_uri(_png(image)), min(image.shape[1:]))


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    picture = Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
    picture.thumbnail((LARGEST, LARGEST))
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True)
    return file.getvalue()


def _uri(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
