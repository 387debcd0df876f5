"""Which kernel computes an operation on this machine: measured once a size class, remembered, never guessed.

The same float32 product runs twice as fast through oneDNN as through MKL on one processor and no faster on the next,
and neither the vendor's name nor the instruction set says which. The first product of a size class therefore runs a
short paired probe (some milliseconds). Its result is kept in ``kernels.json`` in ``$ANYFORMER_CACHE``
(``~/.cache/anyformer`` when unset) under the processor's name, torch's version and the number of threads. A file that
cannot be read or written costs only a new probe; deleting it asks for new ones.
"""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

from anyformer.core.errors import UsageError, nearest
from anyformer.core.machine import processor

KERNELS = ("mkl", "onednn")
"""``mkl``: torch's own product (MKL where torch was built with it). ``onednn``: with activation and residual fused."""
VECTOR_KERNELS = ("mkl", "compiled")
"""For the one row of a step of decoding; ``compiled``: :func:`~anyformer.ops.matrix_vector.matrix_vector`."""

ROUNDS, SECONDS = 7, 0.015  # a probe takes at least these rounds, and more within the time
MARGIN = 0.95  # a challenger takes over only when it is 5 % faster, so that noise cannot move a tie
REPEATABLE = 1.25  # the third shortest call over the shortest; above it other work disturbed the probe

Key = tuple[str, str, str, str]  # operation, device, dtype, size class
Contestants = Mapping[str, Callable[[], object]]

_tables: dict[int, dict[Key, str]] = {}  # number of threads -> kernel of each key
_forced: str | None = None


def known(operation: str, size: str, device: str = "cpu", dtype: str = "float32") -> str | None:
    """The kernel for this size class, None until it is measured.

    Args:
        operation: What is computed, such as ``"linear gelu"``.
        size: The class of problem sizes within which one kernel is the fastest.
        device: Where it runs.
        dtype: In what precision.
    """
    return _forced or _table(torch.get_num_threads()).get((operation, device, dtype, size))


def choose(
    operation: str,
    size: str,
    contestants: Callable[[str, str], Contestants],
    device: str = "cpu",
    dtype: str = "float32",
) -> str:
    """The kernel for this size class, measured now if it is not known.

    Args:
        operation: As in ``known``.
        size: As in ``known``.
        contestants: From (operation, size) to the calls to compare by kernel name, the incumbent first; asked only to
            measure.
        device: As in ``known``.
        dtype: As in ``known``.
    """
    kernel = known(operation, size, device, dtype)
    if kernel is None:
        kernel, repeatable = fastest(contestants(operation, size))
        key, threads = (operation, device, dtype, size), torch.get_num_threads()
        _table(threads)[key] = kernel
        if repeatable:
            _remember(_machine(threads), key, kernel)
    return kernel


@contextmanager
def force(kernel: str) -> Iterator[None]:
    """Use one kernel for every eligible call inside the block, in all threads: for tests and benchmarks.

    Raises:
        UsageError: There is no kernel of this name.
    """
    global _forced
    if kernel not in KERNELS:
        raise UsageError(f"there is no kernel {kernel!r}: choose from {', '.join(KERNELS)}{nearest(kernel, KERNELS)}")
    before, _forced = _forced, kernel
    try:
        yield
    finally:
        _forced = before


def fastest(contestants: Contestants, clock: Callable[[], float] = time.perf_counter) -> tuple[str, bool]:
    """The contestant with the shortest call of several interleaved rounds; the first, unless another beats it by 5 %.

    The shortest call decides, because other work on the machine can only lengthen one.

    Returns:
        Its name, and whether each contestant came near its own shortest call three times: a result to remember.
    """
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for call in contestants.values():
        call()
    begun, rounds = clock(), 0
    while rounds < ROUNDS or clock() - begun < SECONDS:
        rounds += 1
        for name, call in contestants.items():
            start = clock()
            call()
            times[name].append(clock() - start)
    for calls in times.values():
        calls.sort()
    incumbent = next(iter(contestants))
    winner = min(times, key=lambda name: times[name][0])
    if times[winner][0] >= MARGIN * times[incumbent][0]:
        winner = incumbent
    return winner, all(calls[2] <= REPEATABLE * calls[0] for calls in times.values())


def table() -> dict[Key, str]:
    """A copy of what is known at the present number of threads, for reports."""
    return dict(_table(torch.get_num_threads()))


def cache_file() -> Path:
    """Where the table is kept."""
    folder = os.environ.get("ANYFORMER_CACHE")
    return (Path(folder) if folder else Path.home() / ".cache" / "anyformer") / "kernels.json"


def _table(threads: int) -> dict[Key, str]:
    if threads not in _tables:
        _tables[threads] = _recall(_machine(threads))
    return _tables[threads]


def _machine(threads: int) -> str:
    return f"{processor()}, torch {torch.__version__}, {threads} threads"


def _read() -> dict[str, dict[str, str]]:
    with suppress(OSError, RuntimeError, ValueError):  # no file, no home folder, no JSON
        content = json.loads(cache_file().read_text(encoding="utf-8"))
        if isinstance(content, dict):
            return {machine: entries for machine, entries in content.items() if isinstance(entries, dict)}
    return {}


def _recall(machine: str) -> dict[Key, str]:
    known = {}
    for key, kernel in _read().get(machine, {}).items():
        operation, *rest = key.split("/")
        if len(rest) == 3 and kernel in (*KERNELS, *VECTOR_KERNELS):
            known[(operation, *rest)] = kernel
    return known


def _remember(machine: str, key: Key, kernel: str) -> None:
    with suppress(OSError, RuntimeError):  # a folder that cannot be written, no home folder
        path = cache_file()
        path.parent.mkdir(parents=True, exist_ok=True)
        content = _read()
        content[machine] = {**content.get(machine, {}), "/".join(key): kernel}
        beside = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}")
        beside.write_text(json.dumps(content, indent=1, sort_keys=True), encoding="utf-8")
        beside.replace(path)
