"""Decoded pictures, in memory while they are few and in a file when they are many, read a batch at a time.

The file lies in ``pictures`` in ``$ANYFORMER_CACHE`` (``~/.cache/anyformer`` when unset), named by a digest of all that it
was made from, with the digest of its own bytes beside it. So pictures are decoded once, and memory does not grow with
their number. Deleting the folder costs only decoding them again.
"""

import hashlib
import json
import math
import os
import shutil
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.core.files import write_atomic

IN_MEMORY = 64 * 2**20  # bytes of pixels up to which no file is written
KEPT = 16 * 2**30  # bytes of pixel files that stay; beyond, those unused for the longest go
ABANDONED = 24 * 3600  # seconds after which nobody writes a file any more
ROOM = 1.05  # free space asked for beyond the pixels
CHUNK = 4 * 2**20  # bytes handled together


class PixelFile:
    """Pictures ``shape`` of uint8, one behind the other in a file that is held open and only read.

    Args:
        path: The file.
        shape: ``(n, channels, height, width)``.
    """

    def __init__(self, path: Path, shape: tuple[int, ...]):
        self.path, self.shape = path, shape
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)

    def read(self, positions: Tensor) -> Tensor:
        """A copy of the pictures at ``positions`` ``(count,)``.

        Raises:
            AnyformerError: The file was shortened, or the disk fails.
        """
        images = np.empty((len(positions), *self.shape[1:]), np.uint8)
        # Reads, not a mapping: what a mapping has touched stays in memory, and a file cut short would kill the process.
        for image, position in zip(images, positions.tolist(), strict=True):
            try:
                whole = os.preadv(self.descriptor, [image], position * image.nbytes) == image.nbytes
            except OSError:
                whole = False
            if not whole:
                raise AnyformerError(f"{self.path} was cut short while it was in use; delete it and run again")
        return torch.from_numpy(images)

    def mapped(self) -> Tensor:
        """All pictures as one tensor whose pages the system reads when they are touched; writing to it is private."""
        return torch.from_numpy(np.memmap(self.path, np.uint8, mode="c", shape=self.shape))


