"""An export computes what the model computes, names no path, and is refused when it does not."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.deploy import onnx as deploy
from anyformer.deploy.onnx import export_onnx
from anyformer.deploy.runtime import OnnxModel


class ConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(8, 5)

    def forward(self, images):
        return self.head(self.drop(F.gelu(self.norm(self.conv(images))).mean((2, 3))))


class AttentionNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3 * 16, 24)
        self.norm = nn.LayerNorm(24)
        self.qkv = nn.Linear(24, 72)
        self.head = nn.Linear(24, 5)

    def forward(self, images):
        b, c, h, w = images.shape
        patches = images.reshape(b, c, h // 4, 4, w // 4, 4).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        x = self.embed(patches)
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 12)).permute(2, 0, 3, 1, 4)
        x = x + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(x.mean(1))


class ExportsAnother(nn.Module):
    """Computes something else while it is exported, as a wrong translation would."""

    def forward(self, images):
        return images.mean((2, 3)) * (1.0001 if torch.compiler.is_exporting() else 1.0)


class Unexportable(nn.Module):
    def forward(self, images):
        return torch.special.bessel_j0(images.flatten(1))


def images(count, seed=0):
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def build(kind):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind()


@pytest.fixture(scope="module", params=[ConvNet, AttentionNet])
def exported(request, tmp_path_factory):
    model = build(request.param)
    return model, export_onnx(model, images(1), tmp_path_factory.mktemp("first") / "model.onnx")


def test_the_file_computes_what_the_model_does_for_any_batch_size(exported):
    model, report = exported
    assert report.checked == 20
    assert 0 < report.max_error <= 1e-5  # exactly 0 would mean the model was compared with itself
    session = OnnxModel(report.path, threads=1)
    for count in (1, 2, 5, 16):
        batch = images(count, seed=count)
        with torch.no_grad():
            expected = model.eval()(batch).numpy()
        actual = session(batch.numpy())
        assert actual.dtype == np.float32
        assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_second_export_writes_the_same_bytes(exported, tmp_path):
    model, report = exported
    export_onnx(model, images(4, seed=7), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == report.path.read_bytes()


def test_another_process_writes_the_same_bytes(tmp_path):
    script = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_onnx as t; "
        f"t.export_onnx(t.build(t.AttentionNet), t.images(1), {str(tmp_path / 'other.onnx')!r})"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "123", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""  # nothing that the exporter says reaches the user
    export_onnx(build(AttentionNet), images(1), tmp_path / "here.onnx")
    assert (tmp_path / "other.onnx").read_bytes() == (tmp_path / "here.onnx").read_bytes()


def test_the_file_stands_alone_and_names_no_path_of_this_machine(exported):
    import onnx

    _, report = exported
    assert [file.name for file in report.path.parent.iterdir()] == ["model.onnx"]
    content = report.path.read_bytes()
    for secret in (b".py", b"File ", Path(__file__).parent.name.encode() + b"/", b"forward"):
        assert secret not in content
    proto = onnx.load(report.path)
    assert [entry.version for entry in proto.opset_import if not entry.domain] == [report.opset]
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_the_model_and_the_log_level_are_left_as_they_were(tmp_path):
    model = build(ConvNet).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    logging.disable(logging.INFO)
    try:
        export_onnx(model, images(1), tmp_path / "model.onnx")
        assert logging.root.manager.disable == logging.INFO
    finally:
        logging.disable(logging.NOTSET)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_given_images_are_compared_in_batches_of_one_three_and_eight(tmp_path, monkeypatch):
    seen = []
    genuine = OnnxModel.__call__
    monkeypatch.setattr(OnnxModel, "__call__", lambda self, batch: seen.append(batch) or genuine(self, batch))
    given = images(2, seed=3)
    report = export_onnx(build(ConvNet), images(1), tmp_path / "model.onnx", unseen=given)
    assert report.checked == 2
    assert [len(batch) for batch in seen] == [1, 3, 8]
    assert np.array_equal(np.unique(np.concatenate(seen), axis=0), np.unique(given.numpy(), axis=0))


def test_an_export_that_computes_something_else_is_refused_by_how_much(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_text("the export before")
    with pytest.raises(AnyformerError, match=r"ExportsAnother differs from the model by 1\.0e-04 .* more than 1e-05"):
        export_onnx(ExportsAnother(), images(1), path)
    assert [file.name for file in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_text() == "the export before"
    assert export_onnx(ExportsAnother(), images(1), path, tolerance=1e-3).max_error > 9e-5


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda logits: logits * (1 + 2e-5), "differs from the model by 2.0e-05"),
        (lambda logits: logits * np.float32("nan"), "differs from the model by nan"),
        (lambda logits: logits[:, :-1], "logits of shape"),
    ],
)
def test_a_runtime_that_computes_something_else_is_refused(wrong, message, tmp_path, monkeypatch):
    genuine = OnnxModel.__call__
    monkeypatch.setattr(OnnxModel, "__call__", lambda self, batch: wrong(genuine(self, batch)))
    with pytest.raises(AnyformerError, match=message):
        export_onnx(build(ConvNet), images(1), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("gap", "refused"), [(1.5e-5, True), (0.5e-5, False)])
def test_another_class_is_refused_unless_the_two_are_as_good_as_tied(gap, refused, tmp_path, monkeypatch):
    class Tie(nn.Module):
        def forward(self, images):
            first = images.new_ones(images.shape[0], 1) + 0 * images.mean((1, 2, 3))[:, None]
            return torch.cat([first, first - gap], 1)

    def swap(self, batch):
        return np.tile(np.array([1 - 0.9e-5, 1 - gap + 0.9e-5], np.float32), (len(batch), 1))

    monkeypatch.setattr(OnnxModel, "__call__", swap)
    if refused:
        with pytest.raises(AnyformerError, match="predicts another class"):
            export_onnx(Tie(), images(1), tmp_path / "model.onnx")
    else:
        assert export_onnx(Tie(), images(1), tmp_path / "model.onnx").max_error <= 1e-5


def test_what_cannot_be_exported_is_refused_with_the_name_of_the_operator(tmp_path):
    with pytest.raises(AnyformerError, match=r"cannot export Unexportable to ONNX: .*bessel_j0") as caught:
        export_onnx(Unexportable(), images(1), tmp_path / "model.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_weights_beyond_one_file_are_refused_at_once(tmp_path):
    with pytest.raises(AnyformerError, match=r"Linear has 2\.4 GB of weights; one ONNX file holds 2 GB"):
        export_onnx(nn.Linear(20_000, 30_000, device="meta"), images(1), tmp_path / "model.onnx")


def test_an_ill_formed_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(deploy, "_translate", lambda model, image: b"not a model")
    with pytest.raises(AnyformerError, match="not well formed"):
        export_onnx(build(ConvNet), images(1), tmp_path / "model.onnx")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(AnyformerError, match=r"cannot write .*nowhere.*: No such file or directory"):
        export_onnx(build(ConvNet), images(1), tmp_path / "nowhere" / "model.onnx")


@pytest.mark.parametrize("example", [torch.zeros(3, 8, 8), torch.zeros(1, 3, 8, 8).double(), torch.zeros(0, 3, 8, 8)])
def test_an_example_of_the_wrong_form_is_named(example, tmp_path):
    with pytest.raises(UsageError, match="the example must be float32 images"):
        export_onnx(build(ConvNet), example, tmp_path / "model.onnx")


@pytest.mark.parametrize("unseen", [0, torch.zeros(4, 3, 9, 9), torch.zeros(4, 3, 8, 8).double()])
def test_unseen_images_of_the_wrong_form_are_named(unseen, tmp_path):
    with pytest.raises(UsageError, match="the unseen images must be"):
        export_onnx(build(ConvNet), images(1), tmp_path / "model.onnx", unseen=unseen)


def test_a_missing_exporter_tells_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match=r"anyformer\[fit\]"):
        export_onnx(build(ConvNet), images(1), tmp_path / "model.onnx")
