"""Checkpoints of a run: written whole, checked before use, at least two kept, one writer."""

import json
import os
import shutil
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.train import processes
from anyformer.train.files import UNFINISHED, locked, read_sealed, write_sealed
from anyformer.train.packing import pack, unpack

FORMAT = 1
PREFIX = "step-"


class CheckpointWarning(UserWarning):
    """Something about a resumed run that its owner should know."""


class Checkpoints:
    """The checkpoints of one run in one folder, which it holds against other writers until closed.

    Each is a folder ``step-00000120`` of ``meta.json`` (format, step, configuration, versions), ``state.json``,
    ``tensors.safetensors`` and ``manifest.json`` (their SHA-256). An older one is deleted only after the new one has
    been read back and found good.

    Where several processes train together, the first one writes and reads for all; every one makes the same calls.

    Saving takes memory for three copies of the state beside the state itself, and syncs six times to the disk.

    Args:
        directory: The folder, made when missing.
        config: Everything that must be equal for a run to go on from a checkpoint, as JSON values: the model's spec,
            the data's digest, seeds, batch size, data type.
        keep: How many are kept, at least 2.

    Raises:
        UsageError: Another run holds the folder.
        AnyformerError: The folder cannot be made or written to.
    """

    def __init__(self, directory: str | Path, config: Mapping[str, Any], keep: int = 2):
        if keep < 2:
            raise UsageError(f"at least 2 checkpoints are kept, so that one may be damaged; keep={keep}")
        self.directory, self.keep = Path(directory), keep
        self.config = json.loads(json.dumps(config, allow_nan=False))  # as it will be read back: tuples become lists
        self._damaged: set[int] = set()
        self._held = ExitStack()
        processes.by_first(self._open)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets other writers in."""
        self._held.close()

    def _open(self) -> None:
        with ExitStack() as held:
            held.enter_context(locked(self.directory))
            for name in self._names():
                if name.endswith(UNFINISHED):
                    shutil.rmtree(self.directory / name, ignore_errors=True)
            self._held = held.pop_all()

    def load(self) -> tuple[int, Any] | None:
        """The newest good checkpoint as (step, state), None where there has never been one.

        A damaged one is named in a ``CheckpointWarning`` and the one before it is used.

        Raises:
            UsageError: It is of another configuration, all differing keys told, or of a newer format.
            AnyformerError: There are checkpoints and all are damaged.
        """
        found = processes.by_first(self._newest)
        return None if found is None else (found[0], unpack(*found[1:]))

    def _newest(self) -> tuple[int, bytes, bytes] | None:
        """The newest good checkpoint as its step and what ``pack`` gave."""
        reasons = []
        for step in self._steps():
            try:
                files = read_sealed(self._path(step))
                meta = json.loads(files.get("meta.json", b"{}"))
                if meta.get("step") != step:
                    raise AnyformerError(f"{self._path(step)} is not the checkpoint of step {step}")
            except AnyformerError as error:
                reasons.append(str(error))
                self._damaged.add(step)
                continue
            self._check(step, meta)
            for reason in reasons:
                warnings.warn(f"{reason}; going on from step {step}", CheckpointWarning, stacklevel=4)
            return step, files["state.json"], files["tensors.safetensors"]
        if reasons:
            raise AnyformerError(
                f"no checkpoint in {self.directory} can be used: {'; '.join(reasons)}; restore one, or delete the "
                f"folder to start anew"
            )
        return None

    def save(self, step: int, state: Any) -> None:
        """Writes a checkpoint, proves it by reading it back, then deletes those beyond ``keep``.

        Args:
            step: Steps done; a good checkpoint of the same step is left as it is.
            state: Nested dicts, lists and tuples of tensors, numbers, strings and None.

        Raises:
            AnyformerError: It could not be written, or came back changed; the earlier ones are as they were.
        """
        processes.by_first(lambda: self._write(step, state))

    def _write(self, step: int, state: Any) -> None:
        steps = self._steps()
        if step in steps and step not in self._damaged:
            return
        path = self._path(step)
        meta = {"format": FORMAT, "step": step, "config": self.config, "machine": _machine()}
        tree, tensors = pack(state)
        meta_text = json.dumps(meta, indent=1, allow_nan=False).encode()
        if step in steps:
            self._delete(step)
        write_sealed(path, {"meta.json": meta_text, "state.json": tree, "tensors.safetensors": tensors})
        read_sealed(path)
        self._damaged.discard(step)
        good = [kept for kept in self._steps() if kept not in self._damaged]
        for old in self._damaged.union(good[self.keep :]):
            self._delete(old)
        self._damaged.clear()

    def _steps(self) -> list[int]:
        """The steps of which there is a checkpoint, newest first."""
        numbers = (name.removeprefix(PREFIX) for name in self._names())
        steps = (int(number) for number in numbers if number.isdecimal() and number == f"{int(number):08d}")
        return sorted(steps, reverse=True)

    def _names(self) -> list[str]:
        """What lies in the folder. Raises AnyformerError where it cannot be read: taken for empty, it would start anew."""
        try:
            return [name for name in os.listdir(self.directory) if name.startswith(PREFIX)]
        except OSError as error:
            raise AnyformerError(f"cannot read {self.directory}: {error.strerror}; make it readable") from error

    def _path(self, step: int) -> Path:
        return self.directory / f"{PREFIX}{step:08d}"

    def _delete(self, step: int) -> None:
        """Renames first, so that a kill in the middle leaves no half of a checkpoint under its name."""
        doomed = self._path(step).with_name(f"{PREFIX}{step:08d}-deleted{UNFINISHED}")
        try:
            shutil.rmtree(doomed, ignore_errors=True)
            os.rename(self._path(step), doomed)
            shutil.rmtree(doomed)
        except OSError as error:
            raise AnyformerError(f"cannot delete {self._path(step)}: {error.strerror}; delete it yourself") from error

    def _check(self, step: int, meta: dict[str, Any]) -> None:
        if meta["format"] > FORMAT:
            raise UsageError(
                f"{self._path(step)} has format {meta['format']}, this version reads up to {FORMAT}; update anyformer"
            )
        differing = differences(meta["config"], self.config)
        if differing:
            raise UsageError(
                f"{self._path(step)} was made with another configuration: {'; '.join(differing)}; ask for the same, "
                f"or name another folder"
            )
        for name, value in _machine().items():
            if meta["machine"].get(name) != value:
                warnings.warn(
                    f"{self._path(step)} was made with {name} {meta['machine'].get(name)}, this is {value}: the run goes "
                    f"on, but not to the same bits",
                    CheckpointWarning,
                    stacklevel=5,
                )


def differences(saved: Any, asked: Any, path: str = "") -> list[str]:
    """Every place where two JSON values differ, as ``key.key: saved a, asked b``."""
    if isinstance(saved, dict) and isinstance(asked, dict):
        found = []
        for key in sorted(saved.keys() | asked.keys()):
            place = f"{path}.{key}" if path else key
            found += differences(saved.get(key, "nothing"), asked.get(key, "nothing"), place)
        return found
    # 1 == 1.0 == True in Python, but they are not the same configuration.
    return [] if json.dumps(saved) == json.dumps(asked) else [f"{path}: saved {saved}, asked {asked}"]


def _machine() -> dict[str, Any]:
    return {"torch": torch.__version__, "threads": torch.get_num_threads(), "processes": processes.count()}
