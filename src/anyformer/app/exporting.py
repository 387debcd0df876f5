"""``anyformer export``: a model as files for another runtime, with the record of what they were checked for here."""

import json
import platform
import shlex
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from anyformer.core.errors import AnyformerError, UsageError, nearest
from anyformer.core.files import write_manifest
from anyformer.core.model import Model
from anyformer.data.batches import normalize
from anyformer.data.images import load
from anyformer.data.split import divide
from anyformer.deploy.forms import FORMS, PRECISIONS, Form, Writer, check_form
from anyformer.deploy.quantize import Calibration
from anyformer.deploy.runtime import available_cores, runner
from anyformer.measure.exported import RECORD, is_export
from anyformer.measure.latency import Ratio, ratio
from anyformer.measure.subject import Subject, images, size_of

FORMAT = 1
UNSEEN = 20  # images that a form is compared on
CALIBRATION_IMAGES = 256
HELD_OUT_IMAGES = 1000
RATIO_SECONDS = 6.0
LIBRARIES = ("anyformer", "torch", "onnx", "onnxruntime", "openvino")
USE = {  # without this library, by the runtime's own
    "onnx": 'onnxruntime.InferenceSession("{file}").run(None, {{"images": images}})[0]',
    "openvino": 'openvino.compile_model("{file}", "CPU", {settings})(images)[0]',
    "torch": 'torch.export.load("{file}").module()(images)',
}


@dataclass(frozen=True)
class Tried:
    """A form that was tried: what came of it, or why it was refused.

    Attributes:
        runtime: Of ``FORMS``.
        precision: Of ``PRECISIONS``.
        form: The form; None when refused.
        speed: Time of the model run by torch over the form's, batch 1, all cores; None when refused.
        refused: Why, in a sentence.
    """

    runtime: str
    precision: str
    form: Form | None = None
    speed: Ratio | None = None
    refused: str = ""

    def record(self) -> dict[str, Any]:
        """What is written of it."""
        base = {"runtime": self.runtime, "precision": self.precision, "passed": self.form is not None}
        if self.form is None:
            return {**base, "refused": self.refused}
        assert self.speed is not None
        judged = self.form.judgement
        return {
            **base,
            "max_error": self.form.max_error,
            "predictions": None if judged is None else asdict(judged),
            "speed": asdict(self.speed),
            "bytes": self.form.size_bytes,
        }


def run_export(
    target: str,
    *,
    to: str,
    out: Path,
    precision: str = "float32",
    calibrate: str | None = None,
    max_loss: float = 1.0,
    size: int | None = None,
) -> None:
    """Export a model of the catalogue or of a folder, and print what was written.

    Args:
        target: A name, whose weights are fresh ones, or a folder that was saved or fitted.
        to: ``onnx``, ``openvino``, ``torch``; or ``best``, the fastest form on this machine.
        out: The folder to write: the model's files, ``export.json`` and a manifest, all or nothing.
        precision: What products are computed in; for ``best`` the least exact that may be.
        calibrate: A data set, for the scales of int8 and for comparing on real pictures.
        max_loss: Points of accuracy that int8 may cost.
        size: Side of the images; the model's own when None.

    Raises:
        UsageError: What is asked for is unknown, does not go together, or is not installed.
        AnyformerError: The form, or with ``best`` every form, was refused; nothing is written then.
    """
    wanted = _wanted(to, precision)
    if not 0 <= max_loss <= 100:
        raise UsageError(f"the loss of accuracy allowed is 0 to 100 points, not {max_loss}")
    if "int8" in {form[1] for form in wanted} and calibrate is None:
        raise UsageError("int8 needs real pictures for its scales; name a data set with --calibrate")
    _check_folder(out)
    name = Path(target).resolve().name
    model = Subject.of(target).model(None if size is None else (size, size))
    sides = size_of(model)
    seed = _seed(Path(target))
    calibration = None if calibrate is None else _calibration(calibrate, model, sides, max_loss, seed)
    unseen = UNSEEN if calibration is None else calibration.held_out[:UNSEEN]
    with TemporaryDirectory(prefix="anyformer-export-") as folder:
        writer = Writer(model, images(model, 1, sides), Path(folder), unseen=unseen, calibration=calibration)
        tried = _try(writer, wanted, keep_going=to == "best")
        chosen = _fastest(name, tried)
        assert chosen.form is not None
        contents = {file.name: file.read_bytes() for file in chosen.form.files}
        record = {
            "format": FORMAT,
            "model": name,
            "runtime": chosen.runtime,
            "precision": chosen.precision,
            "files": sorted(contents),
            "input": {"name": "images", "type": "float32", "shape": ["batch", *writer.example.shape[1:]]},
            "settings": _settings(chosen),
            "use": _use(chosen, Path()),
            "data_config": model.data_config,
            "compared_on": len(writer.unseen),
            "calibrated_with": calibrate,
            "split_seed": None if calibration is None else seed,
            "forms": [each.record() for each in tried],
            "environment": _environment(),
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        }
        write_manifest(out, {**contents, RECORD: json.dumps(record, indent=1, allow_nan=False).encode()})
    _print(tried, chosen, out)


def _wanted(to: str, precision: str) -> list[tuple[str, str]]:
    """The forms to try, as (runtime, precision)."""
    kinds = (*FORMS, "best")
    if to not in kinds:
        raise UsageError(f"there is no export to {to!r}; known: {', '.join(kinds)}{nearest(to, kinds)}")
    if precision not in PRECISIONS:
        raise UsageError(
            f"there is no precision {precision!r}; known: {', '.join(PRECISIONS)}{nearest(precision, PRECISIONS)}"
        )
    if to != "best":
        check_form(to, precision)
        return [(to, precision)]
    allowed = PRECISIONS[: PRECISIONS.index(precision) + 1]
    return [(runtime, each) for runtime, precisions in FORMS.items() for each in precisions if each in allowed]


