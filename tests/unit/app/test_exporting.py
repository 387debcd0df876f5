"""`anyformer export` writes a folder whole or not at all, and its record says what was found."""

import hashlib
import json

import numpy as np
import onnxruntime
import pytest
import torch

from anyformer.app import exporting
from anyformer.app.exporting import run_export
from anyformer.core.errors import AnyformerError, UsageError
from anyformer.core.store import create_model, from_pretrained
from anyformer.data.batches import normalize
from anyformer.data.images import ImageSet
from anyformer.data.split import split
from anyformer.deploy.forms import Form
from anyformer.deploy.quantize import Judgement
from anyformer.deploy.runtime import OnnxModel, load_openvino
from anyformer.measure.latency import Ratio

SIDE = 8
CLASSES = ("dark", "light")


def ratio_of(value):
    return Ratio(value=value, low=value / 1.01, high=value * 1.01, blocks=10, measured=True)


def pictures(channels=3, kind="classes"):
    """Dark and light ones."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 2
    images = torch.randint(0, 128, (60, channels, SIDE, SIDE), generator=generator, dtype=torch.uint8)
    images += (100 * labels)[:, None, None, None].to(torch.uint8)
    return ImageSet(images, labels, CLASSES, tuple(map(str, range(60))), kind=kind)


@pytest.fixture
def quick(monkeypatch):
    """Timing without a clock, and a data set without a disk."""
    monkeypatch.setattr(exporting, "ratio", lambda ours, theirs, **_: (ours(), theirs(), ratio_of(2.0))[2])
    monkeypatch.setattr(exporting, "load", lambda source, size: pictures())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that tells light from dark, and knows the names of its classes."""
    path = tmp_path_factory.mktemp("saved") / "model"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = create_model("vit_micro", num_classes=2, img_size=SIDE, patch_size=4)
        model.data_config["classes"] = list(CLASSES)
        data = pictures()
        images, optimizer = normalize(data.images, model.data_config), torch.optim.AdamW(model.parameters(), 3e-3)
        for _ in range(15):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(images), data.labels).backward()
            optimizer.step()
    model.save_pretrained(path)
    return path


def test_a_saved_model_is_exported_with_its_record_and_digests(folder, tmp_path, quick, capsys):
    out = tmp_path / "out"
    run_export(str(folder), to="onnx", out=out)
    assert sorted(file.name for file in out.iterdir()) == ["export.json", "manifest.json", "model.onnx"]
    manifest = json.loads((out / "manifest.json").read_text())["files"]
    for name in ("export.json", "model.onnx"):
        assert manifest[name]["sha256"] == hashlib.sha256((out / name).read_bytes()).hexdigest()
    record = json.loads((out / "export.json").read_text())
    assert (record["model"], record["runtime"], record["precision"]) == ("model", "onnx", "float32")
    assert record["input"]["shape"] == ["batch", 3, SIDE, SIDE]
    assert record["data_config"]["classes"] == list(CLASSES)
    (form,) = record["forms"]
    assert form["passed"]
    assert form["max_error"] <= 1e-5
    assert form["speed"]["value"] == 2.0
    assert form["bytes"] == (out / "model.onnx").stat().st_size
    image = torch.randn(3, 3, SIDE, SIDE)
    with torch.no_grad():
        want = from_pretrained(folder)(image).numpy()
    assert np.abs(OnnxModel(out / "model.onnx")(image.numpy()) - want).max() <= 1e-5 * np.abs(want).max()
    printed = capsys.readouterr().out
    assert "* onnx" in printed
    assert "2.00 times as fast as eager torch" in printed
    assert f'InferenceSession("{out}/model.onnx")' in printed

    # The folder of an export may be written again; int8 is judged with the labels of the same classes.
    run_export(str(folder), to="onnx", out=out, precision="int8", calibrate="somewhere", max_loss=5)
    record = json.loads((out / "export.json").read_text())
    judged = record["forms"][0]["predictions"]
    assert record["calibrated_with"] == "somewhere"
    assert record["split_seed"] == 0
    assert judged["images"] == 20
    assert judged["accuracy_before"] == 1.0
    assert judged["accuracy_after"] >= 0.95
    assert "accuracy 100.0% before" in capsys.readouterr().out


