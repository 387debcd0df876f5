"""The rows of a CSV or Parquet file as text, read one after the other, with every size bounded.

A file is untrusted: a row that is not what the header says, a line without an end, or bytes that are no text become one
sentence with the file and the row. Rows are counted from 1, the header of a CSV file among them.
"""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from anyformer.core.errors import AnyformerError, UsageError, shown
from anyformer.data.decode import reason, regular

DELIMITERS = ",;\t"
ENDINGS = (".csv", ".tsv", ".parquet")
MAX_LINE = 2**20  # bytes
MAX_COLUMNS = 4096
MAX_ROWS = 1_000_000
BATCH = 4096  # rows of a Parquet file in memory


@dataclass(frozen=True)
class Row:
    """One row: where it stands in its file, and its cells."""

    number: int
    cells: tuple[str, ...]


def rows(path: Path) -> Iterator[Row]:
    """The rows of a table, the first of which holds the names of the columns; blanks around cells are taken off.

    Args:
        path: A file whose name ends in ``.csv``, ``.tsv`` or ``.parquet``.

    Raises:
        UsageError: The file cannot be read as a table, or is larger than the bounds of this module.
    """
    read = _parquet if path.suffix.lower() == ".parquet" else _csv
    with regular(path) as file:
        columns: tuple[str, ...] = ()
        for index, row in enumerate(read(path, file)):
            if index == 0:
                columns = row.cells
                _check_columns(path, columns)
            elif len(row.cells) != len(columns):
                raise UsageError(
                    f"{path}, row {row.number}: there are {len(row.cells)} cells where the header has {len(columns)}; "
                    "correct the row, or put cells with a delimiter in quotes"
                )
            elif index > MAX_ROWS:
                raise UsageError(f"{path} has more than {MAX_ROWS:,} rows; divide it")
            yield row


def _check_columns(path: Path, columns: tuple[str, ...]) -> None:
    if len(columns) > MAX_COLUMNS:
        raise UsageError(f"{path} has {len(columns):,} columns; at most {MAX_COLUMNS:,}; leave out what is not needed")
    for place, name in enumerate(columns):
        if name in columns[:place]:
            raise UsageError(f"{path} has two columns of the name {shown(name)}; rename or remove one")
        if not name.isprintable():
            raise UsageError(f"{path}: the column {shown(name)} has a name that cannot be printed; rename it")


def _csv(path: Path, file: BinaryIO) -> Iterator[Row]:
    lines = _lines(path, file)
    first = next(lines)
    delimiter = max(DELIMITERS, key=first.count)

    def again() -> Iterator[str]:
        yield first
        yield from lines

    reader = csv.reader(again(), delimiter=delimiter, strict=True)
    try:
        for cells in reader:
            if cells:  # an empty line has none
                yield Row(reader.line_num, tuple(cell.strip() for cell in cells))
    except csv.Error as error:
        fault = reason(error).partition(" - ")[0]  # behind it stands advice for programmers
        raise UsageError(f"{path}, row {reader.line_num}: {fault}; correct its quotes and line ends") from None


def _lines(path: Path, file: BinaryIO) -> Iterator[str]:
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if number == 1:
            if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise UsageError(f"{path}, row 1: the text is UTF-16; save the table as UTF-8")
            line = line.removeprefix(b"\xef\xbb\xbf")  # a byte order mark, as spreadsheets write it
        if b"\0" in line:
            raise UsageError(f"{path}, row {number}: there is a zero byte; save the table as UTF-8 text")
        if len(line) > MAX_LINE:
            raise UsageError(f"{path}, row {number} is longer than {MAX_LINE:,} bytes; shorten it")
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise UsageError(
                f"{path}, row {number}, byte {error.start}: the text is not UTF-8; save the table as UTF-8"
            ) from None


def _parquet(path: Path, file: BinaryIO) -> Iterator[Row]:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UsageError(f'reading {path} needs pyarrow: pip install "anyformer[tables]"; or save it as .csv') from None
    number = 0
    try:
        # The limits are those of the file's own description, which is read before any row.
        table: Any = pyarrow.parquet.ParquetFile(
            file, thrift_string_size_limit=2**24, thrift_container_size_limit=2**18, page_checksum_verification=True
        )
        yield Row(0, tuple(name.strip() for name in table.schema_arrow.names))
        for batch in table.iter_batches(batch_size=BATCH, use_threads=False):
            for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                number += 1
                yield Row(number, tuple(_text(path, number, cell) for cell in cells))
    except (AnyformerError, GeneratorExit):
        raise
    except Exception as error:  # on damaged data the reader fails in a dozen ways
        raise UsageError(
            f"{path} is damaged after row {number} ({reason(error)}); write it again or save it as .csv"
        ) from None


def _text(path: Path, number: int, cell: object) -> str:
    """A cell as a CSV file would hold it."""
    if cell is None:
        return ""
    if isinstance(cell, bool):
        return str(int(cell))
    if isinstance(cell, str | int | float):
        return str(cell).strip()
    raise UsageError(f"{path}, row {number}: a cell is {shown(cell)}, neither text nor a number; convert the column")
