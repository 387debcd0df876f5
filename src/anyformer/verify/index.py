"""The index: what `anyformer list` shows of every model, written into one file so that listing needs no torch."""

import json
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).parents[1]
INDEX, CATALOGUE = PACKAGE / "index.json", PACKAGE / "catalogue.jsonl"


def read() -> list[dict[str, Any]]:
    """The rows as they were written; see :func:`rows`."""
    return json.loads(INDEX.read_text(encoding="utf-8"))


def rows() -> list[dict[str, Any]]:
    """One row a model: name, system, field, small, size, params, macs, levels, licence, and ahead where it has learnt.

    ``size`` is the height and width, or the tokens, that ``macs`` is counted at; ``small`` says that a size is ours and not
    the paper's; ``licence`` is that of the official code, None where it states none; ``ahead`` is the mean difference to the
    baseline of the field's task, by which ``fit`` knows what to try first.
    """
    from anyformer.core import registry  # these import torch, which reading must not
    from anyformer.verify.ledger import latest, levels
    from anyformer.verify.structure import counted, native_size

    licences, newest = _licences(), latest()
    table: list[dict[str, Any]] = []
    for system in registry.systems().values():
        for name in system.names:
            size = native_size(name)
            cost = counted(name, size)
            learnt = newest.get((name, "learns"))
            ahead = {"ahead": round(learnt.figures["mean_difference"], 4)} if learnt and learnt.reached else {}
            table.append(
                {
                    "name": name,
                    "system": system.paper.slug,
                    "field": system.field,
                    "small": name in system.small,
                    "size": list(size),
                    "params": cost.params,
                    "macs": cost.macs,
                    "levels": list(levels(name)),
                    "licence": licences.get(system.paper.slug),
                    **ahead,
                }
            )
    return table


def text() -> str:
    """The file's content: one row a line, so that a change shows as the rows that it changes."""
    return "[\n" + ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows()) + "\n]\n"


def write(path: Path = INDEX) -> None:
    """Write the index anew. Raises AnyformerError when the system refuses."""
    from anyformer.core.files import write_atomic

    write_atomic(path, text().encode())


def _licences() -> dict[str, str | None]:
    entries = map(json.loads, CATALOGUE.read_text(encoding="utf-8").splitlines())
    return {entry["slug"]: entry.get("licence_code") for entry in entries}


if __name__ == "__main__":
    write()
