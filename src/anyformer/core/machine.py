"""What this machine is called."""

import ctypes
import functools
import platform
from pathlib import Path


@functools.cache
def processor() -> str:
    """The processor's name as the system tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def keep_freed_memory(limit: int = 2**30) -> bool:
    """Have the C library keep up to ``limit`` freed bytes for the next tensors, where it is glibc; says whether it does.

    By default it gives large tensors back to the system as soon as they are freed, and every new one costs a page fault
    for each of its pages: 20 to 45 % of the time of a linear-time mixer on thousands of tokens. The process's memory stays
    at its peak in return, so it is the program's choice, not the library's.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(trim_threshold, limit)) and bool(mallopt(mmap_threshold, min(limit, 2**30)))
