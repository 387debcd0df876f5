"""The runtime's model says clearly what it cannot take."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.deploy.onnx import export_onnx
from anyformer.deploy.runtime import OnnxModel, available, available_cores, runner

from .small_nets import build, images


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 3))
    return export_onnx(model, torch.zeros(1, 1, 8, 8), tmp_path_factory.mktemp("runtime") / "model.onnx").path


def test_rows_of_a_batch_do_not_depend_on_each_other(path):
    batch = np.random.default_rng(0).standard_normal((5, 1, 8, 8)).astype(np.float32)
    model = OnnxModel(path, threads=2)
    together, alone = model(batch), np.concatenate([model(image[None]) for image in batch])
    assert together.shape == (5, 3)
    assert np.abs(together - alone).max() <= 1e-6 * np.abs(alone).max()


@pytest.mark.parametrize(
    "batch",
    [
        np.zeros((1, 1, 8, 9), np.float32),
        np.zeros((1, 3, 8, 8), np.float32),
        np.zeros((1, 8, 8), np.float32),
        np.zeros((1, 1, 8, 8), np.uint8),
    ],
)
def test_images_of_another_form_are_refused(batch, path):
    with pytest.raises(UsageError, match=r"model\.onnx takes float32 images of size \(batch, 1, 8, 8\), not "):
        OnnxModel(path)(batch)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"there is no ONNX file .*lost\.onnx"):
        OnnxModel(tmp_path / "lost.onnx")


def test_a_truncated_file_is_refused_in_one_line(path, tmp_path):
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(AnyformerError, match=r"cannot load .*broken\.onnx") as caught:
        OnnxModel(broken)
    assert "\n" not in str(caught.value)


def test_a_missing_runtime_tells_how_to_install_it(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"anyformer\[fit\]"):
        OnnxModel(path)


def test_available_cores_counts_those_this_process_may_use():
    assert 1 <= available_cores() <= (os.cpu_count() or 1)


@pytest.mark.parametrize("runtime", ["eager", "onnx", "openvino"])
def test_a_runner_computes_what_the_model_does_and_stands_alone(runtime):
    if runtime not in available():
        pytest.skip(f"{runtime} is an extra")
    model = build().train()
    run = runner(model, runtime, images(1), threads=1)
    with torch.no_grad():
        expected = [model.eval()(images(count)) for count in (1, 5)]
        model.head.weight.zero_()
    before = torch.get_num_threads()
    for count, want in zip((1, 5), expected, strict=True):
        have = run(images(count))
        assert have.dtype == torch.float32
        assert not have.requires_grad
        assert (have - want).abs().max() <= 1e-5 * want.abs().max()
    assert torch.get_num_threads() == before
    kept = run(images(1))
    run(images(1, seed=5))
    assert torch.equal(kept, run(images(1)))  # the second call has not overwritten what the first gave


@pytest.mark.slow  # the C++ compiler takes half a minute
def test_a_compiled_runner_computes_what_the_model_does():
    model, run = build(), runner(build(), "compiled", images(1))
    for count in (1, 5):
        with torch.no_grad():
            assert (run(images(count)) - model(images(count))).abs().max() <= 1e-5


def test_threads_are_those_asked_for_only_inside_the_call():
    class Threads(nn.Module):
        def forward(self, images):
            return images.new_full((len(images), 1), torch.get_num_threads())

    before = torch.get_num_threads()
    assert runner(Threads(), "eager", images(1), threads=before + 1)(images(1)).item() == before + 1
    assert runner(Threads(), "eager", images(1))(images(1)).item() == before == torch.get_num_threads()


def test_bfloat16_is_computed_inside_alone():
    model, run = build(), runner(build(), "eager", images(1), precision="bfloat16")
    with torch.no_grad():
        error = (run(images(8)) - model(images(8))).abs().max().item()
    assert run(images(1)).dtype == torch.float32
    assert 1e-5 < error < 5e-2


@pytest.mark.parametrize(
    ("runtime", "precision", "message"),
    [
        ("opnvino", "float32", "there is no runtime 'opnvino'; known: eager, .*did you mean openvino"),
        ("eager", "float16", "a runner computes in float32 or bfloat16, not in 'float16'"),
        ("onnx", "bfloat16", "ONNX Runtime computes in no bfloat16 on a CPU"),
    ],
)
def test_what_no_runner_can_be_is_named(runtime, precision, message):
    with pytest.raises(UsageError, match=message):
        runner(build(), runtime, images(1), precision=precision)


@pytest.mark.parametrize(
    ("runtime", "module", "extra"),
    [("onnx", "onnxruntime", "fit"), ("onnx", "onnxscript", "fit"), ("openvino", "openvino", "openvino")],
)
def test_a_runtime_that_is_not_installed_is_named_with_its_extra(runtime, module, extra, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    assert runtime not in available()
    with pytest.raises(UsageError, match=rf"runtime {runtime}: {module} is not installed; .*anyformer\[{extra}\]"):
        runner(build(), runtime, images(1))


def test_without_a_compiler_or_headers_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr("sysconfig.get_paths", lambda: {"include": "nowhere"})
    monkeypatch.setattr("shutil.which", lambda name: name)
    with pytest.raises(UsageError, match="runtime compiled: Python's C headers are missing"):
        runner(build(), "compiled", images(1))
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setenv("CXX", "fantasy++")
    assert "compiled" not in available()
    with pytest.raises(UsageError, match=r"runtime compiled: no C\+\+ compiler fantasy\+\+ is found"):
        runner(build(), "compiled", images(1))


def test_what_torch_cannot_compile_is_told_in_a_line(monkeypatch):
    def compile(model, options):
        def fail(images):
            raise RuntimeError("no kernel for it\nand much advice")

        return fail

    monkeypatch.setattr("anyformer.deploy.runtime._obstacle", lambda runtime: "")
    monkeypatch.setattr(torch, "compile", compile)
    with pytest.raises(AnyformerError, match=r"^torch cannot compile ConvNet: no kernel for it$"):
        runner(build(), "compiled", images(1))


def test_importing_and_running_a_file_needs_no_torch(path):
    code = (
        "import sys; sys.modules['torch'] = None; import numpy as np; from anyformer.deploy.runtime import OnnxModel; "
        f"print(OnnxModel({str(path)!r})(np.zeros((2, 1, 8, 8), np.float32)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "(2, 3)", done.stderr
