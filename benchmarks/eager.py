"""Eager float32 inference side by side with timm's, in one process, blocks taking turns.

``python benchmarks/eager.py`` prints a table; ``--json`` ends with one JSON line: ``geomean``, ``geomean_b1``,
``geomean_b16`` and ``rows``. A ratio above 1 means that ours is faster. timm runs in the faster of its two memory formats;
outputs are checked equal; an A/A row shows what the method resolves, and the machine's matrix rate what it could do.
"""

import argparse
import json
import math
import os
from dataclasses import asdict

import torch
from torch import Tensor, nn

import anyformer as af
from anyformer.measure.cost import cost
from anyformer.measure.latency import latency, matrix_rate, ratio
from anyformer.verify.oracles import oracle

MODELS = (
    "vit_tiny_patch16_224",
    "vit_small_patch16_224",
    "swin_tiny_patch4_window7_224",
    "convnext_tiny",
    "edgenext_xx_small",
)
BATCHES = (1, 16)
TOLERANCE = 1e-4  # of the largest output


def faster_format(model: nn.Module, images: Tensor) -> tuple[nn.Module, Tensor, str]:
    """The timm model and its input in the memory format in which it is faster here."""
    plain = latency(lambda: model(images), seconds=0.5).median_ms
    moved = images.to(memory_format=torch.channels_last)
    model = model.to(memory_format=torch.channels_last)
    last = latency(lambda: model(moved), seconds=0.5).median_ms
    if last < plain:
        return model, moved, "channels_last"
    return model.to(memory_format=torch.contiguous_format), images, "contiguous"


def row(name: str, batch: int, seconds: float, peak: float) -> dict[str, object]:
    """One model at one batch size."""
    theirs = oracle(name).float().eval()
    ours = af.create_model(name).eval()
    af.load_weights(ours, theirs.state_dict(), format="timm")
    height, width = ours.data_config["size"]
    images = torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(0))
    expected = theirs(images)
    error = ((ours(images) - expected).abs().max() / expected.abs().max()).item()
    if error > TOLERANCE:
        raise SystemExit(f"{name}: outputs differ by {error:.1e}")
    theirs, their_images, memory_format = faster_format(theirs, images)
    measured = ratio(lambda: ours(images), lambda: theirs(their_images), max_seconds=seconds)
    speed = latency(lambda: ours(images), seconds=1.0)
    rate = 2 * cost(ours, (batch, 3, height, width)).macs / (speed.median_ms / 1e3) / 1e9
    return {
        "name": name,
        "batch": batch,
        "error": error,
        "timm_format": memory_format,
        "images_per_second": batch / (speed.median_ms / 1e3),
        "share_of_matrix_rate": rate / peak,
        **asdict(measured),
    }


def main() -> None:
    """Measure all rows and print them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--seconds", type=float, default=60.0, help="at most, for each row")
    parser.add_argument("--models", nargs="*", default=MODELS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, object]] = []
    with torch.inference_mode():
        peak = matrix_rate()
        print(f"{arguments.threads} threads, {peak:.0f} GFLOP/s in float32 matrix products")
        model, images = af.create_model(MODELS[0]).eval(), torch.randn(1, 3, 224, 224)
        same = ratio(lambda: model(images), lambda: model(images), max_seconds=arguments.seconds)
        print(f"{'A/A':32} 1  {same.value:5.3f} [{same.low:5.3f}, {same.high:5.3f}]")
        for name in arguments.models:
            for batch in BATCHES:
                found = row(name, batch, arguments.seconds, peak)
                rows.append(found)
                note = "" if found["measured"] else "  unmeasured: the interval stayed wide"
                print(
                    f"{name:32} {batch:2} {found['value']:5.3f} [{found['low']:5.3f}, {found['high']:5.3f}] "
                    f"{found['images_per_second']:7.1f} img/s {found['share_of_matrix_rate']:4.0%} of the rate{note}",
                    flush=True,
                )

    def geomean(chosen: list[dict[str, object]]) -> float:
        return math.exp(sum(math.log(float(str(r["value"]))) for r in chosen) / len(chosen)) if chosen else math.nan

    summary = {
        "geomean": geomean(rows),
        "geomean_b1": geomean([r for r in rows if r["batch"] == 1]),
        "geomean_b16": geomean([r for r in rows if r["batch"] == 16]),
        "a_a": asdict(same),
        "threads": arguments.threads,
        "matrix_rate_gflops": peak,
        "torch": torch.__version__,
        "rows": rows,
    }
    print(", ".join(f"{key} {summary[key]:.3f}" for key in ("geomean", "geomean_b1", "geomean_b16")))
    if arguments.json:
        print(json.dumps(summary))


if __name__ == "__main__":
    main()
