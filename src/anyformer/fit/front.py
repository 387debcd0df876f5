"""The Pareto front of score and time: which candidates are on it, and the picture of all of them."""

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anyformer.core.errors import UsageError
from anyformer.core.files import write_atomic
from anyformer.fit.labels import Box, place

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCHES = (8.4, 5.0)
DPI = 160
WIDE = 8.0  # largest latency over smallest, from which its axis is logarithmic
FAR = 20.0  # a budget beyond this many times the slowest candidate is named in the legend, not drawn
LONGEST = 34  # characters of a name; the page's table has the whole
BAND = 0.11  # of the height, below, for candidates without a score
LEAST_SPAN = 0.2  # of the axis of scores, in powers of ten of the error
LEAST_BITS = 0.05  # of the same axis, where a score is bits
NARROW = 0.02  # scores closer than this are not drawn further apart
LEVELS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 1.0)
KINDS = ("winner", "on the front", "off the front", "hollow: stopped early", "not trained")
DASHED: dict[str, Any] = {"linestyle": (0, (5, 4)), "linewidth": 1.3}


@dataclass(frozen=True)
class Theme:
    """The colours of a picture."""

    paper: str
    ink: str
    quiet: str
    grid: str
    front: str
    budget: str


LIGHT = Theme("#ffffff", "#1c2430", "#69737f", "#e4e8ee", "#1f6fd6", "#c2410c")
DARK = Theme("#161b22", "#e6ebf2", "#97a1ae", "#2b333e", "#6cabff", "#ff9d5c")


def on_front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points no other dominates: one that costs at most as much, is at least as good, and differs from it.

    Points equal in both numbers do not dominate each other: all of them are on the front, or none. Of points equal in
    one number only the best by the other can be. Takes O(n log n).

    Args:
        points: ``(cost, quality)``, never NaN: less cost is better, more quality is better.
    """
    front = [False] * len(points)
    best: tuple[float, float] | None = None
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1])):
        point = points[index]
        if best is None or point[1] > best[1] or point == best:
            best, front[index] = point, True
    return front


def draw_front(report: dict[str, Any], path: Path) -> None:
    """Write the picture of all candidates as a PNG: score on validation against latency.

    Args:
        report: What ``report.json`` holds; at least one candidate.
        path: The file to write.

    Raises:
        UsageError: matplotlib is not installed.
        AnyformerError: the file cannot be written.
    """
    write_atomic(path, front_png(report, LIGHT))


def front_png(report: dict[str, Any], theme: Theme) -> bytes:
    """The picture in one theme's colours; the same report gives the same bytes."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        raise UsageError('the picture of the front needs matplotlib: pip install "anyformer[fit]"') from None

    figure = Figure(INCHES, dpi=DPI, facecolor=theme.paper, layout=ConstrainedLayoutEngine(w_pad=0.14, h_pad=0.1))
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    heights = _score_axis(axes, report)
    _latency_axis(axes, report)
    _style(axes, report, theme)
    taken = _marks(axes, report, heights, theme)
    figure.legend(
        *_legend(axes),
        loc="outside upper left",
        ncols=6,
        frameon=False,
        fontsize=8.5,
        handletextpad=0.4,
        columnspacing=1.6,
        labelcolor=theme.ink,
    )
    canvas.draw()
    figure.set_layout_engine("none")  # the names to come must not move the axes
    _names(axes, report, heights, taken, theme)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _score_axis(axes: "Axes", report: dict[str, Any]) -> list[float]:
    """Sets up the axis and gives the height of each candidate on it.

    Heights are -log10 of the error, for where one bad candidate would press all the good ones together; over a narrow
    range that is as good as linear. Candidates without a score stand in a band below.
    """
    from matplotlib.ticker import MaxNLocator

    if report["kind"] == "language":
        return _bits_axis(axes, report)
    least = 0.5 / report["validation"]["n"]  # stands for no error at all
    every = [row["score"] for row in report["candidates"]]
    scores = [score for score in every if score is not None]
    low, high = (min(scores), max(scores)) if scores else (0.0, 1.0)
    if high - low < NARROW:
        low, high = max(0.0, (low + high - NARROW) / 2), min(1.0, (low + high + NARROW) / 2)
    span = max(_height(high, least) - _height(low, least), LEAST_SPAN)  # of few pictures all may be right
    pad = 0.09 * span
    floor, top = _height(high, least) - span - pad, _height(high, least) + pad
    ticks = _visible(LEVELS, floor, top, least)
    if len(ticks) < 4:
        ticks = _visible(MaxNLocator(5).tick_values(low, high), floor, top, least)
    words = [f"{100 * tick:.4g} %" if report["metric"] == "accuracy" else f"{tick:.4g}" for tick in ticks]
    axes.set_yticks([_height(tick, least) for tick in ticks], words)
    return _heights(axes, [None if score is None else _height(score, least) for score in every], floor, top)


