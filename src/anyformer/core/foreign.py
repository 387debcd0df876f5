"""The one place where foreign checkpoint files are read: safetensors, NumPy archives, and pickles by torch's safe reader."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from anyformer.core.errors import AnyformerError, UsageError

_WRAPPERS = ("model", "state_dict")  # what training scripts put around their weights


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file by name: ``.safetensors``, ``.npz``, or ``.pth``/``.pt``/``.bin``.

    Pickled files are read with ``weights_only=True`` and without a fallback: nothing in them is executed. A mapping under
    "model" or "state_dict" is taken out of what training scripts put around it.

    Raises:
        UsageError: when there is no such file or its ending is unknown.
        AnyformerError: when it cannot be read as what its ending says.
    """
    if not path.is_file():
        raise UsageError(f"there is no file {path}")
    try:
        match path.suffix:
            case ".safetensors":
                return load_file(path)
            case ".npz":
                with np.load(path, allow_pickle=False) as archive:
                    return {name: torch.from_numpy(archive[name]) for name in archive.files}
            case ".pth" | ".pt" | ".bin":
                return _tensors(torch.load(path, map_location="cpu", weights_only=True), path)
            case _:
                raise UsageError(f"{path}: known endings are .safetensors, .npz, .pth, .pt and .bin")
    except (UsageError, AnyformerError):
        raise
    except (OSError, ValueError, RuntimeError, SafetensorError, zipfile.BadZipFile, EOFError, KeyError) as error:
        raise AnyformerError(f"cannot read {path} as {path.suffix} ({str(error).splitlines()[0]})") from error
    except Exception as error:  # torch's reader raises pickle's own errors, which this library does not import
        raise AnyformerError(f"{path} is refused: it holds more than plain tensors ({type(error).__name__})") from error


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    for name in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):  # pyright: ignore[reportUnknownMemberType]
            content = content[name]
    if not isinstance(content, Mapping):
        raise AnyformerError(f"{path} holds no mapping of tensors")
    table = cast(Mapping[str, Any], content)
    strange = [name for name, value in table.items() if not isinstance(value, Tensor)]
    if strange:
        raise AnyformerError(f"{path} holds {', '.join(map(str, strange[:5]))}, which are no tensors")
    return dict(table)
