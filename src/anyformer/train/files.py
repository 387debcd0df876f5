"""Folders that are either wholly there or not at all, and that show when a bit of them has changed.

The order is that of `core.files`: write beside, sync the files, rename, sync the folder. For local file systems of
POSIX machines.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.core.files import MANIFEST, manifest_of, read_own, sync_folder, write_synced

UNFINISHED = ".part"  # the ending of what a killed run may leave behind


def write_sealed(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes a new folder of files with a manifest of their SHA-256 digests; the folder appears whole or not at all.

    Raises:
        AnyformerError: The disk is full, the parent is missing or not writable, or the folder is there already.
    """
    beside = folder.with_name(folder.name + UNFINISHED)
    with _failures_told(folder):
        try:
            shutil.rmtree(beside, ignore_errors=True)
            beside.mkdir()
            for name, data in {**files, MANIFEST: manifest_of(files)}.items():
                write_synced(beside / name, data)
            sync_folder(beside)
            os.rename(beside, folder)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        sync_folder(folder.parent)


def read_sealed(folder: Path) -> dict[str, bytes]:
    """The files of a sealed folder, after their digests have been found to be those of the manifest.

    Raises:
        AnyformerError: A file is missing, superfluous or changed, or cannot be read; the sentence names it.
    """
    try:
        files = {path.name: read_own(path) for path in sorted(folder.iterdir())}
    except OSError as error:
        raise AnyformerError(f"{error.filename or folder} cannot be read ({error.strerror})") from error
    if MANIFEST not in files:
        raise AnyformerError(f"{folder / MANIFEST} is missing")
    manifest = files.pop(MANIFEST)
    # Comparing the bytes, not the parsed content, leaves no bit of the manifest unguarded.
    if manifest != manifest_of(files):
        raise AnyformerError(_difference(folder, manifest, files))
    return files


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder, made when missing, for one writer; the lock goes with the process, however that ends.

    Raises:
        UsageError: Another writer holds the folder.
        AnyformerError: The folder cannot be made or written to.
    """
    with _failures_told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / ".lock", "ab")  # noqa: SIM115 - held open until the end of the block below
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(f"another run is writing to {folder}; wait for it or name another folder") from None
        yield


def _difference(folder: Path, manifest: bytes, files: Mapping[str, bytes]) -> str:
    """Why the manifest is not that of the files."""
    try:
        digests = {name: entry["sha256"] for name, entry in json.loads(manifest)["files"].items()}
    except (ValueError, LookupError, TypeError, AttributeError):
        return f"{folder / MANIFEST} is damaged"
    for name in sorted(digests.keys() - files.keys()):
        return f"{folder / name} is missing"
    for name in sorted(files.keys() - digests.keys()):
        return f"{folder / name} does not belong there"
    for name, data in files.items():
        if hashlib.sha256(data).hexdigest() != digests[name]:
            return f"{folder / name} is damaged: its SHA-256 is not that of the manifest"
    return f"{folder / MANIFEST} is damaged"


@contextmanager
def _failures_told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise AnyformerError(
            f"cannot write {path}: {error.strerror or error}; free space or name another folder, then run again"
        ) from error
