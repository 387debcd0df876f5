"""The ledger: what has been proven, when, of which state of the code, on which machine. Appended to, never rewritten."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from shutil import which
from typing import Any

from anyformer.core.errors import AnyformerError
from anyformer.core.machine import processor

PACKAGE = Path(__file__).parents[1]
LEDGER = PACKAGE / "ledger.jsonl"
LEVELS = ("built", "equal", "learns", "claim")
OF_THE_SYSTEM = ("learns", "claim")  # shown on one model of a system, for its mechanism
RULE = "rule"  # the level of a record that fixes what a claim is measured by, written before the run
LIBRARIES = ("anyformer", "torch", "numpy", "timm", "scikit-learn")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One line of the ledger.

    Attributes:
        slug: The system.
        name: The model that was looked at.
        level: "built", "equal", "learns", "claim"; or "rule", before a claim.
        reached: Whether the level holds.
        failures: What does not hold, in words.
        figures: What was measured.
        seeds: Of the runs behind the figures.
        seconds: How long it took.
        date: When it ended, UTC.
        commit: The state of the code; "" outside a repository.
        modified: Whether the package differed from that commit.
        versions: Of Python and of the libraries that compute.
        machine: What it ran on.
    """

    slug: str
    name: str
    level: str
    reached: bool
    failures: list[str]
    figures: dict[str, Any]
    seeds: list[int]
    seconds: float
    date: str
    commit: str
    modified: bool
    versions: dict[str, str]
    machine: dict[str, Any]


def append(record: Record, ledger: Path = LEDGER) -> None:
    """Add a line, whole or not at all, synced. Raises AnyformerError when the system refuses."""
    line = (json.dumps(asdict(record), ensure_ascii=False) + "\n").encode()
    try:
        descriptor = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            before = os.fstat(descriptor).st_size
            if os.write(descriptor, line) < len(line):
                os.ftruncate(descriptor, before)
                raise AnyformerError(f"could not write {ledger} (the disk is full); nothing was changed")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise AnyformerError(f"could not write {ledger} ({error.strerror}); nothing was changed") from error


def read(ledger: Path = LEDGER) -> list[Record]:
    """All lines, oldest first; none where there is no ledger. Raises AnyformerError naming a line that cannot be read."""
    if not ledger.exists():
        return []
    records: list[Record] = []
    for number, line in enumerate(ledger.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            records.append(Record(**json.loads(line)))
        except (ValueError, TypeError):
            raise AnyformerError(f"line {number} of {ledger} is damaged; take the file from the repository") from None
    return records


def latest(ledger: Path = LEDGER) -> dict[tuple[str, str], Record]:
    """The newest record of every (model, level)."""
    return {(record.name, record.level): record for record in read(ledger)}


def levels(name: str, ledger: Path = LEDGER) -> tuple[str, ...]:
    """The levels that a model or a system has reached, by the newest record of each.

    A model has those shown on itself, and ``learns`` when a model of its system has it. A system has a level when it has
    been shown on some model of its, and on none of them failed.
    """
    newest = list(latest(ledger).values())
    slugs = {record.slug for record in newest if name in (record.slug, record.name)}
    own = [
        record
        for record in newest
        if record.slug in slugs and (name in (record.slug, record.name) or record.level in OF_THE_SYSTEM)
    ]
    outcomes = {level: [record.reached for record in own if record.level == level] for level in LEVELS}
    return tuple(level for level, reached in outcomes.items() if reached and all(reached))


def code() -> dict[str, Any]:
    """The state of the code, to be asked for as soon as it is loaded: ``commit`` and ``modified`` of a record."""
    root, git = PACKAGE.parents[1], which("git")
    if git is None or not (root / ".git").exists():
        return {"commit": "", "modified": False}

    def ask(*arguments: str) -> str:
        done = subprocess.run(  # noqa: S603 - fixed arguments, no shell
            [git, "--no-optional-locks", "-C", str(root), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        return done.stdout.strip()

    changed = ask("status", "--porcelain", "--", "src/anyformer/*.py")
    return {"commit": ask("rev-parse", "HEAD"), "modified": bool(changed)}


def surroundings() -> dict[str, Any]:
    """When, with what and where: ``date``, ``versions`` and ``machine`` of a record."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"python": platform.python_version(), **_versions()},
        "machine": _machine(),
    }


def _versions() -> Mapping[str, str]:
    found: dict[str, str] = {}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


def _machine() -> dict[str, Any]:
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
    }
