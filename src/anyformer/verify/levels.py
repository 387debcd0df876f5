"""The proof levels of a system, one model after another, each into the ledger."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from anyformer.core import registry
from anyformer.core.errors import UsageError, nearest
from anyformer.core.registry import System
from anyformer.core.store import create_model
from anyformer.verify import behaviour, encoder_behaviour, index, ledger, structure, text_behaviour
from anyformer.verify.claim import claim, rule
from anyformer.verify.equal import equal
from anyformer.verify.evidence import Evidence
from anyformer.verify.learns import learns
from anyformer.verify.ledger import Record
from anyformer.verify.subjects import Pictures, absent, reads_whole, subject_of


def built(name: str) -> Evidence:
    """Build a model and look at it: the contract, the official code's parameters, cost beside the printed figures.

    Small models are also run; the others are looked at on the meta device.
    """
    system = registry.system_of(name)
    model = structure.on_meta(name)
    failures = [failure for check in structure.CHECKS.values() for failure in check(model)]
    if name in system.small:
        make = partial(create_model, name)
        torch.manual_seed(0)
        failures += [failure for check in behaviours(name).values() for failure in check(make)]
    size = structure.native_size(name)
    count, published = structure.counted(name, size), system.published.get(name)
    figures = {"size": size, "params": count.params, "macs": count.macs}
    if published is not None:
        figures["published"] = asdict(published)
    return Evidence(figures, tuple(failures))


def behaviours(name: str) -> dict[str, Callable[..., list[str]]]:
    """The checks that run a model, by name: those of pictures, of texts read at once, or of texts read token by token."""
    if isinstance(subject_of(name), Pictures):
        return behaviour.CHECKS
    return encoder_behaviour.CHECKS if reads_whole(name) else text_behaviour.CHECKS


LEVELS: dict[str, Callable[[str], Evidence]] = {"built": built, "equal": equal, "learns": learns, "claim": claim}


def verify(
    slug: str,
    levels: Iterable[str],
    names: Sequence[str] | None = None,
    report: Callable[[Record], None] = lambda record: None,
    path: Path = ledger.LEDGER,
    note: Callable[[str], None] = lambda sentence: None,
) -> list[Record]:
    """Prove a system, write every outcome into the ledger, and renew the index.

    Args:
        slug: The system.
        levels: Of ``LEVELS``; ``learns`` and ``claim`` are shown for the system, whatever ``names`` says; the
            rule of a claim is in the ledger before it is measured.
        names: The models; all of the system when absent.
        report: Told every outcome as soon as it is in the ledger.
        path: The ledger; the index is renewed beside the one of the package only.
        note: Told, in a sentence, that a level does not apply to the system, and why; nothing is recorded then.

    Returns:
        One record for every level and model, in this order.

    Raises:
        UsageError: There is no such system, level or model, or what a level needs is not installed.
        AnyformerError: The ledger cannot be written.
    """
    system, wanted = registry.system(slug), tuple(levels)
    _known(wanted, LEVELS, "level")
    _known(names or (), system.names, f"model of {slug}")
    code, records = ledger.code(), list[Record]()
    for level in wanted:
        models = _models(system, level, names)
        if level == "equal" and (reason := absent(models[0])):
            note(f"the level equal does not apply to {slug}: {reason}")
            continue
        for name in models:
            if level == "claim":
                fixed = _record(slug, name, ledger.RULE, Evidence(rule(slug)), 0.0, code)
                ledger.append(fixed, path)
            started = time.monotonic()
            evidence = LEVELS[level](name)
            record = _record(slug, name, level, evidence, time.monotonic() - started, code)
            ledger.append(record, path)
            records.append(record)
            report(record)
    if path == ledger.LEDGER:
        index.write()
    return records


def _record(slug: str, name: str, level: str, evidence: Evidence, seconds: float, code: Mapping[str, Any]) -> Record:
    return Record(
        slug=slug,
        name=name,
        level=level,
        reached=not evidence.failures,
        failures=list(evidence.failures),
        figures=evidence.figures,
        seeds=list(evidence.seeds),
        seconds=round(seconds, 1),
        **code,
        **ledger.surroundings(),
    )


def _models(system: System, level: str, names: Sequence[str] | None) -> Sequence[str]:
    return system.small[-1:] if level in ledger.OF_THE_SYSTEM else names or system.names


def _known(asked: Iterable[str], known: Iterable[str], what: str) -> None:
    for word in asked:
        if word not in known:
            raise UsageError(f"no {what} is named {word!r}{nearest(word, known)}; known: {', '.join(known)}")
