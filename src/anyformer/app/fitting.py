"""``anyformer fit``: progress while it runs, and the result in a few lines."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from anyformer.fit.budget import readable
from anyformer.fit.run import fit


def run_fit(data: str, **options: Any) -> None:
    """Fit with a progress bar of the time used, then print the result."""
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

        fitted = fit(data, notify=notify, **options)
    _print(fitted.report, fitted.folder)


def _print(report: dict[str, Any], folder: Path) -> None:
    measured = report["budget"]["measured"]
    latency = measured["latency_ms"]
    out = Console(highlight=False)
    out.print(
        f"[bold]{report['model']}[/bold] ({report['system']}), {readable('params', measured['params'])} parameters"
    )
    test, baseline = report["test"], report["baseline"]
    out.print(f"  test accuracy  {test['accuracy']:.2%} of {test['n']} pictures, read once")
    out.print(f"  baseline       {baseline['accuracy']:.2%}, {baseline['name']}")
    out.print(f"  latency        {latency['median']:.3g} ms, p90 {latency['p90']:.3g} ms, {report['runtime']}, batch 1")
    if report["budget"]["limits"]:
        met = "met" if report["budget"]["met"] else "NOT met when measured again"
        out.print(f"  budget         {report['budget']['asked']}: {met}")
    out.print(f"  folder         {folder}: model.safetensors, model.onnx, report.html, front.png", soft_wrap=True)
