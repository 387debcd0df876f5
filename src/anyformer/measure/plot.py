"""The picture of a table: latency over size or batch where one is swept, otherwise a mark a row beside its ratio."""

from __future__ import annotations

import io
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.measure.exponents import exponents

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

    from anyformer.measure.table import Row, Table

WIDTH, DPI = 8.4, 160  # inches, dots an inch
INK, QUIET, GRID = "#1c2430", "#69737f", "#e4e8ee"
COLORS = ("#1f6fd6", "#c2410c", "#0f8a6d", "#8a3ffc", "#a16207", "#be185d", "#475569", "#0891b2")  # by model
MARKS = ("o", "s", "^", "D")  # by runtime
LINES = ("-", "--", ":", "-.")  # by precision
LONGEST = 44  # characters of a label
WIDE = 8.0  # largest latency over smallest, from which its axis is logarithmic


def png(table: Table) -> bytes:
    """The picture as a file.

    Raises:
        UsageError: matplotlib is not installed.
        AnyformerError: No row has a latency.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise UsageError('the picture of a table needs matplotlib: pip install "anyformer[fit]"') from None
    rows = [row for row in table.rows if row.median_ms is not None]
    if not rows:
        raise AnyformerError("there is nothing to draw: no row has a latency")
    over_size = _swept(rows, lambda row: (row.height, row.width))
    sweep = over_size or _swept(rows, lambda row: row.batch)
    height = 5.2 if sweep else 1.5 + 0.34 * len(rows)
    figure = Figure((WIDTH, height), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    if sweep:
        _sweep(figure.add_subplot(), table, [row for row in rows if not row.again], over_size=over_size)
    else:
        figure.set_layout_engine("constrained", w_pad=0.14)
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        _dots(left, right, rows)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _swept(rows: list[Row], setting: Callable[[Row], object]) -> bool:
    """Whether one model was measured at more than one of a setting; models of different own sizes are no sweep."""
    found: defaultdict[str, set[object]] = defaultdict(set)
    for row in rows:
        found[row.name].add(setting(row))
    return any(len(settings) > 1 for settings in found.values())


def _sweep(axes: Axes, table: Table, rows: list[Row], *, over_size: bool) -> None:
    """A line for each model in each form: milliseconds over pixels, or images a second over the batch."""
    lines: defaultdict[tuple[str, str, str, int], list[Row]] = defaultdict(list)
    for row in rows:
        lines[row.name, row.runtime, row.precision, row.batch if over_size else 0].append(row)
    powers = {
        (each.name, each.runtime, each.precision, each.batch): each.value
        for each in exponents(rows)
        if each.quantity == "median_ms"
    }
    styles = _styles(rows)
    several = len({row.batch for row in rows}) > 1
    for key, some in lines.items():
        some.sort(key=lambda row: (row.height * row.width, row.batch))
        low, middle, high = (
            [_height(row, quantile, over_size) for row in some] for quantile in ("p10_ms", "median_ms", "p90_ms")
        )
        x = [row.height * row.width if over_size else row.batch for row in some]
        label = _label(some[0], rows) + (f", batch {some[0].batch}" if over_size and several else "")
        label += f"  ~pixels^{powers[key]:.2f}" if over_size and key in powers else ""
        axes.plot(x, middle, label=label, **styles(some[0]))
        axes.fill_between(x, low, high, color=styles(some[0])["color"], alpha=0.12, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    ticks = sorted({(row.height * row.width if over_size else row.batch): row for row in rows}.items())
    labels = [f"{row.height}x{row.width}" if over_size else str(row.batch) for _, row in ticks]
    axes.set_xticks([x for x, _ in ticks], labels)
    axes.minorticks_off()
    _decades(axes.yaxis)
    axes.set_xlabel("size of the images, in pixels" if over_size else "images a call", color=QUIET)
    axes.set_ylabel("median latency of a call (ms)" if over_size else "images a second", color=QUIET)
    axes.set_title(
        f"band: 10th to 90th percentile; threads: {table.about.get('threads')}", color=QUIET, fontsize=9, loc="left"
    )
    _style(axes, grid="both")
    axes.legend(frameon=False, fontsize=8.5, labelcolor=INK)


def _height(row: Row, quantile: str, over_size: bool) -> float:
    time = getattr(row, quantile)
    return time if over_size else 1000 * row.batch / time


def _decades(axis: Axis) -> None:
    """Ticks at 1, 2 and 5 of each power of ten, written out."""
    from matplotlib.ticker import LogLocator

    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")


def _line(axes: Axes, ends: Any, place: int, color: str) -> None:
    if None not in ends:
        axes.plot(ends, [place, place], color=color, alpha=0.45, linewidth=1.4)


def _dots(left: Axes, right: Axes, rows: list[Row]) -> None:
    """A mark a row: latency with its percentiles, and the ratio with its interval, hollow where it is unmeasured."""
    styles = _styles(rows)
    places = list(range(len(rows)))[::-1]
    for place, row in zip(places, rows, strict=True):
        style = styles(row) | {"linestyle": "none"}
        _line(left, (row.p10_ms, row.p90_ms), place, style["color"])
        left.plot(row.median_ms or 0, place, **style)
        _line(right, (row.ratio_low, row.ratio_high), place, style["color"])
        if row.ratio is not None:
            face = style["color"] if row.measured else "white"
            right.plot(row.ratio, place, **style | {"markerfacecolor": face, "markeredgecolor": style["color"]})
    high, low = max(row.p90_ms or 0 for row in rows), min(row.p10_ms or 0 for row in rows)
    if high > WIDE * low > 0:
        left.set_xscale("log")
        _decades(left.xaxis)
        left.minorticks_off()
    else:
        left.set_xlim(0, 1.06 * high)
    left.set_yticks(places, [_label(row, rows) for row in rows])
    left.set_ylim(-0.6, len(rows) - 0.4)
    right.axvline(1, color=QUIET, linewidth=1, linestyle=(0, (4, 4)), zorder=0)
    left.set_xlabel("latency (ms): median, 10th to 90th percentile", color=QUIET)
    right.set_xlabel("time over the first's, 95 % interval\n(hollow: unmeasured)", color=QUIET)
    for axes in (left, right):
        _style(axes, grid="x")
    right.tick_params(labelleft=False)


def _style(axes: Axes, grid: Any) -> None:
    axes.grid(axis=grid, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=QUIET, labelsize=8.5)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(GRID)


def _styles(rows: list[Row]) -> Any:
    """How the marks of a row look: its model's colour, its runtime's mark, its precision's line."""
    names, runtimes, precisions = (
        list(dict.fromkeys(getattr(row, each) for row in rows)) for each in ("name", "runtime", "precision")
    )

    def style(row: Row) -> dict[str, Any]:
        return {
            "color": COLORS[names.index(row.name) % len(COLORS)],
            "marker": MARKS[runtimes.index(row.runtime) % len(MARKS)],
            "linestyle": LINES[precisions.index(row.precision) % len(LINES)],
            "linewidth": 1.6,
            "markersize": 5.5,
        }

    return style


def _label(row: Row, rows: list[Row]) -> str:
    """The model, and what else tells rows apart."""
    form = [getattr(row, each) for each in ("runtime", "precision") if len({getattr(r, each) for r in rows}) > 1]
    text = " ".join([row.name if len(row.name) <= LONGEST else f"{row.name[: LONGEST - 1]}…", *form])
    return f"{text} (A/A)" if row.again else text
