"""``anyformer measure`` and ``anyformer compare``: progress while they run, files that keep every row, a table at the end."""

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as Grid

from anyformer.core.errors import UsageError, shown
from anyformer.measure import run
from anyformer.measure.markdown import HEADINGS, cells, remarks
from anyformer.measure.table import FORMATS, Table, save

WIDE = 400  # columns in a file or a pipe, where nothing is to be cut off


COMMANDS = {"measure": run.measure, "compare": run.compare}


def print_table(
    command: str,
    names: Sequence[str],
    *,
    runtime: str = "eager",
    precision: str = "float32",
    batch: str = "1",
    size: str = "",
    threads: int | None = None,
    seconds: float = 20.0,
    width: float = 0.04,
    memory: bool = True,
    out: Sequence[Path] | None = None,
    as_json: bool = False,
) -> None:
    """Measure, keep and print; what was measured before an interruption is kept and printed, too.

    Args:
        command: Of ``COMMANDS``: whether a model's settings take turns, or models at one setting.
        names: Names and folders.
        runtime: Runtimes, separated by commas, or ``all``.
        precision: Precisions, separated by commas.
        batch: Images a call, separated by commas.
        size: Sides, or heights and widths such as 224x160, separated by commas; each model's own when empty.
        threads: Threads a call may use.
        seconds: After which a group is given up.
        width: How narrow a ratio's interval has to become.
        memory: Whether peak memory is measured.
        out: Files, each in the format that its ending names; none when None.
        as_json: Whether JSON is printed.
    """
    from anyformer.deploy.runtime import RUNTIMES

    files = out or ()
    for path in files:
        if path.suffix not in FORMATS:
            raise UsageError(f"--out {path}: a table is written as {', '.join(FORMATS)}; name a file that ends so")
        if not path.absolute().parent.is_dir():
            raise UsageError(f"--out {path}: there is no folder {path.parent}; make it first")
    plan = {
        "runtimes": list(RUNTIMES) if runtime == "all" else _words(runtime),
        "precisions": _words(precision),
        "batches": [_number(word, "--batch") for word in _words(batch)],
        "sizes": [_size(word) for word in _words(size)] or [None],
        "threads": threads,
        "seconds": seconds,
        "width": width,
        "memory": memory,
    }
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    tables: list[Table] = []

    def keep(table: Table) -> None:
        tables[:] = [table]
        for path in files:
            if path.suffix != ".png":  # drawn once, at the end
                save(table, path)

    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("Starting", total=1.0)
        said = [""]

        def notify(what: str, share: float) -> None:
            progress.update(task, description=escape(what), completed=share)
            if not console.is_terminal and what != said[0]:
                said[0] = what
                print(f"Measuring {what}", file=sys.stderr, flush=True)

        try:
            COMMANDS[command](list(names), after=keep, notify=notify, **plan)
        finally:
            progress.stop()
            for table in tables:
                _finish(table, files, as_json)


def _finish(table: Table, out: Sequence[Path], as_json: bool) -> None:
    if as_json:
        print(table.to_json(), end="")
    else:
        _show(table)
    for path in out:
        if path.suffix == ".png" and any(row.median_ms is not None for row in table.rows):
            save(table, path)


def _show(table: Table) -> None:
    """The columns that hold anything, and the remarks."""
    rows = [cells(row) for row in table.rows]
    grid = Grid(box=None, header_style="bold")
    kept = [index for index in range(len(HEADINGS)) if index < 6 or any(row[index] != "-" for row in rows)]
    for index in kept:
        grid.add_column(HEADINGS[index], justify="left" if index < 3 else "right", no_wrap=True)
    for row in rows:
        grid.add_row(*(escape(row[index]) for index in kept))
    console = Console(width=None if sys.stdout.isatty() else WIDE)
    console.print(grid)
    for line in remarks(table):
        console.print(escape(line), highlight=False, soft_wrap=True)


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]


def _number(word: str, option: str) -> int:
    if not (word.isascii() and word.isdecimal() and len(word) < 10):
        raise UsageError(f"{option}: {shown(word)} is not a whole number; write for example {option} 1,4,16")
    return int(word)


def _size(word: str) -> tuple[int, int]:
    height, cross, width = word.partition("x")
    return _number(height, "--size"), _number(width if cross else height, "--size")
