"""Labelled pictures in memory, read from a folder with one sub-folder a class or built in."""

import hashlib
import math
import os
import stat
import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from anyformer.core.errors import UsageError, nearest
from anyformer.data.decode import decode, probe, resize
from anyformer.data.split import PARTS

MAX_BYTES = 4 * 2**30  # of decoded pictures, which are held in memory
DEFAULT_SIDES = (8, 64)  # the range of sides chosen from the data
SIDES = (4, 1024)  # the range of sides that may be asked for
DIGITS_STEP = 15  # one of the seventeen grey levels of `digits`, in levels of uint8
SIDECARS = {"Thumbs.db", "desktop.ini"}  # what file managers leave behind, besides hidden files

T = TypeVar("T")


@dataclass(frozen=True)
class ImageSet:
    """Pictures with their labels, whole in memory.

    Args:
        images: ``(n, channels, size, size)`` uint8.
        labels: ``(n,)`` int64, positions in ``classes``.
        classes: Names of the classes, sorted.
        names: One name a picture: its path below the folder, or its number in a built-in set.
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def channels(self) -> int:
        """1 for grey, 3 for red, green and blue."""
        return self.images.shape[1]

    @property
    def size(self) -> int:
        """Side of the pictures in pixels."""
        return self.images.shape[2]

    def digest(self) -> str:
        """SHA-256 of pixels, labels, classes and names: two sets with one digest train the same model."""
        seal = hashlib.sha256(repr((tuple(self.images.shape), self.classes, self.names)).encode())
        seal.update(self.labels.numpy().astype("<i8").tobytes())
        seal.update(self.images.contiguous().numpy().data)
        return seal.hexdigest()


def load(source: str | Path, size: int | None = None) -> ImageSet:
    """The set that ``source`` names: a built-in one, else a folder.

    Args:
        source: ``"digits"``, or a folder with one sub-folder of pictures for each class.
        size: Side in pixels; chosen from the data when absent.

    Raises:
        UsageError: There is no such set or folder, or the folder cannot be read as labelled pictures.
    """
    if source in BUILT_IN:
        return BUILT_IN[str(source)](size)
    if not os.path.exists(source):
        raise UsageError(
            f"there is no folder {source}; give a folder with one sub-folder of pictures for each class, or one of the "
            f"built-in sets: {', '.join(BUILT_IN)}{nearest(str(source), BUILT_IN)}"
        )
    return read_folder(Path(source), size)


def digits(size: int | None = None) -> ImageSet:
    """The 1,797 handwritten digits that scikit-learn carries: 8 x 8, grey, ten classes, real.

    The seventeen levels 0..16 become 0, 15, ..., 240: exact, and undone by a division by ``DIGITS_STEP``.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UsageError('the digits come with scikit-learn: pip install "anyformer[fit]"') from None

    _check_size(size)
    table: Any = load_digits()
    images = (table.images * DIGITS_STEP).astype(np.uint8)[:, None]
    if size not in (None, 8):
        images = np.stack([resize(image[0], size) for image in images])
    names = tuple(f"digits/{number:04d}" for number in range(len(images)))
    labels = torch.from_numpy(table.target.astype(np.int64))
    return ImageSet(torch.from_numpy(images), labels, tuple("0123456789"), names)


BUILT_IN: dict[str, Callable[[int | None], ImageSet]] = {"digits": digits}