class Drawn:
    """Stands for the writer: forms that are refused or given, without writing a model."""

    outcomes: dict = {}

    def __init__(self, model, example, folder, *, unseen, calibration):
        self.model, self.example, self.folder = model, example, folder
        self.unseen, self.calibration = torch.zeros(20), calibration

    def write(self, runtime, precision):
        if (runtime, precision) not in self.outcomes:
            raise AnyformerError(f"the {runtime} file in {precision} differs")
        path = self.folder / f"{runtime}.{precision}"
        path.write_bytes(b"weights")
        judged = Judgement(agreement=1.0, accuracy_before=None, accuracy_after=None, images=9)
        speed = self.outcomes[runtime, precision]
        int8 = precision == "int8"
        return Form(
            runtime=runtime,
            precision=precision,
            files=(path,),
            max_error=None if int8 else 1e-6,
            judgement=judged if int8 else None,
            run=lambda images: speed,
            size_bytes=7,
        )


@pytest.fixture
def drawn(monkeypatch):
    monkeypatch.setattr(exporting, "Writer", Drawn)
    monkeypatch.setattr(exporting, "ratio", lambda ours, theirs, **_: ratio_of(ours()))
    monkeypatch.setattr(exporting, "load", lambda source, size: pictures())
    return lambda outcomes: monkeypatch.setattr(Drawn, "outcomes", outcomes)


SPEEDS = {("onnx", "float32"): 2.0, ("openvino", "float32"): 2.5, ("torch", "bfloat16"): 3.0, ("onnx", "int8"): 4.0}


@pytest.mark.parametrize(
    ("precision", "best", "tried"),
    [
        ("float32", ("openvino", "float32"), 3),
        ("bfloat16", ("torch", "bfloat16"), 5),
        ("int8", ("onnx", "int8"), 7),
    ],
)
def test_best_keeps_the_fastest_that_passed_at_the_precision_allowed(precision, best, tried, folder, tmp_path, drawn):
    drawn(SPEEDS)
    run_export(str(folder), to="best", out=tmp_path / "out", precision=precision, calibrate="somewhere")
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert (record["runtime"], record["precision"]) == best
    assert (tmp_path / "out" / ".".join(best)).read_bytes() == b"weights"
    assert record["settings"] == ({"INFERENCE_PRECISION_HINT": "f32"} if best[0] == "openvino" else {})
    assert len(record["forms"]) == tried
    for form in record["forms"]:
        key = form["runtime"], form["precision"]
        assert form["passed"] == (key in SPEEDS)
        if form["passed"]:
            assert form["speed"]["value"] == SPEEDS[key]
        else:
            assert form["refused"] == f"the {key[0]} file in {key[1]} differs"


def test_nothing_is_written_where_nothing_passed(folder, tmp_path, drawn):
    drawn({})
    with pytest.raises(
        AnyformerError, match=r"no form of model passed; the first .* because the onnx file in float32 d"
    ):
        run_export(str(folder), to="best", out=tmp_path / "out")
    with pytest.raises(AnyformerError, match=r"^the openvino file in float32 differs$"):
        run_export(str(folder), to="openvino", out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "onx"}, "there is no export to 'onx'; known: onnx, .*did you mean onnx"),
        ({"precision": "float16"}, "there is no precision 'float16'; known: float32, bfloat16, int8"),
        ({"precision": "bfloat16"}, "onnx is written in float32 or int8, not in bfloat16"),
        ({"precision": "int8"}, "int8 needs real pictures for its scales; name a data set with --calibrate"),
        ({"max_loss": float("nan")}, "the loss of accuracy allowed is 0 to 100 points, not nan"),
        ({"target": "vit_mikro"}, "no model is named 'vit_mikro'; did you mean vit_micro"),
    ],
)
def test_what_cannot_be_asked_for_is_named(options, message, folder, tmp_path):
    with pytest.raises(UsageError, match=message):
        run_export(**{"target": str(folder), "to": "onnx", "out": tmp_path / "out", **options})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_something_else_is_not_written_into(folder, tmp_path):
    with pytest.raises(UsageError, match="holds something else than an export; name a new folder"):
        run_export(str(folder), to="onnx", out=folder)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is a file; name a folder"):
        run_export(str(folder), to="onnx", out=tmp_path / "file")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (pictures(kind="multilabel"), "somewhere has no classes; int8 is judged by the classes it predicts"),
        (pictures(channels=4), "somewhere has pictures of 4 channels, and the model takes 3"),
    ],
)
def test_pictures_that_do_not_suit_are_named(data, message, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "load", lambda source, size: data)
    with pytest.raises(UsageError, match=message):
        run_export(str(folder), to="onnx", out=tmp_path / "out", precision="int8", calibrate="somewhere")


