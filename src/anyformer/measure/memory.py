"""The peak memory of a forward pass and of a training step, measured in a process that does nothing else.

The operating system's own mark is read: it counts every page, of whatever library, and knows nothing of tensors. It is set
back when the model is ready, so the figure is what one pass needs beside the weights. Only Linux lets it be set back.
"""

import contextlib
import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from anyformer.core.errors import AnyformerError
from anyformer.measure.exported import Exported, is_export
from anyformer.measure.forms import form
from anyformer.measure.subject import Subject, images, size_of

PROCESS = Path("/proc/self")
SECONDS = 900  # after which a child is given up
GIVES_BACK = (
    "eager",
    "compiled",
)  # torch's allocator returns what a call used, so that code may be loaded by one before
OUT_OF_MEMORY = "ran out of memory; use a smaller model, batch or size, or a machine with more"


@dataclass(frozen=True, kw_only=True)
class Peak:
    """Peak resident memory above that of the model at rest, in MB of 10^6 bytes; None where it is not known.

    Attributes:
        forward_mb: Of a forward pass without gradients.
        training_mb: Of a first training step with AdamW: activations, gradients, and the optimizer's state.
        note: Why something is not known.
    """

    forward_mb: float | None = None
    training_mb: float | None = None
    note: str = ""


def peak(asked: dict[str, Any], *, command: list[str] | None = None, seconds: float = SECONDS) -> Peak:
    """Measure in a child process; whatever happens to it is a note, never an error here.

    Args:
        asked: What ``measured`` takes, as JSON values.
        command: The child's command, for tests.
        seconds: After which it is given up.
    """
    command = command or [sys.executable, "-m", "anyformer.measure.memory"]
    try:
        done = subprocess.run(command, input=json.dumps(asked), capture_output=True, text=True, timeout=seconds)  # noqa: S603 - our own module
    except subprocess.TimeoutExpired:
        return Peak(note=f"memory: no result within {seconds:g} s")
    if done.returncode < 0:  # by a signal: the system ends whoever takes the most memory
        return Peak(note=f"memory: {OUT_OF_MEMORY}")
    try:
        return Peak(**json.loads(done.stdout.splitlines()[-1]))
    except (IndexError, ValueError, TypeError):
        last = done.stderr.strip().splitlines()
        return Peak(note=f"memory: {last[-1] if last else f'the child ended with {done.returncode}'}")


def measured(
    source: str,
    runtime: str,
    precision: str,
    batch: int,
    size: list[int] | None,
    threads: int,
    training: bool,
) -> Peak:
    """Measure in this process, which should be a fresh one."""
    torch.set_num_threads(threads)
    edges = None if size is None else (size[0], size[1])
    if is_export(source):
        exported = Exported.of(source)
        run, example = exported.form(threads), exported.images(batch, edges)
        return Peak(forward_mb=growth(lambda: run(example)))
    model = Subject(source, source).model(edges)
    example = images(model, batch, edges or size_of(model))
    run = form(model, runtime, example, precision, threads)
    if runtime in GIVES_BACK:
        run(example)
    forward = growth(lambda: run(example))
    if not training:
        return Peak(forward_mb=forward)
    _train(torch.nn.Linear(1, 1), torch.ones(1, 1))  # loads what the optimizer imports
    try:
        return Peak(forward_mb=forward, training_mb=growth(lambda: _train(model, example)))
    except Exception as error:  # a model may refuse to be trained on so few or so small images
        return Peak(forward_mb=forward, note=f"training step: {sentence(error)}")


def sentence(error: BaseException) -> str:
    """The first line of an error, or that memory ran out."""
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return OUT_OF_MEMORY
    return str(error).strip().partition("\n")[0] or type(error).__name__


def _train(model: Any, example: torch.Tensor) -> None:
    optimizer = torch.optim.AdamW(model.train().parameters())
    model(example).float().square().mean().backward()
    optimizer.step()


def growth(call: Callable[[], object]) -> float:
    """How far resident memory rises in a call, in MB, without the code that it loads."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    try:
        (PROCESS / "clear_refs").write_text("5")  # sets the mark back to what is resident now
        before = _status()
        call()
        after = _status()
    except (OSError, KeyError) as error:
        raise AnyformerError("this system does not report the peak memory of a process") from error
    return max(0, after["VmHWM"] - before["VmRSS"] - (after["RssFile"] - before["RssFile"])) * 1024 / 1e6


def _status() -> dict[str, int]:
    """Sizes in KiB."""
    lines = (line.split() for line in (PROCESS / "status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words[-1] == "kB"}


def main() -> None:
    """The child: what is asked on standard input, the result as the last line of standard output."""
    with contextlib.suppress(OSError):
        (PROCESS / "oom_score_adj").write_text("1000")  # where memory runs out it is this process that goes
    try:
        result = measured(**json.load(sys.stdin))
    except Exception as error:  # one sentence, whichever library it comes from
        result = Peak(note=f"memory: {sentence(error)}")
    print("\n" + json.dumps(vars(result)), flush=True)
    os._exit(0)  # without waiting for the threads of the runtimes


if __name__ == "__main__":
    main()
