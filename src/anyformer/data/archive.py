"""Pictures and targets as arrays in one ``.npz`` file, read row by row without ever unpacking the whole.

A file is untrusted: its members are known by name, nothing pickled is read, and what a member claims of its size is held
against what it has before any memory is taken.
"""

import hashlib
import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
import torch

from anyformer.core.errors import UsageError, shown
from anyformer.data.decode import reason, regular, resize
from anyformer.data.imageset import ImageSet
from anyformer.data.pixels import CHUNK, Pixels, gather
from anyformer.data.reading import DECODING, check_size, default_size
from anyformer.data.targets import Kind, Targets, check_classes, from_columns, parts_from, regression, several

KNOWN = ("images", "labels", "targets", "classes", "split")
MAX_RATIO = 100  # of unpacked to packed bytes
SMALL = 16 * 2**20  # unpacked bytes that are harmless at any ratio
MAX_PICTURE = 64 * 2**20  # bytes of one picture
MAX_TABLE = 256 * 2**20  # bytes of any array but the images


def read_archive(path: str | Path, size: int | None = None, *, kind: Kind | None = None) -> ImageSet:
    """Reads ``images`` and ``labels`` or ``targets`` from a ``.npz`` file.

    ``images`` is ``(n, height, width)`` or ``(n, height, width, channels)`` with 1 or 3 channels, uint8, or float in
    [0, 1] or [0, 255]; each becomes its centre square at ``size``. ``labels`` is ``(n,)``, whole numbers or text, for
    classes, or ``(n, k)`` of 0 and 1; ``targets`` is ``(n,)`` or ``(n, k)`` of numbers. ``classes`` may name the k labels,
    or the classes that ``labels`` counts from 0; ``split`` may hold train, validation or test for each.

    Args:
        path: The file.
        size: Side in pixels; when absent, the shorter side as for files of pictures.
        kind: Of target, where it is to be other than the arrays say.

    Raises:
        UsageError: The file is damaged, hostile or holds other arrays; the sentence names file, array and remedy.
    """
    check_size(size)
    path = Path(path)
    where = str(path)
    with _opened(path) as archive:
        tables = {name: _table(where, archive, name) for name in KNOWN[1:] if f"{name}.npy" in archive.NameToInfo}
        shape, levels = _survey(where, archive)
    targets = _targets(where, tables, shape[0], kind)
    numbers = range(1, shape[0] + 1)
    given = (
        parts_from(_words(where, "split", tables["split"], shape[0]), numbers, "split", where)
        if "split" in tables
        else None
    )
    check_classes(targets, given, where)
    side = size or default_size([min(shape[1:3])])
    channels = shape[3] if len(shape) == 4 else 1

    def identity() -> str:
        seal = hashlib.sha256(f"arrays {DECODING} {side}".encode())
        with regular(path) as file:
            while chunk := file.read(CHUNK):
                seal.update(chunk)
        return seal.hexdigest()

    pixels: Pixels = gather((shape[0], channels, side, side), lambda: _pictures(path, side, levels), identity)
    return ImageSet(
        images=pixels.tensor(),
        labels=targets.values,
        classes=targets.names,
        names=tuple(f"images[{index}]" for index in range(shape[0])),
        kind=targets.kind,
        given=given,
        rows=tuple(numbers),
        table=path.name,
        notes=(targets.note,),
        stored=pixels,
    )


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive when its list of members is as it should be; what fails inside the block is told as one sentence."""
    try:
        with regular(path) as file, zipfile.ZipFile(file) as archive:
            _check_members(path, file, archive)
            yield archive
    except UsageError:
        raise
    except Exception as error:  # on damaged data the readers fail in a dozen ways
        raise UsageError(
            f"{path} is damaged or no .npz file ({reason(error)}); save it again with numpy.savez"
        ) from None


def _check_members(path: Path, file: BinaryIO, archive: zipfile.ZipFile) -> None:
    names = [member.filename for member in archive.infolist()]
    real = file.seek(0, 2)
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name not in KNOWN or not member.filename.endswith(".npy"):
            raise UsageError(f"{path} has an array {shown(name)}; known are {', '.join(KNOWN)}; leave others out")
        if names.count(member.filename) > 1:
            raise UsageError(f"{path} has two arrays of the name {name}; save it again with numpy.savez")
        if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise UsageError(f"{path}: array {name} is encrypted or packed in another way than numpy's; save it again")
        packed = min(member.compress_size, real)
        if member.file_size > max(SMALL, MAX_RATIO * packed):
            raise UsageError(
                f"{path}: array {name} unpacks to more than {MAX_RATIO} times its size; save it again with numpy.savez, "
                "which does not pack"
            )
    if "images.npy" not in names or not {"labels.npy", "targets.npy"} & set(names):
        raise UsageError(f"{path} has {', '.join(names[:8]) or 'nothing'}; it needs images, and labels or targets")


@contextmanager
def _array(where: str, archive: zipfile.ZipFile, name: str) -> Iterator[tuple[tuple[int, ...], np.dtype, IO[bytes]]]:
    """Shape and type of an array, and the file at its first byte, once its size agrees with them."""
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read is None:
            raise UsageError(f"{where}: array {name} is of version {version} of the format; save it as plain numbers")
        shape, by_column, dtype = read(file)
        if dtype.hasobject or dtype.names or dtype.subdtype:
            raise UsageError(f"{where}: array {name} holds Python objects or records; save plain numbers or text")
        if by_column and len(shape) > 1:
            raise UsageError(f"{where}: array {name} is in column order; save numpy.ascontiguousarray of it")
        if file.tell() + math.prod(shape) * dtype.itemsize != member.file_size:
            raise UsageError(
                f"{where}: array {name} is {shape}, which its {member.file_size:,} bytes are not; save it again"
            )
        yield shape, dtype, file


def _table(where: str, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with _array(where, archive, name) as (shape, dtype, file):
        if math.prod(shape) * dtype.itemsize > MAX_TABLE or not 1 <= len(shape) <= 2 or 0 in shape:
            raise UsageError(f"{where}: array {name} is {shape}; it has one row a picture, and at most two axes")
        return np.frombuffer(file.read(), dtype).reshape(shape)


def _rows(where: str, archive: zipfile.ZipFile) -> Iterator[tuple[int, np.ndarray]]:
    """The pictures, some at a time, each time with the number of the first."""
    with _array(where, archive, "images") as (shape, dtype, file):
        bytes_each = math.prod(shape[1:]) * dtype.itemsize
        together = max(1, CHUNK // bytes_each)
        for start in range(0, shape[0], together):
            count = min(together, shape[0] - start)
            yield start, np.frombuffer(file.read(count * bytes_each), dtype).reshape(count, *shape[1:])
        file.read()  # at the end the checksum is compared


def _survey(where: str, archive: zipfile.ZipFile) -> tuple[tuple[int, ...], float]:
    """The shape of the images, and what their numbers are to be multiplied by; all are looked at."""
    with _array(where, archive, "images") as (shape, dtype, _):
        if len(shape) not in (3, 4) or 0 in shape or (len(shape) == 4 and shape[3] not in (1, 3)):
            raise UsageError(
                f"{where}: array images is {shape}; it should be (n, height, width) or (n, height, width, channels) with 1 "
                "or 3 channels"
            )
        if dtype != np.uint8 and dtype.kind != "f":
            raise UsageError(f"{where}: array images is of {dtype}; save uint8, or float from 0 to 1")
        if math.prod(shape[1:]) * dtype.itemsize > MAX_PICTURE:
            raise UsageError(f"{where}: pictures of {shape[1]} x {shape[2]} are too large; make them smaller")
    highest = 0.0
    for start, some in _rows(where, archive):
        if dtype.kind == "f":
            outside = np.argwhere(~((some >= 0) & (some <= 255)))
            if len(outside):
                index, cell = outside[0], some[tuple(outside[0])]
                raise UsageError(
                    f"{where}: images[{start + index[0]}] has {cell}; {len(outside)} of the numbers here are not finite or "
                    "not from 0 to 255; scale them to 0 to 1"
                )
            highest = max(highest, float(some.max()))
    return shape, 255.0 if dtype.kind == "f" and highest <= 1 else 1.0


def _pictures(path: Path, side: int, levels: float) -> Iterator[np.ndarray]:
    with _opened(path) as archive:
        for _, some in _rows(str(path), archive):
            whole = some if some.dtype == np.uint8 else np.round(some * levels).astype(np.uint8)
            for picture in whole:
                yield resize(picture, side)


def _targets(where: str, tables: dict[str, np.ndarray], count: int, kind: Kind | None) -> Targets:
    name = "labels" if "labels" in tables else "targets"
    table, rows = tables[name], range(1, count + 1)
    if "labels" in tables and "targets" in tables:
        raise UsageError(f"{where} has labels and targets; leave one of them out")
    if len(table) != count:
        raise UsageError(f"{where} has {count} images and {len(table)} {name}; save one for each")
    if table.dtype.kind not in "biufUS":
        raise UsageError(f"{where}: array {name} is of {table.dtype}; save numbers or text")
    classes = _words(where, "classes", tables["classes"]) if "classes" in tables else None
    if table.dtype.kind == "f" and not np.isfinite(table).all():
        bad = np.argwhere(~np.isfinite(table))
        raise UsageError(
            f"{where}: {name} has {len(bad)} numbers that are not finite, the first in row {bad[0][0] + 1}; mend them"
        )
    if name == "targets" and kind in (None, "regression") and table.dtype.kind in "biuf":
        wide = table.reshape(count, -1).astype(np.float64)
        return regression(
            wide, tuple(classes or map(str, range(wide.shape[1]))), where, "targets are read as regression"
        )
    if table.ndim == 2:
        if not np.isin(table, (0, 1)).all() or kind == "classes":
            raise UsageError(
                f"{where}: {name} of {table.shape} should be 0 and 1, a column for each label; save numbers as targets"
            )
        names = tuple(classes or map(str, range(table.shape[1])))
        if len(names) != table.shape[1]:
            raise UsageError(
                f"{where} has {len(names)} classes for {table.shape[1]} columns of labels; save one for each"
            )
        return several(table, names, where, f"{name} are read as multilabel")
    if table.dtype.kind == "f" and kind != "regression":
        raise UsageError(
            f"{where}: labels of classes are whole numbers or text; save numbers to be predicted as targets"
        )
    words = _words(where, name, table)
    if classes is None or kind == "regression":
        return from_columns({name: words}, rows, where, kind or "classes")
    places = np.array([int(word) if word.isdecimal() else -1 for word in words])
    if not ((places >= 0) & (places < len(classes))).all() or len(set(classes)) != len(classes):
        raise UsageError(f"{where}: labels should count the {len(classes)} different classes from 0; correct them")
    return Targets("classes", torch.from_numpy(places), tuple(classes), "labels are read as classes")


def _words(where: str, name: str, table: np.ndarray, count: int | None = None) -> list[str]:
    if table.ndim != 1 or (count is not None and len(table) != count):
        raise UsageError(f"{where}: array {name} is {table.shape}; save one word or number for each")
    try:
        return [value.decode() if isinstance(value, bytes) else str(value).strip() for value in table.tolist()]
    except UnicodeDecodeError:
        raise UsageError(f"{where}: array {name} is not UTF-8; save text") from None
