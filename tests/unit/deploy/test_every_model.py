"""Every small model of the catalogue exports for any batch size, twice to the same bytes, and survives a round trip."""

import pytest
import torch

from anyformer.core import registry
from anyformer.core.store import create_model, from_pretrained
from anyformer.deploy.forms import Writer
from anyformer.deploy.onnx import check_file, export_onnx
from anyformer.deploy.runtime import available
from anyformer.parts.norms.batch_norm import BatchNorm

SIDE = 32
QUICK = ("vit_micro",)


def small_models():
    """The smallest model of every system that takes images; the quick one is in the default run."""
    found = []
    for slug, system in registry.systems().items():
        if system.small and "size" in system.data_config(system.small[0]):
            name = system.small[0]
            found.append(pytest.param(name, id=slug, marks=[] if name in QUICK else pytest.mark.slow))
    return found


@pytest.mark.parametrize("name", small_models())
def test_a_model_exports_equal_repeatable_and_alone(name, tmp_path):
    import onnx

    model = create_model(name, num_classes=5, img_size=SIDE).eval()
    with torch.no_grad():  # batch norms with moments of their own, so that folding them shows
        for module in model.modules():
            if isinstance(module, BatchNorm):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    example = torch.randn(1, model.data_config["channels"], SIDE, SIDE)
    (tmp_path / "forms").mkdir()
    writer = Writer(model, example, tmp_path / "forms")
    for runtime in ("onnx", "openvino", "torch"):
        if runtime == "torch" or runtime in available():
            form = writer.write(runtime, "float32")  # compared on 20 unseen images, at batches of 1, 3 and 8
            assert form.max_error is not None
            assert form.max_error <= 1e-5

    first = writer.write("onnx", "float32").files[0]
    model.save_pretrained(tmp_path / "model")
    again = export_onnx(from_pretrained(tmp_path / "model"), example, tmp_path / "again.onnx").path
    assert again.read_bytes() == first.read_bytes()
    proto = onnx.load(first, load_external_data=False)
    assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in proto.graph.initializer)
    assert proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    saved = tmp_path / "saved.onnx"
    saved.write_bytes(proto.SerializeToString(deterministic=True))
    assert saved.read_bytes() == first.read_bytes()
    check_file(saved, "the file saved again")
    assert sorted(file.name for file in first.parent.iterdir()) == [first.name]
