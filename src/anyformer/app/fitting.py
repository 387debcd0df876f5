"""``anyformer fit``: progress while it runs, and the result in a few lines."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from anyformer.fit.budget import readable
from anyformer.fit.measuring import DryRun
from anyformer.fit.report import digits, percent
from anyformer.fit.run import dry_run, fit, work

WIDE = 200  # characters of a table that goes to a file or another program


def run_fit(
    data: str,
    *,
    measure_only: bool = False,
    worker: bool = False,
    storage: str | None = None,
    as_json: bool = False,
    target: Sequence[str] | None = None,
    **options: Any,
) -> None:
    """Fit with a progress bar of the time used, then print the result.

    Args:
        data: what to fit to.
        measure_only: print the candidates with their costs and train nothing.
        worker: help a fit that another process has begun, and say how much was done.
        storage: the database that they share; a file in the folder when absent.
        as_json: print JSON.
        target: of a table, the columns of targets.
        options: of the fit.
    """
    options["target"] = target or ()
    with _progress() as notify:
        if measure_only:
            found = dry_run(data, notify=notify, **options)
        elif worker:
            done = work(data, storage=storage or "sqlite", notify=notify, **options)
        else:
            fitted = fit(data, storage=storage, notify=notify, **options)
    if measure_only:
        _print_costs(found, as_json)
    elif worker:
        print(json.dumps({"trials": done}) if as_json else f"trained {done} trials; nothing is left to train")
    elif as_json:
        print(json.dumps(fitted.report, indent=1))
    else:
        _print(fitted.report, fitted.folder)


def _print_costs(found: DryRun, as_json: bool) -> None:
    if as_json:
        print(json.dumps({**asdict(found), "folder": str(found.folder)}, indent=1))
        return
    out = Console(highlight=False)
    if not out.is_terminal:
        out.width = WIDE
    out.print(_table(found))


def _table(found: DryRun) -> Table:
    weights = any("weights" in row for row in found.rows)
    table = Table(title=f"nothing was trained; latency in {found.runtime}, batch 1; costs kept in {found.folder}")
    for name in ("name", "system"):
        table.add_column(name)
    for name in ("latency ms", "p10 to p90", "parameters", "multiply-adds", "size", "step ms"):
        table.add_column(name, justify="right")
    table.add_column("budget")
    if weights:
        table.add_column("weights")
    for row in found.rows:
        latency = row["latency_ms"]
        form = "" if row["precision"] == "float32" else f" ({row['precision']})"
        table.add_row(
            row["name"] + form,
            row["system"],
            digits(latency["median"]),
            f"{digits(latency['p10'])} to {digits(latency['p90'])}",
            readable("params", row["params"]),
            readable("macs", row["macs"]),
            readable("size", row["size_bytes"]),
            digits(1000 * row["step_seconds"]),
            "within" if row["within"] else f"over {', '.join(row['exceeds'])}",
            *([row["weights"]] if weights else []),
        )
    return table


@contextmanager
def _progress() -> Iterator[Callable[[str, float], None]]:
    """A bar of the time used on a terminal, else a line a stage."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("Starting", total=1.0)
        said = [""]

        def notify(what: str, share: float) -> None:
            progress.update(task, description=what, completed=share)
            stage = what.partition(", step")[0]
            if not console.is_terminal and stage != said[0]:
                console.print(f"{stage} ...", highlight=False)
                said[0] = stage

        yield notify


def _print(report: dict[str, Any], folder: Path) -> None:
    if report["kind"] == "language":
        _print_language(report, folder)
        return
    measured, kind = report["budget"]["measured"], report["kind"]
    latency = measured["latency_ms"]
    out = Console(highlight=False, soft_wrap=True)
    form = "" if measured["precision"] == "float32" else f", {measured['precision']}"
    out.print(
        f"[bold]{report['model']}[/bold] ({report['system']}), {readable('params', measured['params'])} parameters{form}"
    )

    def said(found: dict[str, Any]) -> str:
        """A score with its 95 % interval."""
        score, low, high = (
            percent(value, found["n"]).replace("\N{NO-BREAK SPACE}", " ") if kind == "classes" else f"{value:.3f}"
            for value in (found["score"], *found["interval"])
        )
        return f"{score} (95 % interval {low} to {high})"

    test, baseline = report["test"], report["baseline"]
    things, exported = ("texts", "") if "texts" in report["data"] else ("pictures", "model.onnx, ")
    for note in report["data"]["notes"]:
        out.print(f"  note           {note}", markup=False)
    out.print(f"  test           {report['metric']} {said(test)} on {test['n']} {things}, read once")
    out.print(f"  baseline       {said(baseline)}, {baseline['name']}")
    out.print(
        f"  latency        {latency['median']:.3g} ms, {latency['p10']:.3g} to {latency['p90']:.3g} ms, "
        f"{report['runtime']}, batch 1"
    )
    _print_budget(out, report["budget"])
    for row in report["candidates"]:
        if row["start"] not in ("fresh", "not started"):
            out.print(f"  weights        {row['name']}: {row['start']}", markup=False, soft_wrap=True)
    out.print(f"  folder         {folder}: model.safetensors, {exported}report.html, front.png", soft_wrap=True)


def _print_language(report: dict[str, Any], folder: Path) -> None:
    measured = report["budget"]["measured"]
    latency = measured["latency_ms"]
    out = Console(highlight=False, soft_wrap=True)
    out.print(
        f"[bold]{report['model']}[/bold] ({report['system']}), {readable('params', measured['params'])} parameters"
    )

    def said(found: dict[str, Any]) -> str:
        """Bits with their 95 % interval."""
        score, low, high = (f"{value:.3f}" for value in (found["score"], *found["interval"]))
        return f"{score} (95 % interval {low} to {high})"

    test = report["test"]
    for note in report["data"]["notes"]:
        out.print(f"  note           {note}", markup=False)
    out.print(f"  test           {report['metric']} {said(test)} on {test['n']:,} bytes, read once")
    out.print(f"  baseline       {said(report['baseline'])}, {report['baseline']['name']}")
    out.print(
        f"  decoding       {readable('tokens_per_second', 1000 / latency['median'])} tokens a second "
        f"({latency['median']:.3g} ms, {latency['p10']:.3g} to {latency['p90']:.3g} ms), batch 1, after "
        f"{report['data']['trained_context']}"
    )
    out.print(f"  state          {readable('state', measured['state_bytes'])} of a stream there")
    _print_budget(out, report["budget"])
    out.print(f"  folder         {folder}: model.safetensors, report.html, front.png")
    out.print(f"  next           anyformer generate {folder} --prompt ...")


def _print_budget(out: Console, budget: dict[str, Any]) -> None:
    if budget["limits"]:
        out.print(f"  budget         {budget['asked']}: {'met' if budget['met'] else 'NOT met when measured again'}")
