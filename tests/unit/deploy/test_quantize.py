"""int8 keeps what a trained network predicts, and is refused where it does not."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.deploy.onnx import check_file, export_onnx, on_tensors
from anyformer.deploy.quantize import Calibration, judge, quantize_onnx
from anyformer.deploy.runtime import OnnxModel

CLASSES = 4


def pictures(count, seed):
    """Noise with one bright quarter, whose place is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    images = torch.randn(count, 3, 8, 8, generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        image[:, 4 * (label // 2) :, 4 * (label % 2) :][:, :4, :4] += 0.8
    return images, labels


class Trained(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 16, 3, padding=1), nn.GELU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(64, CLASSES)
        )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Trained()
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for step in range(60):
            images, labels = pictures(64, step)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    folder = tmp_path_factory.mktemp("quantize")
    source = export_onnx(model.eval(), images[:1], folder / "model.onnx").path
    quantize_onnx(source, folder / "int8.onnx", pictures(64, 1000)[0])
    return model, source, folder / "int8.onnx"


def calibration(**changes):
    images, labels = pictures(200, 2000)
    return Calibration(**{"images": pictures(64, 1000)[0], "held_out": images, "labels": labels, **changes})


def test_accuracy_is_kept_and_told(trained):
    model, _, path = trained
    judged = judge(model, on_tensors(OnnxModel(path)), calibration(), "the form")
    assert judged.images == 200
    assert judged.accuracy_before > 0.9
    assert abs(judged.accuracy_after - judged.accuracy_before) <= 0.01
    assert 0.97 <= judged.agreement <= 1


def test_it_computes_in_int8_and_not_as_the_model_does(trained):
    import onnx

    _, source, path = trained
    kinds = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert onnx.TensorProto.INT8 in kinds
    batch = pictures(20, 3)[0].numpy()
    error = np.abs(OnnxModel(path)(batch) - OnnxModel(source)(batch)).max() / np.abs(OnnxModel(source)(batch)).max()
    assert 1e-4 < error < 0.1


def test_the_same_pictures_give_the_same_bytes_and_others_give_others(trained, tmp_path):
    _, source, path = trained
    quantize_onnx(source, tmp_path / "again.onnx", pictures(64, 1000)[0])
    assert (tmp_path / "again.onnx").read_bytes() == path.read_bytes()
    quantize_onnx(source, tmp_path / "other.onnx", pictures(64, 1001)[0])
    assert (tmp_path / "other.onnx").read_bytes() != path.read_bytes()
    check_file(tmp_path / "other.onnx", "the file")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["again.onnx", "other.onnx"]


def test_scales_of_other_pictures_lose_accuracy_and_are_refused(trained, tmp_path):
    model, source, _ = trained
    quantize_onnx(source, tmp_path / "wrong.onnx", pictures(64, 1000)[0] / 1000)  # everything saturates
    form = on_tensors(OnnxModel(tmp_path / "wrong.onnx"))
    with pytest.raises(AnyformerError, match=r"the form loses [\d.]+ points of accuracy on 200 .* the 1 allowed"):
        judge(model, form, calibration(), "the form")
    with pytest.raises(AnyformerError, match=r"loses [\d.]+ points of the model's predictions on 200"):
        judge(model, form, calibration(labels=None), "the form")
    judged = judge(model, form, calibration(max_loss=100.0), "the form")
    assert judged.accuracy_before - judged.accuracy_after > 0.01


def test_exactly_the_loss_allowed_is_kept():
    held_out = torch.arange(100.0)[:, None, None, None]
    labels = torch.zeros(100, dtype=torch.int64)

    def model(images):
        return torch.tensor([[1.0, 0.0]]).expand(len(images), 2)

    def form(images):  # wrong for one in a hundred
        return torch.where(images.flatten(1) == 7, torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]))

    given = {"images": held_out, "held_out": held_out, "labels": labels}
    assert judge(model, form, Calibration(**given, max_loss=1.0), "").accuracy_after == pytest.approx(0.99)
    with pytest.raises(AnyformerError, match="loses 1 points of accuracy"):
        judge(model, form, Calibration(**given, max_loss=0.9), "")


def test_what_cannot_be_quantized_is_told_in_a_line(trained, tmp_path, monkeypatch):
    _, source, _ = trained
    with pytest.raises(UsageError, match="int8 needs pictures to calibrate with"):
        quantize_onnx(source, tmp_path / "model.onnx", torch.zeros(0, 3, 8, 8))
    with pytest.raises(AnyformerError, match=r"ONNX Runtime cannot quantize model\.onnx: ") as caught:
        quantize_onnx(source, tmp_path / "model.onnx", torch.zeros(1, 3, 9, 8))
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"anyformer\[fit\]"):
        quantize_onnx(source, tmp_path / "model.onnx", torch.zeros(1, 3, 8, 8))