def read_folder(path: str | Path, size: int | None = None) -> ImageSet:
    """Reads a folder that has one sub-folder of pictures for each class.

    Hidden files are passed over; any other file in a class that is not a picture is an error, never left out in
    silence. When no picture has colour the set has one channel. Links are followed.

    Args:
        path: The folder. Classes are the names of its sub-folders, sorted.
        size: Side in pixels. When absent, the median shorter side rounded to a multiple of 8, at least 8, at most 64.

    Raises:
        UsageError: Fewer than two classes, too few pictures in one, files that are not readable pictures (all of
            them are counted and the first five named), or more than ``MAX_BYTES`` of pixels.
    """
    _check_size(size)
    root = Path(path)
    folders = _classes(root)
    files = [(file, label) for label, folder in enumerate(folders) for file in _pictures(folder)]
    counts = Counter(label for _, label in files)
    for label, folder in enumerate(folders):
        if counts[label] < len(PARTS):
            raise UsageError(
                f"{folder} has {counts[label]} pictures; a class needs at least {len(PARTS)}, one for each of "
                f"{', '.join(PARTS)}; add some or remove the folder"
            )
    headers = _each(root, (file for file, _ in files), probe)
    size = size or _default_size(short for short, _ in headers)
    channels = 1 if all(grey for _, grey in headers) else 3
    if len(files) * channels * size**2 > MAX_BYTES:
        side = math.isqrt(MAX_BYTES // (len(files) * channels))
        remedy = f"use a size of at most {side}" if side >= SIDES[0] else "use fewer pictures"
        raise UsageError(
            f"{root} has {len(files):,} pictures, at {size} x {size} more than {MAX_BYTES / 2**30:g} GiB of memory; "
            f"{remedy}"
        )
    images = np.empty((len(files), channels, size, size), np.uint8)
    places = iter(images)

    def place(file: Path) -> None:
        next(places)[:] = decode(file, size, channels)

    _each(root, (file for file, _ in files), place)
    if channels == 3 and not any(_coloured(image) for image in images):
        images = images[:, :1].copy()
    names = tuple(f"{file.parent.name}/{file.name}" for file, _ in files)
    labels = torch.tensor([label for _, label in files])
    return ImageSet(torch.from_numpy(images), labels, tuple(folder.name for folder in folders), names)


def _check_size(size: int | None) -> None:
    if size is not None and not SIDES[0] <= size <= SIDES[1]:
        raise UsageError(f"the size of pictures is {SIDES[0]} to {SIDES[1]} pixels, not {size}")


def _default_size(shorter_sides: Iterable[int]) -> int:
    low, high = DEFAULT_SIDES
    return min(high, max(low, 8 * round(statistics.median(shorter_sides) / 8)))


def _coloured(image: np.ndarray) -> bool:
    return bool((image != image[:1]).any())


def _entries(folder: Path) -> list[Path]:
    """What a folder holds, sorted, without hidden files and the leavings of file managers."""
    try:
        found = sorted(folder.iterdir())
    except NotADirectoryError:
        raise UsageError(f"{folder} is a file; give a folder with one sub-folder of pictures for each class") from None
    except OSError as error:
        raise UsageError(f"{folder} cannot be listed ({error.strerror}); make it a readable folder") from None
    return [path for path in found if not path.name.startswith(".") and path.name not in SIDECARS]


def _classes(root: Path) -> list[Path]:
    folders = []
    for path in _entries(root):
        if _is_folder(path):
            _check_name(path)
            folders.append(path)
        elif path.suffix.lower() in (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"):
            raise UsageError(f"{path} lies outside of the classes; move it to the sub-folder of its class")
    if len(folders) < 2:
        raise UsageError(
            f"{root} has {len(folders)} sub-folders; classification needs at least two, one of pictures for each class"
        )
    return folders


def _pictures(folder: Path) -> list[Path]:
    files = _entries(folder)
    for path in files:
        _check_name(path)
        if _is_folder(path):
            raise UsageError(
                f"{path} is a folder inside of a class; put the pictures straight into {folder}, or give the folder "
                f"whose sub-folders are the classes"
            )
    return files


def _is_folder(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError as error:  # a link to nowhere or in a circle, too
        raise UsageError(f"{path} cannot be read ({error.strerror}); mend it or remove it") from None


def _check_name(path: Path) -> None:
    if not path.name.isprintable():  # line breaks, and bytes that are not UTF-8, cannot be printed or written as JSON
        raise UsageError(f"{str(path)!a} has a name that cannot be printed; rename it")


def _each(root: Path, files: Iterable[Path], read: Callable[[Path], T]) -> list[T]:
    """What ``read`` gives for every file; all failures are told at once, so that they can be mended at once."""
    results, failures = [], []
    for file in files:
        try:
            results.append(read(file))
        except UsageError as error:
            failures.append(str(error))
    if len(failures) > 1:
        more = f"; and {len(failures) - 5} more" if len(failures) > 5 else ""
        raise UsageError(f"{len(failures)} files in {root} cannot be used: {'; '.join(failures[:5])}{more}")
    if failures:
        raise UsageError(failures[0])
    return results
