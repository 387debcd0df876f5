"""Labelled pictures in a folder with one sub-folder a class, or two such folders, ``train`` and ``test``."""

import stat
from pathlib import Path

import torch

from anyformer.core.errors import UsageError
from anyformer.data.imageset import ImageSet
from anyformer.data.reading import read_pictures
from anyformer.data.targets import PARTS, Targets, check_classes

SIDECARS = {"Thumbs.db", "desktop.ini"}  # what file managers leave behind, besides hidden files
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")
PART_FOLDERS = {"train": 0, "validation": 1, "val": 1, "test": 2}


def read_folder(path: str | Path, size: int | None = None) -> ImageSet:
    """Reads a folder that has one sub-folder of pictures for each class.

    Where its sub-folders are ``train`` and ``test``, and ``validation`` or ``val`` if there is a third, and hold folders
    themselves, each is read so, and the pictures stay in the parts that they were put in. Hidden files are passed over;
    any other file in a class that is not a picture is an error, never left out in silence. When no picture has colour the
    set has one channel. Links are followed.

    Args:
        path: The folder. Classes are the names of its sub-folders, sorted.
        size: Side in pixels. When absent, the median shorter side rounded to a multiple of 8, at least 8, at most 64.

    Raises:
        UsageError: Fewer than two classes, too few pictures in one, or files that are not readable pictures (all of them
            are counted and the first five named).
    """
    root = Path(path)
    parts = _parts(root)
    folders = [(part, folder) for part, above in parts for folder in _classes(above, 1 if len(parts) > 1 else 2)]
    classes = sorted({folder.name for _, folder in folders})
    files = [(file, part, folder.name) for part, folder in folders for file in _pictures(folder)]
    places = {name: place for place, name in enumerate(classes)}
    labels = torch.tensor([places[name] for _, _, name in files], dtype=torch.int64)
    divided = len(parts) > 1
    given = torch.tensor([part for _, part, _ in files], dtype=torch.int8) if divided else None
    if not divided:
        for (_, folder), count in zip(folders, labels.bincount(minlength=len(classes)).tolist(), strict=True):
            if count < len(PARTS):
                raise UsageError(
                    f"{folder} has {count} pictures; a class needs at least {len(PARTS)}, one for each of "
                    f"{', '.join(PARTS)}; add some or remove the folder"
                )
    check_classes(Targets("classes", labels, tuple(classes)), given, str(root))
    pixels = read_pictures(str(root), [file for file, _, _ in files], size)
    return ImageSet(
        images=pixels.tensor(),
        labels=labels,
        classes=tuple(classes),
        names=tuple(file.relative_to(root).as_posix() for file, _, _ in files),
        given=given,
        notes=("the parts are those of the folders train and test",) if divided else (),
        stored=pixels,
    )


def _parts(root: Path) -> list[tuple[int, Path]]:
    """The folders of parts with their places in ``PARTS``; the root alone where it holds classes."""
    folders = [path for path in _entries(root) if _is_folder(path)]
    names = {path.name for path in folders}
    two = {"train", "test"} <= names <= set(PART_FOLDERS) and len(names) <= len(PARTS)
    if two and all(any(map(_is_folder, _entries(path))) for path in folders):
        return [(PART_FOLDERS[path.name], path) for path in sorted(folders, key=lambda path: PART_FOLDERS[path.name])]
    return [(0, root)]


def _entries(folder: Path) -> list[Path]:
    """What a folder holds, sorted, without hidden files and the leavings of file managers."""
    try:
        found = sorted(folder.iterdir())
    except OSError as error:
        raise UsageError(f"{folder} cannot be listed ({error.strerror}); make it a readable folder") from None
    return [path for path in found if not path.name.startswith(".") and path.name not in SIDECARS]


def _classes(root: Path, least: int) -> list[Path]:
    folders = []
    for path in _entries(root):
        if _is_folder(path):
            _check_name(path)
            folders.append(path)
        elif path.suffix.lower() in PICTURES:
            raise UsageError(f"{path} lies outside of the classes; move it to the sub-folder of its class")
    if len(folders) < least:
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
