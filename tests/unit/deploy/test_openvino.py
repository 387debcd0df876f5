"""OpenVINO's files compute what the model does, stand alone, and never report to anybody."""

import os
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.deploy import openvino as deploy
from anyformer.deploy.onnx import export_onnx
from anyformer.deploy.openvino import export_openvino
from anyformer.deploy.runtime import OpenvinoModel

from .small_nets import ConvNet, build, images, runs_here

# Looked for and not imported: importing it as it is would report to its maker.
pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="OpenVINO is an extra")


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    return export_onnx(build(), images(1), tmp_path_factory.mktemp("onnx") / "model.onnx").path


@pytest.fixture(scope="module")
def exported(onnx, tmp_path_factory):
    return export_openvino(build(), images(1), tmp_path_factory.mktemp("openvino") / "model.xml", onnx=onnx)


def test_the_files_compute_what_the_model_does_for_any_batch_size(exported):
    assert exported.checked == 20
    assert 0 < exported.max_error <= 1e-5
    assert sorted(file.name for file in exported.path.parent.iterdir()) == ["model.bin", "model.xml"]
    form, model = OpenvinoModel(exported.path, threads=1), build()
    for count in (1, 2, 5):
        batch = images(count, seed=count)
        with torch.no_grad():
            expected = model(batch).numpy()
        assert np.abs(form(batch.numpy()) - expected).max() <= 1e-5 * np.abs(expected).max()


def test_weights_keep_their_32_bits(exported):
    weights = build().head.weight.detach().numpy().tobytes()
    assert weights in exported.path.with_suffix(".bin").read_bytes()


def test_a_second_export_writes_the_same_bytes_without_an_onnx_file_given(exported, tmp_path):
    export_openvino(build(), images(4, seed=7), tmp_path / "model.xml")
    for name in ("model.xml", "model.bin"):
        assert (tmp_path / name).read_bytes() == (exported.path.parent / name).read_bytes()


def test_loaded_and_saved_again_the_files_are_the_same(exported, tmp_path):
    from anyformer.deploy.runtime import load_openvino

    openvino = load_openvino()
    openvino.save_model(openvino.Core().read_model(exported.path), tmp_path / "model.xml", compress_to_fp16=False)
    for name in ("model.xml", "model.bin"):
        assert (tmp_path / name).read_bytes() == (exported.path.parent / name).read_bytes()


def test_no_path_of_this_machine_is_named(exported):
    text = exported.path.read_bytes() + exported.path.with_suffix(".bin").read_bytes()
    for secret in (b".py", b".onnx", b"tmp", str(exported.path.parent.parent).encode()):
        assert secret not in text


def test_bfloat16_differs_more_and_is_allowed_more(onnx, tmp_path):
    if not runs_here("openvino", "bfloat16"):
        pytest.skip("no bfloat16 in this processor")
    report = export_openvino(build(), images(1), tmp_path / "model.xml", onnx=onnx, precision="bfloat16")
    assert 1e-5 < report.max_error <= 5e-2
    with pytest.raises(AnyformerError, match=r"in bfloat16 differs from the model by .*; it was not kept"):
        export_openvino(build(), images(1), tmp_path / "other.xml", onnx=onnx, precision="bfloat16", tolerance=1e-6)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.bin", "model.xml"]


def test_a_processor_without_bfloat16_is_told(exported, monkeypatch):
    class Core:
        def get_property(self, *names):
            return ["FP32"]

    monkeypatch.setattr("anyformer.deploy.runtime.load_openvino", lambda: type("Module", (), {"Core": Core}))
    with pytest.raises(UsageError, match="this processor has no bfloat16 in OpenVINO; choose float32"):
        OpenvinoModel(exported.path, precision="bfloat16")


def test_another_model_is_refused_and_leaves_what_was_there(onnx, tmp_path):
    torch.manual_seed(1)
    (tmp_path / "model.xml").write_text("the export before")
    with pytest.raises(AnyformerError, match="the OpenVINO file of ConvNet in float32 differs from the model by"):
        export_openvino(ConvNet(), images(1), tmp_path / "model.xml", onnx=onnx)
    assert [file.name for file in tmp_path.iterdir()] == ["model.xml"]
    assert (tmp_path / "model.xml").read_text() == "the export before"


def test_what_is_no_model_is_refused_in_one_line(tmp_path):
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    (tmp_path / "broken.xml").write_bytes(b"not a model")
    with pytest.raises(AnyformerError, match=r"OpenVINO cannot convert broken\.onnx: ") as caught:
        deploy.convert(tmp_path / "broken.onnx", tmp_path / "model.xml")
    assert "\n" not in str(caught.value)
    with pytest.raises(AnyformerError, match=r"OpenVINO cannot load .*broken\.xml: ") as caught:
        OpenvinoModel(tmp_path / "broken.xml")
    assert "\n" not in str(caught.value)


def test_a_missing_file_or_folder_is_named(tmp_path, onnx):
    with pytest.raises(UsageError, match=r"there is no OpenVINO or ONNX file .*lost\.xml"):
        OpenvinoModel(tmp_path / "lost.xml")
    with pytest.raises(AnyformerError, match=r"cannot write .*nowhere.*: No such file or directory"):
        export_openvino(build(), images(1), tmp_path / "nowhere" / "model.xml", onnx=onnx)


def test_images_of_another_form_are_refused(exported):
    with pytest.raises(UsageError, match=r"model\.xml takes float32 images of size \(batch, 3, 8, 8\), not "):
        OpenvinoModel(exported.path)(np.zeros((1, 3, 8, 9), np.float32))


def test_a_missing_openvino_tells_how_to_install_it(exported, onnx, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(UsageError, match=r"anyformer\[openvino\]"):
        OpenvinoModel(exported.path)
    with pytest.raises(UsageError, match=r"anyformer\[openvino\]"):
        deploy.convert(onnx, tmp_path / "model.xml")


PROBE = """
import sys
seen = []
sys.addaudithook(lambda event, arguments: seen.append(event) if event.startswith("socket.") else None)
{importing}
import os, threading
print(seen, [name for _, _, names in os.walk(os.environ["HOME"]) for name in names])
"""


@pytest.mark.parametrize(
    ("importing", "quiet"),
    [("from anyformer.deploy.runtime import load_openvino; load_openvino().Core()", True), ("import openvino", False)],
)
def test_nothing_is_reported_and_nothing_is_left_at_home(importing, quiet, tmp_path):
    # No proxy and no network are needed to see it: the import alone writes an identity into the home folder.
    environment = {**os.environ, "HOME": str(tmp_path), "https_proxy": "http://127.0.0.1:9", "CI": ""}
    code = PROBE.format(importing=importing)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (done.stdout.strip() == "[] []") == quiet
