"""Predictions from the folder alone are those of the model, and bad input is one sentence."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.core.files import write_manifest
from anyformer.data import batches
from anyformer.data.decode import decode
from anyformer.fit import predict as predict_module
from anyformer.fit.predict import BATCH, Prediction, normalize, predict, softmax

CLASSES = ["cat", "dog", "wren"]
DATA = {"mean": [0.31, 0.5, 0.07], "std": [0.29, 0.1, 0.33], "size": [8, 8], "channels": 3, "classes": CLASSES}


WEIGHTS = np.random.default_rng(0).standard_normal((3 * 8 * 8, 3)).astype(np.float32) / 8


@pytest.fixture(scope="module")
def exported() -> bytes:
    """A linear model with a dynamic batch."""
    form = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [
            onnx.helper.make_node("Flatten", ["images"], ["rows"]),
            onnx.helper.make_node("MatMul", ["rows", "w"], ["logits"]),
        ],
        "linear",
        [onnx.helper.make_tensor_value_info("images", form, ["batch", 3, 8, 8])],
        [onnx.helper.make_tensor_value_info("logits", form, ["batch", 3])],
        [onnx.numpy_helper.from_array(WEIGHTS, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    return model.SerializeToString()


@pytest.fixture
def folder(exported, tmp_path):
    write_fit(tmp_path / "fit", exported, DATA)
    return tmp_path / "fit"


def write_fit(folder, exported, data):
    write_manifest(folder, {"config.json": json.dumps({"data_config": data}).encode(), "model.onnx": exported})


@pytest.fixture
def files(tmp_path):
    """More pictures than fit into a batch, of several sizes."""
    chance = np.random.default_rng(0)
    paths = []
    for index in range(BATCH + 3):
        pixels = chance.integers(0, 256, (8 + index % 5, 8 + index % 3, 3), dtype=np.uint8)
        paths.append(tmp_path / f"{index}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def test_predictions_are_the_models_in_order(folder, files):
    images = torch.from_numpy(np.stack([decode(path, 8, 3) for path in files]))
    scores = (batches.normalize(images, DATA).flatten(1) @ torch.from_numpy(WEIGHTS)).double().softmax(-1)
    found = predict(folder, files)
    assert [each.file for each in found] == [str(path) for path in files]
    assert [each.label for each in found] == [CLASSES[index] for index in scores.argmax(-1)]
    assert len({each.label for each in found}) > 1
    np.testing.assert_allclose([each.score for each in found], scores.amax(-1), rtol=1e-5)
    json.dumps([vars(each) for each in found])


def test_batches_are_bounded(folder, files, monkeypatch):
    sizes = []
    monkeypatch.setattr(
        predict_module, "normalize", lambda images, data: sizes.append(len(images)) or normalize(images, data)
    )
    assert len(predict(folder, [*files, *files])) == 2 * BATCH + 6
    assert sizes == [BATCH, BATCH, 6]


def test_no_file_gives_no_prediction_and_names_may_be_strings(folder, files):
    assert predict(folder, []) == []
    assert predict(str(folder), [str(files[0])]) == predict(folder, files[:1])
    assert isinstance(predict(folder, files[:1])[0], Prediction)


def test_normalising_gives_the_bits_of_training():
    levels = np.broadcast_to(np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16), (2, 3, 16, 16)).copy()
    chance = np.random.default_rng(0)
    for _ in range(50):
        data = {"mean": chance.random(3).tolist(), "std": chance.uniform(1 / 255, 0.5, 3).tolist()}
        ours, theirs = normalize(levels, data), batches.normalize(torch.from_numpy(levels), data).numpy()
        assert ours.dtype == np.float32
        assert (ours.view(np.uint32) == theirs.view(np.uint32)).all()


def test_scores_sum_to_one_however_large_the_logits():
    scores = softmax(np.array([[1e4, 1e4 - 1, -1e4], [0, 0, 0]], np.float32))
    np.testing.assert_allclose(scores.sum(-1), 1, rtol=1e-12)
    np.testing.assert_allclose(scores[0, 0], 1 / (1 + np.exp(-1)), rtol=1e-12)


def sentence(kind, folder, files) -> str:
    with pytest.raises(AnyformerError) as caught:
        predict(folder, files)
    assert caught.type is kind
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_bad_picture_is_named(folder, files, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not a picture")
    assert sentence(UsageError, folder, [*files, bad]).startswith(f"{bad} is not a readable")
    assert sentence(UsageError, folder, [tmp_path / "lost.png"]).startswith(f"{tmp_path / 'lost.png'} cannot be read")


def test_a_folder_that_is_no_fit_is_named(folder, files, exported, tmp_path):
    assert str(tmp_path / "lost") in sentence(AnyformerError, tmp_path / "lost", files)
    write_fit(tmp_path / "plain", exported, {"size": [8, 8], "channels": 3})
    assert "says nothing of mean, std, classes" in sentence(AnyformerError, tmp_path / "plain", files)
    write_fit(tmp_path / "none", exported, None)
    assert "config.json says nothing of" in sentence(AnyformerError, tmp_path / "none", files)
    write_fit(tmp_path / "other", exported, {**DATA, "classes": ["cat", "dog"]})
    assert "2 classes in config.json and 3 in its model" in sentence(AnyformerError, tmp_path / "other", files)
    (folder / "model.onnx").unlink()
    assert f"cannot read {folder / 'model.onnx'}" in sentence(AnyformerError, folder, files)


def test_a_damaged_model_is_named_and_not_run(folder, files):
    for name in ("model.onnx", "config.json"):
        content = bytearray((folder / name).read_bytes())
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)
        assert f"{folder / name} is damaged" in sentence(AnyformerError, folder, files)
        content[len(content) // 2] ^= 1
        (folder / name).write_bytes(content)


def test_prediction_does_without_torch(folder, files):
    """Torch would make the start several times longer. Only the package `core` itself is exempt here."""
    program = (
        "import sys, types, importlib.util as find\n"
        "sys.modules['torch'] = None\n"
        "core = types.ModuleType('anyformer.core')\n"
        "core.__path__ = list(find.find_spec('anyformer').submodule_search_locations)\n"
        "core.__path__[0] += '/core'\n"
        "sys.modules['anyformer.core'] = core\n"
        "from anyformer.fit.predict import predict\n"
        "print(predict(*sys.argv[1:2], sys.argv[2:])[0].label)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, folder, files[0]], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in CLASSES
