"""The one place where foreign checkpoint files are read: safetensors, NumPy archives, and pickles in a process apart.

Run as a program, it is that process: ``python -m anyformer.core.foreign SOURCE TARGET`` reads a pickled file with torch's
safe reader, cut off from the network and from other programs, and writes what it found as safetensors.
"""

import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors
from torch import Tensor
from torch.torch_version import TorchVersion

from anyformer.core.errors import AnyformerError, UsageError, shown

SAFE_READER = "2.10"  # the first torch whose reader of weights has no known way out
_WRAPPERS = ("model", "state_dict")  # what training scripts put around their weights
_CLOSED = ("socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "ctypes.")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file by name: ``.safetensors``, ``.npz``, or ``.pth``/``.pt``/``.bin``.

    Pickled files are read in a second process with ``weights_only=True`` and without a fallback: nothing in them is
    executed. A mapping under "model" or "state_dict" is taken out of what training scripts put around it.

    Raises:
        UsageError: when there is no such file, its ending is unknown, or torch is too old to read pickles safely.
        AnyformerError: when it cannot be read as what its ending says.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    try:
        match path.suffix:
            case ".safetensors":
                return _load(path)
            case ".npz":
                with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
                    return {name: torch.as_tensor(archive[name]) for name in archive.files}
            case ".pth" | ".pt" | ".bin":
                return _read_apart(path)
            case _:
                raise UsageError(f"{path}: known endings are .safetensors, .npz, .pth, .pt and .bin")
    except AnyformerError:
        raise
    except Exception as error:  # a damaged file can raise anything in the readers of others
        raise AnyformerError(f"cannot read {path} as {path.suffix} ({_first_line(error)})") from error


def tensors_in(content: object, where: str) -> dict[str, Tensor]:
    """The mapping of names to tensors in a checkpoint, whatever training scripts put around it.

    Raises:
        AnyformerError: where there is none, or it holds anything but tensors.
    """
    for name in _WRAPPERS:
        if isinstance(content, Mapping):
            inner = cast(Mapping[Any, object], content).get(name)
            content = cast(object, inner if isinstance(inner, Mapping) else content)
    if not isinstance(content, Mapping):
        raise AnyformerError(f"{where} holds no mapping of tensors")
    table = cast(Mapping[Any, Any], content)
    strange = [
        shown(name) for name, value in table.items() if not isinstance(name, str) or not isinstance(value, Tensor)
    ]
    if strange:
        raise AnyformerError(f"{where} holds {', '.join(strange[:5])}, which are no tensors")
    return dict(table)


def _load(path: Path) -> dict[str, Tensor]:
    return safetensors.load_file(path)  # pyright: ignore[reportUnknownMemberType] - its stubs leave PathLike open


def _read_apart(path: Path) -> dict[str, Tensor]:
    if TorchVersion(torch.__version__) < SAFE_READER:
        raise UsageError(f"{path}: reading pickles needs torch {SAFE_READER}; update it, or give a .safetensors file")
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "tensors.safetensors"
        # -P keeps the current folder off the path: a module that lies there must not stand in for one of ours.
        command = [sys.executable, "-P", "-m", "anyformer.core.foreign", str(path), str(target)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)  # noqa: S603 - our own module
        if done.returncode:
            said = done.stdout.strip() or f"reading it ended the process that reads it, code {done.returncode}"
            raise AnyformerError(f"{path} is refused: {said}")
        return _load(target)


def _convert(source: Path, target: Path) -> None:
    """Read a pickled file and write its tensors as safetensors; raises whatever a damaged file raises."""
    if zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > source.stat().st_size:
                raise AnyformerError("it unpacks to more than the file holds")
    tensors = tensors_in(torch.load(source, map_location="cpu", weights_only=True), "it")
    for name, tensor in tensors.items():
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise AnyformerError(f"{shown(name)} unpacks to more than the file holds")
    # Cloned one by one: safetensors refuses tensors that share memory, as tied weights do.
    own = {name: tensors.pop(name).contiguous().clone() for name in list(tensors)}
    safetensors.save_file(own, target)  # pyright: ignore[reportUnknownMemberType] - as above


def _refuse(event: str, _: object) -> None:
    if event.startswith(_CLOSED):
        raise AnyformerError(f"it tried {event}")


def _first_line(error: Exception) -> str:
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return line if len(line) <= 120 else f"{line[:117]}..."


def main(source: str, target: str) -> int:
    """What the process apart does: 0, or 1 with a sentence on its standard output."""
    sys.addaudithook(_refuse)
    try:
        _convert(Path(source), Path(target))
    except AnyformerError as error:
        print(error)
        return 1
    except (OSError, RuntimeError, SafetensorError, zipfile.BadZipFile, EOFError) as error:
        print(f"it cannot be read ({_first_line(error)})")
        return 1
    except Exception as error:  # torch's reader raises pickle's own errors, which this library does not import
        print(f"it holds more than plain tensors ({type(error).__name__})")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
