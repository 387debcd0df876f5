"""What a fit remembers of itself between one call and the next: what was asked, what each rung found, how long it took."""

import json
from pathlib import Path
from typing import Any

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.core.files import write_atomic
from anyformer.train.checkpoint import differences


class RunMemory:
    """``run.json`` in the folder of a fit.

    Args:
        folder: the folder, which exists and is held by the caller.
        asked: everything that must be equal for a run to go on, as JSON values.

    Raises:
        UsageError: the folder is of a run that was asked for something else; all differing keys are named.
        AnyformerError: the file cannot be read.
    """

    def __init__(self, folder: Path, asked: dict[str, Any]) -> None:
        self.folder, self.path, self.asked = folder, folder / "run.json", asked
        self.seconds = 0.0
        self.rungs: list[dict[str, float]] = []
        if not self.path.exists():
            self.save(0.0)
            return
        try:
            state = json.loads(self.path.read_bytes())
            known, self.seconds, self.rungs = state["asked"], state["seconds"], state["rungs"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AnyformerError(f"{self.path} cannot be read ({error}); delete {folder} to start anew") from error
        differing = differences(known, asked)
        if differing:
            raise UsageError(
                f"{folder} holds a run that was asked for something else: {'; '.join(differing)}; ask for the same, or "
                f"name another folder with --out"
            )

    def save(self, seconds: float) -> None:
        """Write what is known, and that so many seconds of the minutes are used."""
        self.seconds = seconds
        state = {"asked": self.asked, "seconds": seconds, "rungs": self.rungs}
        write_atomic(self.path, json.dumps(state, indent=1).encode())

    def score(self, rung: int, name: str) -> float | None:
        """What a candidate reached in a rung that it has finished, on validation."""
        return self.rungs[rung].get(name) if rung < len(self.rungs) else None

    def enter(self, rung: int, name: str, score: float, seconds: float) -> None:
        """Note that a candidate has finished a rung."""
        while len(self.rungs) <= rung:
            self.rungs.append({})
        self.rungs[rung][name] = score
        self.save(seconds)

    def finished(self) -> dict[str, Any] | None:
        """The report of this run if it has come to its end."""
        try:
            report = json.loads((self.folder / "report.json").read_bytes())
        except (OSError, ValueError):
            return None
        return report if report.get("finished") else None
