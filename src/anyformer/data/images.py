"""The one way from what a user names to pictures with targets: a folder, a table, an archive, or a built-in set."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anyformer.core.errors import UsageError, nearest
from anyformer.data.archive import read_archive
from anyformer.data.decode import resize
from anyformer.data.folder import read_folder
from anyformer.data.glyphs import glyphs
from anyformer.data.imageset import ImageSet
from anyformer.data.manifest import read_manifest
from anyformer.data.reading import check_size
from anyformer.data.tables import ENDINGS
from anyformer.data.targets import Kind, check_kind

__all__ = ["BUILT_IN", "DIGITS_STEP", "ImageSet", "digits", "load", "read_archive", "read_folder", "read_manifest"]

DIGITS_STEP = 15  # one of the seventeen grey levels of `digits`, in levels of uint8


def load(
    source: str | Path,
    size: int | None = None,
    *,
    kind: Kind | None = None,
    files: str | None = None,
    target: Sequence[str] = (),
) -> ImageSet:
    """The set that ``source`` names.

    Args:
        source: ``"digits"``, ``"glyphs"``; a folder with one sub-folder of pictures for each class, or with the folders
            ``train`` and ``test`` of such; a ``.csv``, ``.tsv`` or ``.parquet`` table of files and targets; or a ``.npz``
            archive of images and targets.
        size: Side in pixels; chosen from the data when absent.
        kind: Of target: classes, multilabel or regression; found from the data when absent.
        files: Of a table, the column of picture files; found from its name when absent.
        target: Of a table, the columns of targets; found from their names when empty.

    Raises:
        UsageError: There is no such set or file, or it cannot be read as pictures with targets.
    """
    check_kind(kind)
    path = Path(source)
    ending = path.suffix.lower()
    if (files is not None or target) and ending not in ENDINGS:
        raise UsageError(f"{source} is no table; columns can be named for {', '.join(ENDINGS)}")
    if source in BUILT_IN or os.path.isdir(source):
        if kind not in (None, "classes"):
            raise UsageError(f"{source} has classes; {kind} needs a table or a .npz archive")
        return BUILT_IN[str(source)](size) if source in BUILT_IN else read_folder(path, size)
    if not os.path.lexists(source):
        raise UsageError(
            f"there is no folder or file {str(source)!a}; give a folder with one sub-folder of pictures for each class, a "
            f"table ({', '.join(ENDINGS)}), a .npz archive, or one of the built-in sets: {', '.join(BUILT_IN)}"
            f"{nearest(str(source), BUILT_IN)}"
        )
    if ending in ENDINGS:
        return read_manifest(path, size, kind=kind, files=files, target=target)
    if ending == ".npz":
        return read_archive(path, size, kind=kind)
    raise UsageError(
        f"{source} is neither a folder nor a table ({', '.join(ENDINGS)}) nor a .npz archive; give a folder with one "
        "sub-folder of pictures for each class"
    )


def digits(size: int | None = None) -> ImageSet:
    """The 1,797 handwritten digits that scikit-learn carries: 8 x 8, grey, ten classes, real.

    The seventeen levels 0..16 become 0, 15, ..., 240: exact, and undone by a division by ``DIGITS_STEP``.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise UsageError('the digits come with scikit-learn: pip install "anyformer[fit]"') from None

    check_size(size)
    table: Any = load_digits()
    images = (table.images * DIGITS_STEP).astype(np.uint8)[:, None]
    if size not in (None, 8):
        images = np.stack([resize(image[0], size) for image in images])
    names = tuple(f"digits/{number:04d}" for number in range(len(images)))
    labels = torch.from_numpy(table.target.astype(np.int64))
    return ImageSet(torch.from_numpy(images), labels, tuple("0123456789"), names)


BUILT_IN: dict[str, Callable[[int | None], ImageSet]] = {"digits": digits, "glyphs": glyphs}
