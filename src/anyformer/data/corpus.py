"""Texts in files, addressed as one row of bytes that is read where it is asked for and never held."""

import hashlib
import os
import platform
import stat
import sysconfig
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.data.decode import regular
from anyformer.data.folder import SIDECARS
from anyformer.data.reading import refuse
from anyformer.data.seeds import derive_seed
from anyformer.data.targets import PARTS

FRACTIONS = (0.9, 0.05, 0.05)
BLOCKS = 40  # a text of one file is divided in so many
CHUNK = 2**20  # bytes handled together
NEAREST_LINE = 2**16  # bytes in which the end of a line is looked for, where a file is cut
NOT_SOURCES = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3"}


@dataclass(frozen=True)
class Text:
    """Stretches of files, one behind the other.

    Args:
        where: What was read, for errors.
        paths: The files.
        names: Of the files, below what was read: the same on every machine.
        sizes: ``(files,)`` int64, bytes.
        spans: ``(stretches, 3)`` int64: file, first byte, byte behind the last.
        notes: What was passed over and how the parts were made, in sentences for a report.
    """

    where: str
    paths: tuple[Path, ...]
    names: tuple[str, ...]
    sizes: np.ndarray
    spans: np.ndarray
    notes: tuple[str, ...] = field(default=())

    @cached_property
    def starts(self) -> list[int]:
        """Where each stretch begins in the whole, and the size of the whole."""
        return [0, *np.cumsum(self.spans[:, 2] - self.spans[:, 1]).tolist()]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self.starts[-1]

    def read(self, start: int, count: int) -> bytes:
        """The bytes from ``start`` on, ``count`` of them where there are so many.

        Raises:
            AnyformerError: A file was shortened or removed since it was listed.
        """
        pieces, place = [], bisect_right(self.starts, start) - 1
        while count and place < len(self.spans):
            file, first, stop = self.spans[place].tolist()
            begin = first + start - self.starts[place]
            piece = self._piece(file, begin, min(count, stop - begin))
            pieces.append(piece)
            start, count, place = start + len(piece), count - len(piece), place + 1
        return b"".join(pieces)

    def documents(self, chunk: int = CHUNK) -> Iterator[tuple[bytes, bool]]:
        """All bytes in pieces that end with a line where they can, and whether a piece ends its file."""
        for file, first, stop in self.spans.tolist():
            while first < stop:
                end = stop if stop - first <= chunk else self._cut(file, first + chunk, stop)
                yield self._piece(file, first, end - first), end == self.sizes[file]
                first = end

    def digest(self) -> str:
        """SHA-256 of names, stretches and bytes: two texts with one digest train the same model."""
        seal = hashlib.sha256()
        for file, first, stop in self.spans.tolist():
            seal.update(f"{self.names[file]!a} {first} {stop}\n".encode())
            for start in range(first, stop, CHUNK):
                seal.update(self._piece(file, start, min(CHUNK, stop - start)))
        return seal.hexdigest()

    def divide(self, seed: int, fractions: Sequence[float] = FRACTIONS) -> "tuple[Text, Text, Text]":
        """Training, validation and test part, at random by the seed alone.

        Whole files are dealt out, and of those with more than a fortieth of all bytes blocks of about so many, cut at ends of
        lines: few long files are divided as well as many short ones.

        Args:
            seed: Names the division.
            fractions: Of the bytes, for each part.

        Raises:
            UsageError: The text is too short.
        """
        blocks = list(self._blocks())
        if len(blocks) < len(PARTS):
            raise UsageError(
                f"{self.where} has {self.size:,} bytes, which is too short a text for {', '.join(PARTS)}; give more"
            )
        order = sorted(
            range(len(blocks)), key=lambda i: derive_seed(seed, "split", self.names[blocks[i][0]], blocks[i][1])
        )
        parts: list[list[int]] = [order, [], []]
        for place, fraction in enumerate(fractions[1:], 1):
            dealt = 0
            # one block at least is left for each part that comes after, training among them
            while dealt < fraction * self.size and len(order) > len(PARTS) - place:
                parts[place].append(order.pop())
                dealt += blocks[parts[place][-1]][2] - blocks[parts[place][-1]][1]
        note = f"{len(blocks):,} files and blocks of long files are dealt out to the parts by the seed {seed}"
        train, validation, test = (
            Text(
                f"{self.where} ({name})",
                self.paths,
                self.names,
                self.sizes,
                np.array([blocks[i] for i in sorted(part)], np.int64),
                (*self.notes, note),
            )
            for name, part in zip(PARTS, parts, strict=True)
        )
        return train, validation, test

    def _blocks(self) -> Iterator[list[int]]:
        """The stretches, cut where they are longer than the whole divided by ``BLOCKS``."""
        length = max(1, -(-self.size // BLOCKS))
        for file, first, stop in self.spans.tolist():
            while first < stop:
                end = self._cut(file, min(stop, first + length), stop)
                yield [file, first, end]
                first = end

    def _cut(self, file: int, place: int, stop: int) -> int:
        """The first place from ``place`` on where a line ends; in a very long line, where a character does."""
        if place >= stop:
            return stop
        near = self._piece(file, place - 1, min(NEAREST_LINE, stop - place + 1))
        line = near.find(b"\n")
        if line >= 0:
            return place + line
        behind = next((i for i, byte in enumerate(near[1:5]) if byte & 0xC0 != 0x80), 0)
        return place + behind

    def _piece(self, file: int, start: int, count: int) -> bytes:
        try:
            with open(self.paths[file], "rb") as opened:
                opened.seek(start)
                piece = opened.read(count)
        except OSError as error:
            raise AnyformerError(f"{self.paths[file]} cannot be read any more ({error.strerror}); run again") from None
        if len(piece) < count:
            raise AnyformerError(f"{self.paths[file]} was cut short while it was in use; run again")
        return piece


def read_text(path: str | Path, endings: Sequence[str] = ()) -> Text:
    """A file, a folder of files with all that lies below it, or ``stdlib``: the standard library of this interpreter.

    Any bytes are text. Hidden files, what file managers leave behind and empty files are passed over; links are followed,
    and what is reached twice counts once.

    Args:
        path: Of the file or the folder, or ``stdlib``.
        endings: Of the names of files in a folder, such as ``.txt``; all when empty.

    Raises:
        UsageError: There is nothing to read, or files are not readable (all are counted, the first five named).
    """
    if str(path) == "stdlib":
        return _standard_library()
    root = Path(path)
    try:
        is_folder = stat.S_ISDIR(root.stat().st_mode)
    except OSError as error:
        raise UsageError(f"{root} cannot be read ({error.strerror}); give a text file or a folder of them") from None
    if not is_folder:
        with regular(root) as file:
            size = os.fstat(file.fileno()).st_size
        return _text(str(root), [(root, size)], lambda path: path.name, ())
    found = [entry for entry in _walk(root) if entry.name.endswith(tuple(endings) or "")]
    files, notes = _sizes(str(root), found)
    if not files:
        kinds = f" that ends in {', '.join(endings)}" if endings else ""
        raise UsageError(f"{root} holds no file{kinds} with text; give a file, or a folder of files")
    return _text(str(root), files, lambda path: path.relative_to(root).as_posix(), notes)


def _standard_library() -> Text:
    """The sources of the running interpreter's standard library, without its tests and what was installed beside it."""
    root = Path(sysconfig.get_paths()["stdlib"])
    sources = [path for path in _walk(root, NOT_SOURCES) if path.suffix == ".py"]
    # what the interpreter was configured with names this machine
    files, _ = _sizes("stdlib", [path for path in sources if not path.name.startswith("_sysconfigdata")])
    if not files:
        raise UsageError(f"there are no sources of the standard library in {root}; give a folder of texts instead")
    note = f"the sources of the standard library of Python {platform.python_version()}, {len(files):,} files"
    return _text("stdlib", files, lambda path: path.relative_to(root).as_posix(), (note,))


def _text(where: str, files: Sequence[tuple[Path, int]], name: Callable[[Path], str], notes: tuple[str, ...]) -> Text:
    sizes = np.array([size for _, size in files], np.int64)
    spans = np.stack((np.arange(len(files)), np.zeros_like(sizes), sizes), axis=1)
    paths = tuple(path for path, _ in files)
    return Text(where, paths, tuple(map(name, paths)), sizes, spans, notes)


def _walk(folder: Path, without: Collection[str] = ()) -> Iterator[Path]:
    """All files below a folder that are not hidden, in the order of their names; no folder is entered twice.

    Args:
        folder: Where to begin.
        without: Names of folders that are not entered.
    """
    entered: set[tuple[int, int]] = set()

    def enter(folder: Path) -> Iterator[Path]:
        try:
            status = folder.stat()
            inside = sorted(folder.iterdir())
        except OSError as error:
            raise UsageError(f"{folder} cannot be listed ({error.strerror}); make it a readable folder") from None
        if (status.st_dev, status.st_ino) in entered:  # a link, perhaps to a folder that holds it
            return
        entered.add((status.st_dev, status.st_ino))
        for path in inside:
            if path.name.startswith(".") or path.name in SIDECARS:
                continue
            if path.is_dir():
                if path.name not in without:
                    yield from enter(path)
            else:
                yield path

    yield from enter(folder)


def _sizes(where: str, paths: Sequence[Path]) -> tuple[list[tuple[Path, int]], tuple[str, ...]]:
    """The files that hold something with their sizes, each once, and what was passed over."""
    files: list[tuple[Path, int]] = []
    failures: list[str] = []
    seen: set[tuple[int, int]] = set()
    empty = 0
    for path in paths:
        try:
            status = path.stat()
            if stat.S_ISREG(status.st_mode) and status.st_size == 0:
                empty += 1
            elif (status.st_dev, status.st_ino) not in seen:
                seen.add((status.st_dev, status.st_ino))
                with regular(path) as file:
                    files.append((path, os.fstat(file.fileno()).st_size))
        except OSError as error:  # a link to nowhere or in a circle, too
            failures.append(f"{path} cannot be read ({error.strerror}); mend it or remove it")
        except UsageError as error:
            failures.append(str(error))
    refuse(where, failures)
    return files, (f"{empty:,} empty files are passed over",) if empty else ()
