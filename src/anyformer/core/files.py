"""Files written so that a crash leaves the old one or the new one, and folders whose digests are checked before use."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from anyformer.core.errors import AnyformerError

MANIFEST = "manifest.json"


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file beside its place, sync it, rename it into place, sync the folder.

    Raises:
        AnyformerError: when the system refuses (full disk, no permission); the old file is untouched then.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with beside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        sync_folder(path.parent)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise AnyformerError(f"could not write {path} ({error.strerror}); nothing was changed") from error


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_manifest(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write files into a folder, then the manifest of their SHA-256 digests last."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in contents.items():
        write_atomic(folder / name, data)
    digests = {
        name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for name, data in contents.items()
    }
    write_atomic(folder / MANIFEST, json.dumps({"files": digests}, indent=1).encode())


def read_manifest(folder: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """The named files of a folder, each equal to its digest in the manifest.

    Raises:
        AnyformerError: for a missing file or manifest, or a file that is not what the manifest says.
    """
    if not folder.is_dir():
        raise AnyformerError(f"there is no folder {folder}; give one that save_pretrained or `anyformer fit` wrote")
    contents: dict[str, bytes] = {}
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        files = cast(dict[str, dict[str, Any]], manifest["files"])
        for name in names:
            contents[name] = (folder / name).read_bytes()
            if hashlib.sha256(contents[name]).hexdigest() != files[name]["sha256"]:
                raise AnyformerError(
                    f"{folder / name} is damaged: its SHA-256 is not that of {MANIFEST}; copy it again"
                )
    except OSError as error:
        raise AnyformerError(f"cannot read {error.filename} ({error.strerror}); copy the whole folder again") from error
    except (ValueError, KeyError, TypeError):
        raise AnyformerError(f"{folder / MANIFEST} is damaged or not a manifest; copy the whole folder again") from None
    return contents
