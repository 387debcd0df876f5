"""Pictures named by a table: one row a picture, with its file and what is to be predicted of it."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from anyformer.core.errors import UsageError, nearest, shown
from anyformer.data.imageset import ImageSet
from anyformer.data.reading import read_pictures
from anyformer.data.tables import rows
from anyformer.data.targets import Kind, check_classes, from_columns, parts_from

PATHS = ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "picture")
TARGETS = ("target", "targets", "label", "labels", "class", "tags")
SPLITS = ("split", "part")
LONGEST_PATH = 1024  # characters


def read_manifest(
    path: str | Path,
    size: int | None = None,
    *,
    kind: Kind | None = None,
    files: str | None = None,
    target: Sequence[str] = (),
) -> ImageSet:
    """Reads a ``.csv``, ``.tsv`` or ``.parquet`` table with a column of picture files and one or several of targets.

    Files are named relative to the table's folder, below it. A column ``split`` with train, validation and test in its
    cells gives the parts. Of a column of targets, ``targets.from_columns`` says what is made.

    Args:
        path: The table.
        size: Side in pixels; chosen from the data when absent.
        kind: Of target; found from the cells when absent.
        files: The column of files; that with a name of ``PATHS`` when absent.
        target: The columns of targets; when empty, the one with a name of ``TARGETS``, else all that are left.

    Raises:
        UsageError: The table, a cell or a picture cannot be used; the sentence names file, row and remedy.
    """
    path = Path(path)
    where = str(path)
    table = rows(path)
    header = next(table, None)
    names = header.cells if header else ()
    file_column = _column(where, names, files, PATHS, "picture files, relative to the table", "path", "files=")
    split_column = next((name for name in names if name.lower() in SPLITS and name not in target), None)
    chosen = _targets(where, names, target, {file_column, split_column})
    wanted = [file_column, *chosen, *([split_column] if split_column else [])]
    places = [names.index(name) for name in wanted]
    columns: list[list[str]] = [[] for _ in wanted]
    seen: dict[str, str] = {}  # one object for each different cell of a target, of which there are few
    numbers = []
    for row in table:
        numbers.append(row.number)
        for column, place in zip(columns, places, strict=True):
            cell = row.cells[place]
            column.append(cell if column is columns[0] else seen.setdefault(cell, cell))
    if not numbers:
        raise UsageError(f"{where} has no row below its header; add one for each picture")
    _check_files(where, columns[0], numbers)
    targets = from_columns(dict(zip(chosen, columns[1:], strict=False)), numbers, where, kind)
    given = parts_from(columns[-1], numbers, split_column, where) if split_column else None
    check_classes(targets, given, where)
    pixels = read_pictures(where, [path.parent / file for file in columns[0]], size, numbers)
    left = [name for name in names if name and name not in wanted]
    return ImageSet(
        images=pixels.tensor(),
        labels=targets.values,
        classes=targets.names,
        names=tuple(columns[0]),
        kind=targets.kind,
        given=given,
        rows=tuple(numbers),
        table=path.name,
        notes=(targets.note, *([f"columns left out: {', '.join(left)}"] if left else [])),
        stored=pixels,
    )


def _column(
    where: str, names: Sequence[str], asked: str | None, usual: Sequence[str], what: str, name: str, option: str
) -> str:
    if asked is not None:
        if asked not in names:
            raise UsageError(f"{where} has no column {shown(asked)}{nearest(asked, names) or _has(names)}")
        return asked
    found = [name for name in names if name.lower() in usual]
    if len(found) != 1:
        count = "several columns" if found else "no column"
        raise UsageError(f"{where} has {count} of {what}{_has(names)}; name one {name!r} or say {option}")
    return found[0]


def _has(names: Sequence[str]) -> str:
    return f" (it has {', '.join(shown(name) for name in names[:8])}{', ...' if len(names) > 8 else ''})"


def _targets(where: str, names: Sequence[str], asked: Sequence[str], taken: set[str | None]) -> list[str]:
    if asked:
        return [_column(where, names, name, (), "", "", "") for name in asked]
    left = [name for name in names if name and name not in taken]
    usual = [name for name in left if name.lower() in TARGETS]
    if not left:
        raise UsageError(f"{where} has no column of targets{_has(names)}; add one of the name 'label'")
    return usual if len(usual) == 1 else left


def _check_files(where: str, files: Sequence[str], numbers: Sequence[int]) -> None:
    """That every file is named once and lies below the table."""
    rows_of: dict[str, int] = {}
    for file, number in zip(files, numbers, strict=True):
        parts = PurePosixPath(file).parts
        plain = len(file) <= LONGEST_PATH and file.isprintable()
        if not parts or not plain or parts[0].startswith("/") or ".." in parts:
            raise UsageError(
                f"{where}, row {number}: {shown(file)} is no file below the folder of the table; write the path relative "
                "to it"
            )
        name = str(PurePosixPath(file))
        if name in rows_of:
            raise UsageError(
                f"{where}, row {number}: {shown(file)} was named in row {rows_of[name]} already; keep one of the rows"
            )
        rows_of[name] = number
