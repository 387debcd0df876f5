"""Forked children that say what they have done, so that torch is imported once, and ``strace`` beside them."""

import os
import re
import shutil
import signal
import subprocess
import sys
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from anyformer.core.errors import AnyformerError

Say = Callable[[str], Any]
FAILED, UNTOLD = 1, 9  # exit codes: an error with a sentence for the user, and one without

# Every call by which a save or a log touches the file system.
CALLS = (
    *("openat", "open", "creat", "read", "write", "pwrite64", "fsync", "fdatasync", "close", "flock", "ftruncate"),
    *("rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir", "getdents64"),
)


@dataclass
class Child:
    """A forked process, the lines that it says, and what strace wrote of it."""

    process: int
    lines: IO[str]
    said: list[str] = field(default_factory=list)

    def hear(self) -> str:
        """The next line, "" at the end."""
        line = self.lines.readline().rstrip("\n")
        self.said += [line] if line else []
        return line

    def end(self, number: int | None = None) -> int:
        """Sends a signal, if one is named, waits, hears the rest; gives the exit code, negative for a signal."""
        if number is not None:
            os.kill(self.process, number)
        self.said += self.lines.read().splitlines()
        self.lines.close()
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])

    def last(self, word: str) -> int:
        """The number behind the last line of a word, 0 where there is none."""
        return max((int(line.split()[1]) for line in self.said if line.split()[0] == word), default=0)


def fork(work: Callable[[Say], None], trace: Sequence[str] = ()) -> Child:
    """Runs ``work(say)`` in a child; under strace, with these options, where there are any.

    A warning is said as ``warned 1``.
    """
    reading, writing = os.pipe()
    waiting, going = os.pipe()

    def say(line: str) -> None:
        try:
            os.write(writing, f"{line}\n".encode())
        except OSError:  # a fault that was meant for the run
            os.write(writing, f"{line}\n".encode())

    process = os.fork()
    if process == 0:
        os.close(reading)
        os.close(going)
        code = UNTOLD
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            warnings.simplefilter("always")
            warnings.showwarning = lambda *_, **__: say("warned 1")
            with suppress(OSError):  # a fault that was meant for the run
                os.read(waiting, 1)
            work(say)
            code = 0
        except AnyformerError:
            code = FAILED
        except KeyboardInterrupt:
            code = 130  # as the command line does
        except SystemExit as end:
            code = int(str(end.code))
        except BaseException:
            if os.environ.get("SURVIVAL_DEBUG"):
                traceback.print_exc(file=sys.stderr)
        finally:
            os._exit(code)
    os.close(writing)
    os.close(waiting)
    if trace:
        attach(process, trace)
    os.write(going, b"x")
    os.close(going)
    return Child(process, os.fdopen(reading))


def attach(process: int, options: Sequence[str]) -> None:
    """Begins to trace a process; strace ends with it."""
    command = ["strace", "-f", "-p", str(process), *options]
    tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    line = tracer.stderr.readline()
    if "attached" not in line:
        raise OSError(f"strace cannot attach: {line.strip()}")
    tracers.append(tracer)


tracers: list[subprocess.Popen[str]] = []


def wait_for_tracers() -> None:
    """Waits until all that was traced is written."""
    while tracers:
        tracer = tracers.pop()
        tracer.wait()
        tracer.stderr.close()  # type: ignore[union-attr]


def traceable() -> str:
    """Why nothing can be traced here; "" where it can."""
    if not shutil.which("strace"):
        return "strace is not installed"
    try:
        fork(lambda say: None, ["-o", "/dev/null", "-e", "trace=none"]).end()
        wait_for_tracers()
    except OSError as error:
        return str(error)
    return ""


def count_calls(work: Callable[[Say], None], log: Path) -> Counter[str]:
    """How often a piece of work makes each call of ``CALLS``."""
    known = [f"?{name}" for name in CALLS]
    child = fork(work, ["-o", str(log), "-e", f"trace={','.join(known)}"])
    code = child.end()
    wait_for_tracers()
    assert code == 0, code
    return Counter(re.findall(r"^\d+ +(\w+)\(", log.read_text(), re.MULTILINE))
