"""From many picture files to pixels of one size; what is wrong with them is told together."""

import hashlib
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from anyformer.core.errors import UsageError
from anyformer.data.decode import decode, probe, regular
from anyformer.data.pixels import CHUNK, Pixels, gather

DEFAULT_SIDES = (8, 64)  # the range of sides chosen from the data
SIDES = (4, 1024)  # the range of sides that may be asked for
DECODING = "1"  # changes whenever the same file would give other pixels

T = TypeVar("T")


def read_pictures(where: str, files: Sequence[Path], size: int | None, rows: Sequence[int] | None = None) -> Pixels:
    """The pictures in files, each as ``decode`` gives it, with one channel when none of them has colour.

    Args:
        where: The folder or table, for errors.
        files: Paths.
        size: Side in pixels; chosen from the shorter sides when absent.
        rows: The row of the table that names each file, for errors.

    Raises:
        UsageError: Files that are not readable pictures; all of them are counted and the first five named.
    """
    check_size(size)
    headers = _each(where, files, rows, probe)
    side = size or default_size(short for short, _ in headers)
    channels = 1 if all(grey for _, grey in headers) else 3
    del headers

    def identity() -> str:
        seal = hashlib.sha256(f"pictures {DECODING} {len(files)} {side} {channels}".encode())
        for digest in _each(where, files, rows, _digest):
            seal.update(digest)
        return seal.hexdigest()

    shape = (len(files), channels, side, side)
    return gather(shape, lambda: _decoded(where, files, rows, side, channels), identity)


def check_size(size: int | None) -> None:
    """Raises UsageError for a side out of range."""
    if size is not None and not SIDES[0] <= size <= SIDES[1]:
        raise UsageError(f"the size of pictures is {SIDES[0]} to {SIDES[1]} pixels, not {size}")


def default_size(shorter_sides: Iterable[int]) -> int:
    """The median shorter side rounded to a multiple of 8, at least 8, at most 64."""
    low, high = DEFAULT_SIDES
    return min(high, max(low, 8 * round(statistics.median(shorter_sides) / 8)))


def _digest(path: Path) -> bytes:
    seal = hashlib.sha256()
    with regular(path) as file:
        while chunk := file.read(CHUNK):
            seal.update(chunk)
    return seal.digest()


def _decoded(
    where: str, files: Sequence[Path], rows: Sequence[int] | None, side: int, channels: int
) -> Iterator[np.ndarray]:
    failures = []
    for index, file in enumerate(files):
        try:
            picture = decode(file, side, channels)
        except UsageError as error:
            failures.append(_placed(where, rows, index, error))
        else:
            yield picture
    refuse(where, failures)


def _each(where: str, files: Sequence[Path], rows: Sequence[int] | None, read: Callable[[Path], T]) -> list[T]:
    """What ``read`` gives for every file; all failures are told at once, so that they can be mended at once."""
    results, failures = [], []
    for index, file in enumerate(files):
        try:
            results.append(read(file))
        except UsageError as error:
            failures.append(_placed(where, rows, index, error))
    refuse(where, failures)
    return results


def _placed(where: str, rows: Sequence[int] | None, index: int, error: UsageError) -> str:
    return f"{where}, row {rows[index]}: {error}" if rows else str(error)


def refuse(where: str, failures: Sequence[str]) -> None:
    """Raises UsageError that counts the failures and names the first five, where there are any."""
    if len(failures) > 1:
        more = f"; and {len(failures) - 5} more" if len(failures) > 5 else ""
        raise UsageError(f"{len(failures)} files in {where} cannot be used: {'; '.join(failures[:5])}{more}")
    if failures:
        raise UsageError(failures[0])
