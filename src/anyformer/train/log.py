"""The record of a run: one JSON object a line."""

import json
import os
from pathlib import Path
from typing import Any

from anyformer.core.errors import AnyformerError
from anyformer.core.files import write_atomic


class Log:
    """A file of JSON lines, each with its ``step``.

    Args:
        path: The file, made at the first line.

    Raises:
        AnyformerError: From every method, where the file cannot be read or written.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def read(self) -> list[dict[str, Any]]:
        """All whole lines; a kill may have left half of one at the end."""
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return []
        except (OSError, UnicodeDecodeError) as error:
            raise AnyformerError(f"cannot read {self.path}: {error}; delete it or make it readable") from error
        records = []
        for line in text.splitlines(keepends=True):
            try:
                record = json.loads(line) if line.endswith("\n") else None
            except ValueError:
                record = None
            if isinstance(record, dict) and isinstance(record.get("step"), int):
                records.append(record)
        return records

    def forget_after(self, step: int) -> None:
        """Drops the lines after a step: the run resumes there and will write them again."""
        kept = [json.dumps(record) + "\n" for record in self.read() if record["step"] <= step]
        if kept or self.path.exists():
            write_atomic(self.path, "".join(kept).encode())

    def write(self, record: dict[str, Any]) -> None:
        """Adds a line, through to the disk: a later checkpoint must not outlive it."""
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise AnyformerError(f"cannot write {self.path}: {error.strerror}; free space, then run again") from error
