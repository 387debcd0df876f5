"""Files written so that a crash leaves the old one or the new one, and folders whose digests are checked before use."""

import errno
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from anyformer.core.errors import AnyformerError

MANIFEST = "manifest.json"


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file beside its place, sync it, rename it into place, sync the folder.

    Raises:
        AnyformerError: when the system refuses (full disk, no permission); the old file is there then, or the new one.
    """
    _write_all({path: data})


def _write_all(contents: Mapping[Path, bytes]) -> None:
    """Write files beside their places and sync them all; only then rename them into place and sync their folders."""
    ending = secrets.token_hex(4)
    beside = {path: path.with_name(f".{path.name}.{ending}.partial") for path in contents}
    try:
        for path, data in contents.items():
            write_synced(beside[path], data)
        for path in contents:
            os.replace(beside[path], path)
        for folder in {path.parent for path in contents}:
            sync_folder(folder)
    except OSError as error:
        names = ", ".join(map(str, contents))
        raise AnyformerError(
            f"could not write {names} ({error.strerror}); free space or choose another folder"
        ) from error
    finally:
        for partial in beside.values():
            with suppress(OSError):
                partial.unlink()


def write_synced(path: Path, data: bytes) -> None:
    """Write a file in its place, through to the disk. Raises OSError when the system refuses."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def manifest_of(contents: Mapping[str, bytes]) -> bytes:
    """The manifest of files: SHA-256 digest and size of each by name, the same bytes for the same files in any order."""
    digests = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in contents.items()
    }
    return json.dumps({"files": digests}, indent=1, sort_keys=True).encode() + b"\n"


def write_manifest(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files into a folder with the manifest of their SHA-256 digests, all beside their places before any is renamed.

    What was in the folder before is whole until everything new is on the disk.

    Raises:
        AnyformerError: when the system refuses (full disk, no permission).
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AnyformerError(f"could not make the folder {folder} ({error.strerror}); choose another") from error
    _write_all({folder / name: data for name, data in {**contents, MANIFEST: manifest_of(contents)}.items()})


def read_own(path: Path) -> bytes:
    """The bytes of a file that lies where it says: a regular file, no symbolic link, no second name of another file.

    Raises:
        OSError: when the system refuses.
        AnyformerError: for a link or anything else that is no file of its own.
    """
    refusal = AnyformerError(f"{path} is a link or no file; put a copy of the file itself there")
    try:  # without O_NONBLOCK opening a pipe would wait for a writer for ever
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise refusal from None
        raise
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink != 1:
            raise refusal
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def read_manifest(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """The named files of a folder, each equal to its digest in the manifest.

    Raises:
        AnyformerError: for a missing file or manifest, or a file that is not what the manifest says.
    """
    if not folder.is_dir():
        raise AnyformerError(f"there is no folder {folder}; give one that save_pretrained or `anyformer fit` wrote")
    contents: dict[str, bytes] = {}
    try:
        manifest: dict[str, Any] = json.loads(read_own(folder / MANIFEST))
        files = cast(dict[str, dict[str, Any]], manifest["files"])
        for name in names:
            contents[name] = read_own(folder / name)
            if hashlib.sha256(contents[name]).hexdigest() != files[name]["sha256"]:
                raise AnyformerError(
                    f"{folder / name} is damaged: its SHA-256 is not that of {MANIFEST}; copy it again"
                )
    except OSError as error:
        raise AnyformerError(f"cannot read {error.filename} ({error.strerror}); copy the whole folder again") from error
    except MemoryError:
        raise AnyformerError(f"the files of {folder} are larger than this machine's memory") from None
    except (ValueError, KeyError, TypeError, RecursionError):
        raise AnyformerError(f"{folder / MANIFEST} is damaged or not a manifest; copy the whole folder again") from None
    return contents
