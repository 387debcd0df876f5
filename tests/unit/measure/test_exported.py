"""What was exported is measured as it is: in its own runtime and size, from files that are what was written."""

import json

import numpy as np
import pytest
import torch

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.core.files import write_manifest
from anyformer.core.store import create_model
from anyformer.deploy.onnx import export_onnx
from anyformer.measure import memory, run
from anyformer.measure.exported import RECORD, Exported, is_export
from anyformer.measure.memory import Peak
from anyformer.measure.run import compare, measure

SIDE = 8


def record(runtime="onnx", precision="float32", files=("model.onnx",), **more):
    return {
        "runtime": runtime,
        "precision": precision,
        "files": list(files),
        "input": {"shape": ["batch", 3, SIDE, SIDE]},
        **more,
    }


def written(folder, record, content=b"a model"):
    contents = dict.fromkeys(record.get("files", ()), content)
    write_manifest(folder, {**contents, RECORD: json.dumps(record).encode()})
    return folder


@pytest.fixture(scope="module")
def model():
    return create_model("vit_micro", num_classes=2, img_size=SIDE, patch_size=4).eval()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    """A real export, without what the command does beside."""
    place = tmp_path_factory.mktemp("exported")
    path = export_onnx(model, torch.zeros(1, 3, SIDE, SIDE), place / "made.onnx", unseen=2).path
    return written(place / "out", record(), path.read_bytes())


@pytest.fixture
def quick(monkeypatch):
    asked = []
    monkeypatch.setattr(run, "peak", lambda given: (asked.append(given), Peak(forward_mb=1.0))[1])
    monkeypatch.setattr(run, "matrix_rate", lambda: 1.0)
    return asked


def test_a_folder_is_measured_in_its_own_runtime(folder, quick):
    table = measure(folder, runtimes=("eager", "openvino"), precisions=("bfloat16",), batches=(1, 2), seconds=0.01)
    rows = [row for row in table.rows if not row.again]
    assert [(row.runtime, row.precision, row.batch, row.height, row.width) for row in rows] == [
        ("onnx", "float32", batch, SIDE, SIDE) for batch in (1, 2)
    ]
    for row in rows:
        assert row.median_ms > 0
        assert row.forward_mb == 1.0
        assert (row.params, row.macs, row.error, row.note) == (None, None, None, "")
    assert [(given["source"], given["training"]) for given in quick] == [(str(folder), False)] * 2


def test_it_takes_turns_with_the_model_that_it_was_made_from(folder, model, quick, tmp_path):
    model.save_pretrained(tmp_path / "saved")
    table = compare([tmp_path / "saved", folder], seconds=0.01)
    assert [(row.runtime, row.against) for row in table.rows if not row.again] == [
        (runtime, f"{tmp_path / 'saved'} eager float32") for runtime in ("eager", "onnx")
    ]


def test_the_form_gives_the_models_scores(folder, model):
    found = Exported.of(folder)
    example = found.images(2, (SIDE, SIDE))
    assert example.shape == (2, 3, SIDE, SIDE)
    assert torch.equal(example, found.images(2, None))
    with torch.no_grad():
        assert torch.allclose(found.form(1)(example), model(example), atol=1e-5)


@pytest.mark.parametrize(
    ("precision", "computed"), [("float32", "float32"), ("bfloat16", "bfloat16"), ("int8", "float32")]
)
def test_openvino_is_told_what_to_compute_in(precision, computed, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("anyformer.deploy.runtime.OpenvinoModel", lambda *given: made.append(given) or np.negative)
    files = ("model.bin", "model.xml")
    found = Exported.of(written(tmp_path, record("openvino", precision, files)))
    assert torch.equal(found.form(3)(torch.ones(2)), -torch.ones(2))
    assert made == [(tmp_path / "model.xml", 3, computed)]


def test_its_memory_is_measured_without_a_model(folder, monkeypatch):
    monkeypatch.setattr(memory, "growth", lambda call: float(call().shape[0]))
    monkeypatch.setattr(memory.torch, "set_num_threads", lambda count: None)
    found = memory.measured(str(folder), "onnx", "float32", 3, None, threads=1, training=False)
    assert found == Peak(forward_mb=3.0)


def test_another_size_is_refused(folder, quick):
    with pytest.raises(AnyformerError, match="was exported for images of 8 x 8; export it again for others"):
        measure(folder, sizes=[(16, 16)])
    with pytest.raises(UsageError, match="was exported for images of 8 x 8"):
        Exported.of(folder).images(1, (8, 16))


def test_a_torch_program_is_not_opened(tmp_path, monkeypatch):
    folder = written(tmp_path, record("torch", files=["model.pt2"]))
    with pytest.raises(
        UsageError, match=r"model\.pt2 is not opened here: reading a torch program can run code .*load\("
    ):
        measure(folder / "model.pt2")


def test_a_file_stands_for_the_folder_it_was_exported_into(folder, quick, tmp_path):
    assert measure(folder / "model.onnx", seconds=0.01).rows[0].name == str(folder)
    (tmp_path / "model.onnx").touch()
    with pytest.raises(UsageError, match=r"model\.onnx is a file; give the folder"):
        measure(tmp_path / "model.onnx")


@pytest.mark.parametrize(
    "content",
    [
        {},
        record(files=[]),
        record(files=["model.bin"]),
        {**record(), "input": {"shape": ["batch", 3]}},
        {**record(), "input": None},
        record("onyx"),
        record(files=["../model.onnx"]),
    ],
)
def test_a_record_that_is_none_is_named(content, tmp_path):
    with pytest.raises(AnyformerError, match=r"export\.json is no record of an export; export the model again"):
        Exported.of(written(tmp_path, content))


def test_damage_is_noticed(tmp_path):
    folder = written(tmp_path, record())
    (folder / "model.onnx").write_bytes(b"another")
    with pytest.raises(AnyformerError, match=r"model\.onnx is damaged"):
        Exported.of(folder)


def test_only_an_export_is_one(folder, tmp_path):
    assert is_export(folder)
    assert not is_export(tmp_path)
    assert not is_export("vit_micro")
