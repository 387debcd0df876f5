"""``anyformer verify``: prove levels here and print what was found."""

import click

from anyformer.verify import verify as levels


def prove(system: str, level: str, names: list[str]) -> None:
    """Run the levels; exit with 1 where one was not shown."""
    rows = levels.verify(system, [part.strip() for part in level.split(",") if part.strip()], names or None, click.echo)
    if not all(row["shown"] for row in rows):
        raise SystemExit(1)
