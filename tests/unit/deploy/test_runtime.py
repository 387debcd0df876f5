"""The runtime's model says clearly what it cannot take."""

import os
import sys

import numpy as np
import pytest
import torch
from torch import nn

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.deploy.onnx import export_onnx
from anyformer.deploy.runtime import OnnxModel, available_cores


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
