"""Reports as a fit writes them, for the tests of the picture and of the page."""

from typing import Any

from anyformer.fit.front import on_front
from anyformer.fit.report import wilson

DIGITS = [str(digit) for digit in range(10)]


def candidate(name: str, score: float | None, latency: float, status: str = "finished") -> dict[str, Any]:
    return {
        "name": name,
        "system": name.split("_")[0],
        "score": score,
        "latency_ms": {"median": latency, "p10": 0.94 * latency, "p90": 1.13 * latency},
        "params": 118_000,
        "macs": 4_720_000,
        "size_bytes": 502_000,
        "steps": 0 if score is None else 900,
        "on_front": False,
        "status": status,
        "precision": "float32",
        "start": "fresh",
    }


CANDIDATES = (
    ("vit_micro", 0.905, 0.16, "stopped at rung 1"),
    ("convnext_micro", 0.961, 0.19, "stopped at rung 2"),
    ("edgenext_mini", 0.9889, 0.41, "winner"),
    ("swin_mini", 0.972, 0.92),
    ("convnext_tiny", None, 8.7, "over budget: latency 8.7 ms"),
)


def example(*rows: tuple, limit: float | None = 2.0, classes: list[str] = DIGITS) -> dict[str, Any]:
    """A report of these candidates, of a test part where one picture of the second class was taken for the first."""
    candidates = [candidate(*row) for row in rows or CANDIDATES]
    trained = [row for row in candidates if row["score"] is not None]
    front = on_front([(row["latency_ms"]["median"], row["score"]) for row in trained])
    for row, on in zip(trained, front, strict=True):
        row["on_front"] = on
    winner = next(row for row in candidates if row["status"] == "winner")
    matrix = [[27 * (row == column) for column in range(len(classes))] for row in range(len(classes))]
    matrix[1][0], matrix[1][1] = 1, 26
    n = 27 * len(classes)
    return {
        "format": 2,
        "model": winner["name"],
        "system": winner["system"],
        "runtime": "onnxruntime",
        "finished": True,
        "interrupted": False,
        "kind": "classes",
        "metric": "accuracy",
        "test": {"score": (n - 1) / n, "interval": list(wilson((n - 1) / n, n)), "n": n},
        "validation": {"score": winner["score"], "interval": list(wilson(winner["score"], 359)), "n": 359},
        "split": {"train": 1168, "validation": 359, "test": n, "seed": 0, "digest": "3f" * 32},
        "budget": {
            "asked": "" if limit is None else f"latency<={limit:g}ms",
            "limits": [] if limit is None else [{"quantity": "latency", "most": limit, "unit": "ms"}],
            "measured": {name: winner[name] for name in ("latency_ms", "params", "macs", "size_bytes", "precision")},
            "met": True,
        },
        "baseline": {"name": "SVC(gamma='scale') on the same pixels", "score": 0.9, "n": n},
        "candidates": candidates,
        "confusion": {"classes": classes, "matrix": matrix},
        "columns": None,
        "mistakes": [{"file": "digits/0042", "label": classes[1], "predicted": classes[0], "score": 0.97}],
        "export": {"max_error": 1.3e-6, "inputs": 20, "int8": None},
        "distillation": None,
        "data": {
            "source": "digits",
            "images": 1797,
            "classes": classes,
            "channels": 1,
            "size": 8,
            "digest": "ab" * 32,
            "notes": ["column 'kind' is read as classes"],
        },
        "environment": {"anyformer": "0.1.0", "torch": "2.13.0+cpu", "machine": "x86_64", "cores": 2},
        "command": "anyformer fit digits --budget 'latency<=2ms' --minutes 3",
        "seconds": 170.2,
        "minutes": 3,
        "seed": 0,
        "trials": 8,
    }