class Pixels:
    """Pictures that are indexed like a uint8 tensor ``(n, channels, height, width)`` and read when they are.

    Args:
        source: Where they are.
        positions: Which of them, in this order; all when absent.
    """

    def __init__(self, source: Tensor | PixelFile, positions: Tensor | None = None):
        self.source = source
        self.positions = torch.arange(source.shape[0]) if positions is None else positions

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n, channels, height, width)``."""
        return (len(self), *self.source.shape[1:])

    def __getitem__(self, index: int | slice | Tensor) -> Tensor:
        chosen = self.positions[index]
        read = self.source.read if isinstance(self.source, PixelFile) else self.source.__getitem__
        return read(chosen) if chosen.ndim else read(chosen[None])[0]

    def part(self, positions: Tensor) -> "Pixels":
        """Some of the pictures ``(count,)``; nothing is read yet."""
        return Pixels(self.source, self.positions[positions])

    def split(self, size: int) -> Iterator[Tensor]:
        """All pictures in order, ``size`` at a time."""
        return (self[start : start + size] for start in range(0, len(self), size))

    def chunks(self) -> Iterator[Tensor]:
        """All pictures in order, some megabytes at a time."""
        return self.split(max(1, CHUNK // math.prod(self.shape[1:])))

    def tensor(self) -> Tensor:
        """All pictures as one tensor, mapped where they lie in a file; parts of a whole are copied."""
        if len(self) != self.source.shape[0] or not torch.equal(self.positions, torch.arange(len(self))):
            return self[:]
        return self.source.mapped() if isinstance(self.source, PixelFile) else self.source


def gather(
    shape: tuple[int, int, int, int], pictures: Callable[[], Iterable[np.ndarray]], identity: Callable[[], str]
) -> Pixels:
    """The pictures that an iteration gives, in memory or in the cache; with one channel when none of them has colour.

    Args:
        shape: ``(n, channels, size, size)`` of what comes.
        pictures: Gives ``n`` arrays ``(channels, size, size)`` of uint8; not called when the cache has them.
        identity: A digest of what the pictures are made from and how; called only when they are too many for memory.

    Raises:
        UsageError: The disk has no room for them.
        AnyformerError: Writing failed.
    """
    if math.prod(shape) <= IN_MEMORY:
        images = np.empty(shape, np.uint8)
        coloured = False
        for place, picture in zip(images, pictures(), strict=True):
            place[:] = picture
            coloured = coloured or has_colour(picture)
        return Pixels(torch.from_numpy(images if coloured or shape[1] == 1 else images[:, :1].copy()))
    folder = cache_folder()
    path = folder / f"{identity()}.pixels"
    found = _known(path)
    if found is None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _check_room(folder, shape)
            _write(path, shape, pictures())
            _drop_oldest(folder, path)
        except OSError as error:
            raise AnyformerError(
                f"cannot write {error.filename or path} ({error.strerror}); free space, or set ANYFORMER_CACHE to "
                "a folder on another disk"
            ) from error
        found = _known(path)
    if found is None:
        raise AnyformerError(f"{path} was damaged while it was written; check the disk, then run again")
    return Pixels(found)


def cache_folder() -> Path:
    """Where pixel files lie."""
    folder = os.environ.get("ANYFORMER_CACHE")
    return (Path(folder) if folder else Path.home() / ".cache" / "anyformer") / "pictures"


def has_colour(picture: np.ndarray) -> bool:
    """Whether the channels ``(channels, height, width)`` differ anywhere."""
    return bool((picture != picture[:1]).any())


def _known(path: Path) -> PixelFile | None:
    """The pixel file, when it and the note beside it are whole."""
    try:
        note = json.loads(path.with_suffix(".json").read_bytes())
        seal = hashlib.sha256()
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                seal.update(chunk)
        if seal.hexdigest() != note["sha256"]:
            return None
        os.utime(path)
        return PixelFile(path, tuple(note["shape"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _check_room(folder: Path, shape: tuple[int, int, int, int]) -> None:
    free, count, channels, size = shutil.disk_usage(folder).free, *shape[:3]
    if math.prod(shape) * ROOM > free:
        side = math.isqrt(int(free / ROOM) // (count * channels))
        remedy = f"use a size of at most {side}, free space" if side >= 4 else "use fewer pictures, free space"
        raise UsageError(
            f"{count:,} pictures at {size} x {size} take {math.prod(shape) / 2**30:.3g} GiB in {folder}, which has "
            f"{free / 2**30:.3g} GiB free; {remedy}, or set ANYFORMER_CACHE to a folder on another disk"
        )


def _write(path: Path, shape: tuple[int, int, int, int], pictures: Iterable[np.ndarray]) -> None:
    """Writes pixels beside their place, then the note, and renames; a killed run leaves only a ``.partial``."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.partial")
    coloured, count = shape[1] == 1, 0
    try:
        with open(beside, "wb") as file:
            for picture in pictures:
                file.write(picture.tobytes())
                coloured, count = coloured or has_colour(picture), count + 1
            _sync(file)
        if count != shape[0]:
            raise AnyformerError(
                f"{count} pictures came where {shape[0]} were announced; they changed while being read"
            )
        if not coloured:
            shape = (shape[0], 1, *shape[2:])
            _keep_first_channel(beside, shape)
        seal = hashlib.sha256()
        with open(beside, "rb") as file:
            while chunk := file.read(CHUNK):
                seal.update(chunk)
        os.replace(beside, path)
        write_atomic(path.with_suffix(".json"), json.dumps({"shape": shape, "sha256": seal.hexdigest()}).encode())
    finally:
        beside.unlink(missing_ok=True)


def _keep_first_channel(path: Path, shape: tuple[int, int, int, int]) -> None:
    """Leaves one of three channels that are equal, in place: what is written never overtakes what is read."""
    plane = shape[2] * shape[3]
    with open(path, "r+b") as file:
        for position in range(shape[0]):
            file.seek(3 * position * plane)
            first = file.read(plane)
            file.seek(position * plane)
            file.write(first)
        file.truncate(shape[0] * plane)
        _sync(file)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _drop_oldest(folder: Path, newest: Path) -> None:
    """Removes pixel files beyond ``KEPT`` bytes, those unused for the longest first; who has one open keeps it.

    What a killed run left behind goes too.
    """
    for partial in folder.glob("*.partial"):
        with suppress(OSError):
            if time.time() - partial.stat().st_mtime > ABANDONED:
                partial.unlink()
    files = sorted((file for file in folder.glob("*.pixels") if file != newest), key=lambda file: -file.stat().st_mtime)
    total = newest.stat().st_size
    for file in files:
        total += file.stat().st_size
        if total > KEPT:
            with suppress(OSError):
                file.unlink()
                file.with_suffix(".json").unlink()