def test_images_that_are_no_squares_are_not_calibrated_with(tmp_path):
    model = create_model("vit_micro", num_classes=2, img_size=(8, 16), patch_size=4)
    model.save_pretrained(tmp_path / "wide")
    with pytest.raises(UsageError, match="data sets are read in squares, and this model takes images of 8 x 16"):
        run_export(str(tmp_path / "wide"), to="onnx", out=tmp_path / "out", precision="int8", calibrate="somewhere")


@pytest.mark.parametrize("seed", [0, 5])
def test_calibration_takes_training_pictures_and_judging_takes_the_others(seed, folder, monkeypatch):
    grey = pictures(channels=1)
    monkeypatch.setattr(exporting, "load", lambda source, size: grey)
    model = from_pretrained(folder)
    made = exporting._calibration("somewhere", model, (SIDE, SIDE), 1.0, seed)
    parts = split(grey.labels, seed)
    colour = normalize(grey.images.expand(-1, 3, -1, -1), model.data_config)
    held_out = torch.cat([parts.validation, parts.test])
    assert torch.equal(made.held_out, colour[held_out])
    assert made.labels is not None
    assert torch.equal(made.labels, grey.labels[held_out])
    assert len(made.images) == len(parts.train)
    assert {image.numpy().tobytes() for image in made.images} == {
        image.numpy().tobytes() for image in colour[parts.train]
    }
    model.data_config["classes"] = ["other", "names"]
    assert exporting._calibration("somewhere", model, (SIDE, SIDE), 1.0, seed).labels is None


def test_the_folder_of_a_fit_is_calibrated_by_its_own_division(folder, tmp_path, monkeypatch, drawn):
    fitted, asked = tmp_path / "fitted", []
    from_pretrained(folder).save_pretrained(fitted)
    (fitted / "report.json").write_text('{"split": {"seed": 5}}')
    real = exporting.divide
    monkeypatch.setattr(exporting, "divide", lambda *given: (asked.append(given[2]), real(*given))[1])
    drawn({("onnx", "int8"): 1.0})
    run_export(str(fitted), to="onnx", out=tmp_path / "out", precision="int8", calibrate="somewhere")
    assert asked == [5]
    assert json.loads((tmp_path / "out" / "export.json").read_text())["split_seed"] == 5
    (fitted / "report.json").write_text('{"split": null}')
    with pytest.raises(AnyformerError, match=r"report\.json does not say how the pictures were divided"):
        run_export(str(fitted), to="onnx", out=tmp_path / "out")


@pytest.mark.parametrize("to", ["onnx", "openvino", "torch"])
def test_the_python_that_is_told_gives_the_models_scores(to, folder, tmp_path, quick, monkeypatch):
    run_export(str(folder), to=to, out=tmp_path / "out")
    use = json.loads((tmp_path / "out" / "export.json").read_text())["use"]
    monkeypatch.chdir(tmp_path / "out")
    images = torch.randn(3, 3, SIDE, SIDE)
    module = {"onnx": onnxruntime, "openvino": load_openvino(), "torch": torch}[to]
    given = images if to == "torch" else images.numpy()
    scores = torch.as_tensor(eval(use, {module.__name__: module, "images": given}))
    with torch.no_grad():
        assert torch.allclose(scores, from_pretrained(folder)(images), atol=1e-5)


def test_openvino_is_told_its_precision(folder, tmp_path, drawn):
    drawn({("openvino", "bfloat16"): 1.0})
    run_export(str(folder), to="openvino", out=tmp_path / "out", precision="bfloat16")
    record = json.loads((tmp_path / "out" / "export.json").read_text())
    assert record["settings"] == {"INFERENCE_PRECISION_HINT": "bf16"}
    assert record["environment"]["cores"] >= 1
