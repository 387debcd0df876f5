"""``anyformer list``: read from the generated index, without torch."""

import json
from fnmatch import fnmatchcase
from importlib import resources
from typing import Any

import typer


def read_index() -> list[dict[str, Any]]:
    """The rows of the index: name, system, field, params, macs, levels, licence."""
    return json.loads(resources.files("anyformer").joinpath("index.json").read_bytes())


def print_models(pattern: str, field: str | None, as_json: bool) -> None:
    """Print the models that match."""
    rows = read_index()
    fields = sorted({row["field"] for row in rows})
    if field is not None and field not in fields:
        raise typer.BadParameter(f"no field is named {field!r}; there are {', '.join(fields)}")
    chosen = [row for row in rows if fnmatchcase(row["name"], pattern) and field in (None, row["field"])]
    if not chosen and not as_json:
        raise typer.BadParameter(f"no model's name matches {pattern!r}; `anyformer list` shows all {len(rows)}")
    if as_json:
        print(json.dumps(chosen, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold")
    for heading, side in (("name", "left"), ("system", "left"), ("params", "right"), ("macs", "right")):
        table.add_column(heading, justify=side, no_wrap=True)  # pyright: ignore[reportArgumentType]
    table.add_column("proven")
    table.add_column("licence")
    for row in chosen:
        levels = ", ".join(row["levels"]) or "-"
        table.add_row(
            row["name"], row["system"], _short(row["params"]), _short(row["macs"]), levels, row["licence"] or "-"
        )
    Console().print(table)


def _short(number: float) -> str:
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g}{letter}"
    return f"{number:g}"
