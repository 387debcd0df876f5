"""Kernels in C++: the file beside an operation, compiled by the machine that runs it, once, when it is first needed.

torch's extension loader builds it where it finds ninja and a compiler that knows GCC's vector types; nothing is ever
downloaded. The result is kept in ``$ANYFORMER_CACHE`` (``~/.cache/anyformer`` when unset) under a name that holds the
source, torch's version and the processor's instructions. Where any of this fails, operations run in plain torch, and
``reason`` tells why; ``ANYFORMER_COMPILE=0`` asks for that.
"""

import ctypes
import functools
import hashlib
import os
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from anyformer.core.machine import processor
from anyformer.ops.kernels import cache_file

FLAGS = ("-O3", "-march=native", "-fopenmp")  # not told to the linker: OpenMP is the copy that torch has loaded

_lock = threading.Lock()
_reasons: dict[str, str] = {}
_without = False


def library(name: str) -> ctypes.CDLL | None:
    """The functions of ``name.cpp`` in this folder, None where the operation is to run in plain torch."""
    return None if _without or os.environ.get("ANYFORMER_COMPILE") == "0" else _load(name)


def reason(name: str) -> str | None:
    """Why there is no compiled form of ``name.cpp``, None where there is one or none was asked for yet."""
    if _without or os.environ.get("ANYFORMER_COMPILE") == "0":
        return "compiled kernels are switched off"
    return _reasons.get(name)


@contextmanager
def without() -> Iterator[None]:
    """Run everything in plain torch inside the block, in all threads: for tests and benchmarks."""
    global _without
    before, _without = _without, True
    try:
        yield
    finally:
        _without = before


def addresses(*tensors: Tensor) -> list[ctypes.c_void_p]:
    """Where the numbers of contiguous tensors lie, as arguments of a function in C."""
    return [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]


def _load(name: str) -> ctypes.CDLL | None:
    with _lock:
        return _loaded(name)


@functools.cache
def _loaded(name: str) -> ctypes.CDLL | None:
    try:
        source = Path(__file__).with_name(f"{name}.cpp")
        path = cache_file().with_name(f"{name}-{_digest(source.read_text(encoding='utf-8'))}.so")
        if not path.exists():
            _compile(name, source, path)
        return ctypes.CDLL(str(path))
    except Exception as error:  # whatever a foreign compiler, loader or file system says, plain torch still computes
        _reasons[name] = f"{type(error).__name__}: {error}"
        return None


def _compile(name: str, source: Path, path: Path) -> None:
    # In a folder of its own and moved as a whole: a killed run leaves no lock and no half file, and of two runs at once
    # the later one wins.
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.utils import cpp_extension  # a second to import

        built = cpp_extension.load(
            name, [str(source)], extra_cflags=list(FLAGS), build_directory=folder, is_python_module=False
        )
        Path(str(built)).replace(path)


def _digest(source: str) -> str:
    try:  # processors of one name can differ in their instructions, as in virtual machines
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    instructions = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    identity = repr((source, FLAGS, torch.__version__, processor(), instructions))
    return hashlib.sha256(identity.encode()).hexdigest()[:16]
