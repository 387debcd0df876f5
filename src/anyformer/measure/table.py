"""What was measured, as a table that is written as JSON, CSV or Markdown, and read again."""

import csv
import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.core.files import write_atomic
from anyformer.measure.exponents import exponents

FORMATS = (".json", ".csv", ".md", ".png")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model in one runtime at one precision, batch and size. None is what was not measured; the note says why.

    Attributes:
        name: The model.
        runtime: One of ``anyformer.deploy.runtime.RUNTIMES``.
        precision: What products are computed in.
        batch: Images a call.
        height: Of the images, in pixels.
        width: Likewise.
        again: Whether this is the A/A row: the first of its group, timed a second time among the others.
        params: Parameters.
        macs: Multiply-adds of one image.
        elementwise: Results of elementwise operations for one image, none of them in ``macs``.
        uncounted: The operations of one image that are not in ``macs`` and not free, with their calls.
        median_ms: Median time of a call.
        p10_ms: 10th percentile.
        p90_ms: 90th percentile.
        runs: Calls that were timed.
        against: The row of the group that ``ratio`` compares with.
        ratio: Time over the time of that row, in paired interleaved blocks: above 1, this one is slower.
        ratio_low: Lower end of its 95 % interval; None where there were too few blocks for one.
        ratio_high: Upper end.
        blocks: Pairs of blocks.
        measured: Whether the interval became as narrow as was asked; otherwise the ratio is not to be quoted.
        error: Largest difference from the scores of the eager float32 model, over the largest of them.
        forward_mb: Peak memory of a forward pass beside the weights, in MB of 10^6 bytes.
        training_mb: Peak memory of a training step in float32 beside the weights.
        energy_mj: Energy of a call, in millijoules, with whatever else ran.
        note: What could not be measured, and why.
    """

    name: str
    runtime: str
    precision: str
    batch: int
    height: int
    width: int
    again: bool = False
    params: int | None = None
    macs: int | None = None
    elementwise: int | None = None
    uncounted: dict[str, int] = field(default_factory=dict)
    median_ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    runs: int | None = None
    against: str = ""
    ratio: float | None = None
    ratio_low: float | None = None
    ratio_high: float | None = None
    blocks: int | None = None
    measured: bool | None = None
    error: float | None = None
    forward_mb: float | None = None
    training_mb: float | None = None
    energy_mj: float | None = None
    note: str = ""


@dataclass
class Table:
    """Rows, and what they hold for.

    Attributes:
        about: The machine, the versions, the threads and the protocol.
        rows: As they were measured.
    """

    about: dict[str, Any]
    rows: list[Row] = field(default_factory=list)

    def to_json(self) -> str:
        """With the exponents over the size, which follow from the rows."""
        data = {"format": 1, "about": self.about, "rows": [asdict(row) for row in self.rows]}
        return json.dumps({**data, "exponents": [asdict(each) for each in exponents(self.rows)]}, indent=1) + "\n"

    def to_csv(self) -> str:
        """A first line of comment with what the rows hold for, a line of names, a line a row; None is an empty cell."""
        file = io.StringIO()
        file.write(f"# {json.dumps(self.about)}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_KINDS)
        writer.writerows([_cell(value) for value in asdict(row).values()] for row in self.rows)
        return file.getvalue()


_KINDS: dict[str, Any] = {each.name: each.type for each in fields(Row)}


def save(table: Table, path: Path) -> None:
    """Write a table whole, in the format that the file's ending names.

    Raises:
        UsageError: The ending is none of ``FORMATS``, or matplotlib, which draws, is not installed.
        AnyformerError: The system refuses the file.
    """
    write_atomic(path, _writer(path)(table))


def _writer(path: Path) -> Callable[[Table], bytes]:
    from anyformer.measure import markdown, plot

    writers = (
        lambda table: table.to_json().encode(),
        lambda table: table.to_csv().encode(),
        lambda table: markdown.to_markdown(table).encode(),
        plot.png,
    )
    known = dict(zip(FORMATS, writers, strict=True))
    if path.suffix not in known:
        raise UsageError(f"{path}: a table is written as {', '.join(FORMATS)}; give a file that ends in one of them")
    return known[path.suffix]


def load(path: str | Path) -> Table:
    """Read a table that was written as JSON or CSV; equal to the one that was written.

    Raises:
        UsageError: The file is of another kind.
        AnyformerError: There is no such file, or it is damaged.
    """
    path = Path(path)
    if path.suffix not in (".json", ".csv"):
        raise UsageError(f"{path}: only .json and .csv tables are read again")
    try:
        text = path.read_text()
        if path.suffix == ".json":
            data = json.loads(text)
            return Table(about=data["about"], rows=[Row(**row) for row in data["rows"]])
        first, _, rest = text.partition("\n")
        reader = csv.DictReader(io.StringIO(rest), strict=True)
        rows = [Row(**{name: _value(_KINDS[name], cell) for name, cell in line.items()}) for line in reader]
        return Table(about=json.loads(first.removeprefix("# ")), rows=rows)
    except OSError as error:
        raise AnyformerError(f"cannot read {path} ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise AnyformerError(f"{path} is damaged or no table of measurements ({error})") from error


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value)


def _value(kind: Any, cell: str | None) -> Any:
    if cell is None:
        raise ValueError("a row is cut off")
    if kind is str:
        return cell
    return json.loads(cell) if cell else None