def _bits_axis(axes: "Axes", report: dict[str, Any]) -> list[float]:
    """The same where a score is bits: heights are their negatives, for fewer are better."""
    from matplotlib.ticker import MaxNLocator

    every = [row["score"] for row in report["candidates"]]
    bits = [score for score in every if score is not None] or [0.0]
    low, high = min(bits), max(max(bits), min(bits) + LEAST_BITS)
    pad = 0.09 * (high - low)
    floor, top = -high - pad, pad - low
    ticks = [tick for tick in MaxNLocator(5).tick_values(low, high) if floor <= -tick <= top]
    axes.set_yticks([-tick for tick in ticks], [f"{tick:.4g}" for tick in ticks])
    return _heights(axes, [None if score is None else -score for score in every], floor, top)


def _heights(axes: "Axes", heights: Sequence[float | None], floor: float, top: float) -> list[float]:
    """Ends the axis, below a band for candidates without a score where there are such, and puts those into it."""
    band = BAND / (1 - BAND) * (top - floor) if None in heights else 0.0
    axes.set_ylim(floor - band, top)
    return [floor - band / 2 if height is None else height for height in heights]


def _height(score: float, least: float) -> float:
    return -math.log10(max(1 - score, least))


def _visible(ticks: Iterable[float], floor: float, top: float, least: float) -> list[float]:
    """The ticks on the axis, but for those in (1 - least, 1), whose heights are not told apart."""
    shown = [tick for tick in ticks if tick <= 1 and floor <= _height(tick, least) <= top]
    return [tick for tick in shown if tick == 1 or 1 - tick > 1.5 * least]


def _latency_axis(axes: "Axes", report: dict[str, Any]) -> None:
    latencies = [row["latency_ms"] for row in report["candidates"]]
    low, high = min(each["p10"] for each in latencies), max(each["p90"] for each in latencies)
    limit = _limit(report)
    if limit is not None and limit <= FAR * high:
        low, high = min(low, limit), max(high, limit)
    if high > WIDE * low:
        axes.set_xscale("log")
        axes.set_xlim(low / (high / low) ** 0.1, high * (high / low) ** 0.1)
        steps = (1, 2, 5) if high < 1e3 * low else (1,)
        decades = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**decade for decade in decades for step in steps]
        left, right = axes.get_xlim()
        axes.set_xticks([tick for tick in ticks if left <= tick <= right])
        axes.minorticks_off()
    else:
        pad = max(0.1 * (high - low), 0.06 * high)
        axes.set_xlim(max(0.0, low - pad), high + 1.3 * pad)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")


def _limit(report: dict[str, Any]) -> float | None:
    """The most that the budget allows for the latency, in ms."""
    for limit in report["budget"]["limits"]:
        if limit["quantity"] == "latency":
            return limit["most"]
        if limit["quantity"] == "tokens_per_second":
            return 1000 / limit["least"]
    return None


def _style(axes: "Axes", report: dict[str, Any], theme: Theme) -> None:
    timed = f"latency of one {'text' if 'texts' in report['data'] else 'picture'} in {report['runtime']}"
    if report["kind"] == "language":
        timed = f"time of one token after {report['data']['trained_context']} in {report['runtime']}"
    axes.set_xlabel(
        f"{timed}: median, bars from 10th to 90th percentile (ms)",
        color=theme.quiet,
        labelpad=6,
    )
    axes.set_ylabel(f"{report['metric']} on validation", color=theme.quiet, labelpad=6)
    axes.set_facecolor(theme.paper)
    axes.grid(color=theme.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelcolor=theme.quiet, pad=6)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.grid)


