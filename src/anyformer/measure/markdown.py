"""A table of measurements in Markdown, for a report or an issue; and its cells, for the terminal too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from anyformer.measure.exponents import Exponent, exponents

if TYPE_CHECKING:
    from anyformer.measure.table import Row, Table

HEADINGS = (
    "model",
    "runtime",
    "precision",
    "batch",
    "size",
    "median ms",
    "p10-p90",
    "ratio [95 %]",
    "MACs",
    "params",
    "error",
    "forward MB",
    "training MB",
    "mJ",
)
WORDS = {"macs": "MACs", "median_ms": "latency", "forward_mb": "forward memory", "training_mb": "training memory"}


def cells(row: Row) -> list[str]:
    """What a person reads of a row, under ``HEADINGS``."""
    percentiles = "-" if row.p10_ms is None else f"{row.p10_ms:.3g}-{row.p90_ms:.3g}"
    return [
        f"{row.name} (A/A)" if row.again else row.name,
        row.runtime,
        row.precision,
        str(row.batch),
        f"{row.height}x{row.width}",
        _number(row.median_ms),
        percentiles,
        ratio(row),
        "-" if row.macs is None else f"{short(row.macs)}{'+' if row.uncounted else ''}",
        "-" if row.params is None else short(row.params),
        "-" if row.error is None else f"{row.error:.0e}",
        _number(row.forward_mb),
        _number(row.training_mb),
        _number(row.energy_mj),
    ]


def ratio(row: Row) -> str:
    """The ratio with its interval, or that it is not known."""
    if row.ratio is None:
        return "-"
    if row.ratio_low is None or row.ratio_high is None:
        return "unmeasured"
    if row.ratio == row.ratio_low == row.ratio_high == 1:
        return "1"
    unmeasured = "" if row.measured else " unmeasured"
    return f"{row.ratio:.3f} [{row.ratio_low:.3f}, {row.ratio_high:.3f}]{unmeasured}"


def power(exponent: Exponent) -> str:
    """An exponent in words."""
    ends = "" if exponent.low is None else f" [{exponent.low:.2f}, {exponent.high:.2f}]"
    where = f"{exponent.name}, {exponent.runtime} {exponent.precision}, batch {exponent.batch}"
    return f"{where}: {WORDS[exponent.quantity]} grows as pixels^{exponent.value:.2f}{ends} ({exponent.sizes} sizes)"


def remarks(table: Table) -> list[str]:
    """What stands below a table: against what the ratios are, what is not counted, what is missing, and why."""
    against = list(dict.fromkeys(row.against for row in table.rows if row.against))
    lines = [f"Ratios are times over those of {', '.join(against)}; above 1 is slower."] if against else []
    for row in table.rows:
        if row.again and row.ratio_low and row.ratio_high and not row.ratio_low <= 1 <= row.ratio_high:
            lines.append(
                f"{row.name}, {row.runtime}, batch {row.batch}, {row.height}x{row.width}: its A/A row is {ratio(row)}, "
                f"which excludes 1; the machine was not quiet: do not quote this group, measure again"
            )
    lines += [power(exponent) for exponent in exponents(table.rows)]
    for row in table.rows:
        if row.uncounted:
            calls = ", ".join(f"{name} ({count} calls)" for name, count in row.uncounted.items())
            lines.append(f"{row.name}: not in its multiply-adds (+): {calls}")
        lines += [f"{row.name}, {row.runtime} {row.precision}: {row.note}"] if row.note else []
    if "energy" in table.about:
        lines.append(f"Energy: {table.about['energy']}.")
    return list(dict.fromkeys(lines))


def to_markdown(table: Table) -> str:
    """The rows as a table, the remarks, and what they hold for."""
    lines = [HEADINGS, ["---"] * 5 + ["---:"] * 9, *map(cells, table.rows)]
    body = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    below = "\n".join(f"- {line}" for line in remarks(table))
    about = "\n".join(f"- {key}: {value}" for key, value in table.about.items() if key != "energy")
    return f"{body}\n\n{below}\n\nMeasured:\n\n{about}\n"


def short(number: float) -> str:
    """A count in thousands, millions, milliards."""
    for factor, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g}{letter}"
    return f"{number:g}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"