def _check_folder(out: Path) -> None:
    """Raises UsageError for a folder that holds something else than an export: its manifest would be replaced."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not is_export(out):
        raise UsageError(f"{out} holds something else than an export; name a new folder")


def _seed(target: Path) -> int:
    """The seed that a fit divided its pictures by, so that none it has trained on is held out here; 0 for other models.

    Raises:
        AnyformerError: The fit's report is damaged.
    """
    path = target / "report.json"
    if not path.is_file():
        return 0
    try:
        return int(json.loads(path.read_text())["split"]["seed"])
    except (ValueError, KeyError, TypeError) as error:
        raise AnyformerError(
            f"{path} does not say how the pictures were divided; copy the whole folder again"
        ) from error


def _calibration(source: str, model: Model, sides: tuple[int, int], max_loss: float, seed: int) -> Calibration:
    """Pictures of a data set as the model takes them, of its training part and of the others."""
    if sides[0] != sides[1]:
        raise UsageError(f"data sets are read in squares, and this model takes images of {sides[0]} x {sides[1]}")
    data = load(source, sides[0])
    if data.kind != "classes":
        raise UsageError(f"{source} has no classes; int8 is judged by the classes it predicts, so give a set with them")
    parts = divide(data.labels, data.kind, seed, data.given)
    chosen = parts.train[torch.randperm(len(parts.train), generator=torch.Generator().manual_seed(seed))]
    held_out = torch.cat([parts.validation, parts.test])[:HELD_OUT_IMAGES]
    known = model.data_config.get("classes")
    return Calibration(
        images=_prepared(data.pixels[chosen[:CALIBRATION_IMAGES]], model, source),
        held_out=_prepared(data.pixels[held_out], model, source),
        labels=data.labels[held_out] if known is not None and list(known) == list(data.classes) else None,
        max_loss=max_loss,
    )


def _prepared(pixels: Tensor, model: Model, source: str) -> Tensor:
    channels = model.data_config["channels"]
    if pixels.shape[1] == 1 < channels:
        pixels = pixels.expand(-1, channels, -1, -1)
    if pixels.shape[1] != channels:
        raise UsageError(f"{source} has pictures of {pixels.shape[1]} channels, and the model takes {channels}")
    return normalize(pixels, model.data_config)


def _try(writer: Writer, wanted: list[tuple[str, str]], *, keep_going: bool) -> list[Tried]:
    """Every form that is wanted, timed in turns with the model as torch runs it."""
    eager = runner(writer.model, "eager", writer.example, threads=available_cores())
    console = Console(stderr=True, highlight=False)
    tried = []
    for runtime, precision in wanted:
        console.print(f"{runtime} {precision} ...")
        try:
            form = writer.write(runtime, precision)
        except AnyformerError as error:
            if not keep_going:
                raise
            tried.append(Tried(runtime, precision, refused=str(error)))
            continue
        speed = ratio(lambda: form.run(writer.example), lambda: eager(writer.example), max_seconds=RATIO_SECONDS)  # noqa: B023 - called before the next turn
        tried.append(Tried(runtime, precision, form, speed))
    return tried


def _fastest(name: str, tried: list[Tried]) -> Tried:
    passed = [each for each in tried if each.speed is not None]
    if not passed:
        raise AnyformerError(f"no form of {name} passed; the first was refused because {tried[0].refused}")
    return max(passed, key=lambda each: each.speed.value if each.speed else 0.0)


def _settings(chosen: Tried) -> dict[str, str]:
    """What the runtime has to be told to compute as it did in the comparison."""
    if chosen.runtime != "openvino":
        return {}
    return {"INFERENCE_PRECISION_HINT": "bf16" if chosen.precision == "bfloat16" else "f32"}


def _use(chosen: Tried, folder: Path) -> str:
    """The Python that gives scores of images."""
    assert chosen.form is not None
    return USE[chosen.runtime].format(file=folder / chosen.form.files[0].name, settings=_settings(chosen))


def _environment() -> dict[str, Any]:
    """What the speeds depend on."""
    versions = {}
    for library in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[library] = version(library)
    return {
        **versions,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cores": available_cores(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def _print(tried: list[Tried], chosen: Tried, out: Path) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for each in tried:
        mark = "*" if each is chosen else " "
        console.print(f"{mark} {each.runtime:9}{each.precision:9} {_told(each)}", markup=False)
    assert chosen.form is not None
    console.print(f"{out}: {', '.join(file.name for file in chosen.form.files)}, {RECORD}", markup=False)
    console.print(f"in Python: {_use(chosen, out)}", markup=False)
    console.print(f"images are float32 and normalised as {RECORD} says under data_config", markup=False)


def _told(each: Tried) -> str:
    """A line about a form, without its name."""
    if each.form is None or each.speed is None:
        return f"refused: {each.refused}"
    about = "" if each.speed.measured else "about "  # other work on the machine kept the interval wide
    speed = (
        f"{about}{each.speed.value:.2f} times as fast as eager torch ({each.speed.low:.2f} to {each.speed.high:.2f})"
    )
    size = f"{each.form.size_bytes / 1e6:.2f} MB"
    judged = each.form.judgement
    if judged is None:
        return f"{speed}, error {each.form.max_error:.1e}, {size}"
    told = f"same class for {judged.agreement:.1%} of {judged.images} images"
    if judged.accuracy_before is not None and judged.accuracy_after is not None:
        told += f", accuracy {judged.accuracy_before:.1%} before and {judged.accuracy_after:.1%} after"
    return f"{speed}, {told}, {size}"