def _marks(axes: "Axes", report: dict[str, Any], heights: list[float], theme: Theme) -> list[Box]:
    """Draws front, budget and candidates; gives the boxes, in data coordinates, of lines that names should not hide."""
    _, right = axes.get_xlim()
    bottom, top = axes.get_ylim()
    taken: list[Box] = []
    steps = sorted(
        (row["latency_ms"]["median"], height)
        for row, height in zip(report["candidates"], heights, strict=True)
        if row["on_front"]
    )
    if steps:
        # A staircase: between two candidates, what can be had is the faster one.
        ends = [*steps[1:], (right, steps[-1][1])]
        axes.step(
            *zip(*steps, ends[-1], strict=True), where="post", color=theme.front, alpha=0.5, linewidth=1.6, zorder=2
        )
        for (x, y), (end, higher) in zip(steps, ends, strict=True):
            taken += [(x, y, end, y), (end, y, end, higher)]
    limit = _limit(report)
    if limit is not None:
        where = "" if limit < right else ", far to the right"
        axes.axvline(limit, color=theme.budget, zorder=1, label=f"budget {limit:.4g} ms{where}", **DASHED)
        taken.append((limit, bottom, limit, top))
    for row, height in zip(report["candidates"], heights, strict=True):
        latency = row["latency_ms"]
        median = latency["median"]
        style = _style_of(row, theme)
        bars = [[median - latency["p10"]], [latency["p90"] - median]]
        faint = {"color": style["color"], "alpha": 0.6, "elinewidth": 1, "capsize": 2.5, "fmt": "none"}
        axes.errorbar(median, height, xerr=bars, zorder=3, **faint)
        axes.plot(median, height, zorder=4, **style)
        taken.append((latency["p10"], height, latency["p90"], height))
    if any(row["score"] is None for row in report["candidates"]):
        axes.axhspan(bottom, bottom + BAND * (top - bottom), color=theme.grid, alpha=0.45, linewidth=0, zorder=0)
        beside = {"transform": axes.transAxes, "ha": "right", "va": "center"}
        axes.text(-0.011, BAND / 2, "not trained", color=theme.quiet, **beside)
    return taken


def _style_of(row: dict[str, Any], theme: Theme) -> dict[str, Any]:
    """How a candidate is marked, with the words for it."""
    color = theme.front if row["on_front"] else theme.quiet
    style: dict[str, Any] = {"color": color, "linestyle": "none", "marker": "o", "markersize": 7.5}
    if row["status"] == "winner":
        return style | {"marker": "*", "markersize": 16, "markeredgecolor": theme.paper, "label": "winner"}
    if row["score"] is None:
        return style | {"marker": "x", "markersize": 6, "markeredgewidth": 1.5, "label": "not trained"}
    if row["status"].startswith(("stopped", "diverged")):
        hollow = {"markersize": 6.5, "markerfacecolor": theme.paper, "markeredgewidth": 1.5}
        return style | hollow | {"label": "hollow: stopped early"}
    return style | {"markeredgecolor": theme.paper, "label": "on the front" if row["on_front"] else "off the front"}


def _legend(axes: "Axes") -> tuple[list[Any], list[str]]:
    """One entry for each kind of mark, the winner first and the budget last."""
    handles, words = axes.get_legend_handles_labels()
    entries = dict(zip(words, handles, strict=True))
    order = sorted(entries, key=lambda word: KINDS.index(word) if word in KINDS else len(KINDS))
    return [entries[word] for word in order], order


def _names(axes: "Axes", report: dict[str, Any], heights: list[float], taken: list[Box], theme: Theme) -> None:
    """Writes each name beside its mark, with a thin line to it where it stands away."""
    from matplotlib.patheffects import withStroke

    figure: Any = axes.figure
    renderer = figure.canvas.get_renderer()
    rows = report["candidates"]
    points = [
        tuple(axes.transData.transform((row["latency_ms"]["median"], height)))
        for row, height in zip(rows, heights, strict=True)
    ]
    texts = [
        axes.text(
            0,
            0,
            _short(row["name"]),
            transform=None,
            parse_math=False,
            fontsize=8.5,
            fontweight="bold" if row["status"] == "winner" else "normal",
            color=theme.ink if row["score"] is not None else theme.quiet,
            path_effects=[withStroke(linewidth=3, foreground=theme.paper)],
            zorder=6,
        )
        for row in rows
    ]
    extents = [text.get_window_extent(renderer) for text in texts]
    unit = DPI / 72  # pixels in a point
    lines = [
        (*(axes.transData.transform(box[:2]) - unit), *(axes.transData.transform(box[2:]) + unit)) for box in taken
    ]
    dots = [(x - 5 * unit, y - 5 * unit, x + 5 * unit, y + 5 * unit) for x, y in points]
    frame = axes.get_window_extent(renderer)
    boxes = place(
        points,
        [(extent.width + 2 * unit, extent.height + unit) for extent in extents],
        lines + dots,
        (frame.x0, frame.y0, frame.x1, frame.y1),
        gap=8 * unit,
    )
    for text, box, point in zip(texts, boxes, points, strict=True):
        text.set_position((box[0] + unit, box[1] + unit))
        text.set_verticalalignment("bottom")
        end = (min(max(point[0], box[0]), box[2]), min(max(point[1], box[1]), box[3]))
        if math.dist(end, point) > 14 * unit:
            axes.annotate(
                "",
                end,
                point,
                xycoords="figure pixels",
                textcoords="figure pixels",
                arrowprops={"arrowstyle": "-", "color": theme.quiet, "linewidth": 0.6, "shrinkA": 5, "shrinkB": 1},
                zorder=1,
            )


def _short(name: str) -> str:
    half = LONGEST // 2
    return name if len(name) <= LONGEST else f"{name[:half]}…{name[-half:]}"
