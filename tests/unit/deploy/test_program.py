"""A torch program computes what the model does, and holds neither paths nor anybody's pictures."""

import io
import zipfile

import pytest
import torch

from anyformer.core.errors import AnyformerError
from anyformer.deploy.program import export_torch

from .small_nets import ExportsAnother, Unexportable, build, images


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return export_torch(build(), images(1), tmp_path_factory.mktemp("program") / "model.pt2")


def test_read_again_the_file_computes_what_the_model_does_for_any_batch_size(exported):
    assert exported.checked == 20
    assert 0 <= exported.max_error <= 1e-5
    loaded, model = torch.export.load(exported.path).module(), build()
    for count in (1, 2, 5):
        batch = images(count, seed=count)
        with torch.no_grad():
            expected = model(batch)
            assert (loaded(batch) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_second_export_writes_the_same_bytes_whatever_the_example(exported, tmp_path):
    export_torch(build(), images(4, seed=7), tmp_path / "again.pt2")
    assert (tmp_path / "again.pt2").read_bytes() == exported.path.read_bytes()


def test_loaded_and_saved_again_it_holds_the_same(exported):
    saved = io.BytesIO()
    torch.export.save(torch.export.load(exported.path), saved)
    ours, theirs = zipfile.ZipFile(exported.path), zipfile.ZipFile(saved)
    assert [info.filename.partition("/")[2] for info in ours.infolist()] == [
        info.filename.partition("/")[2] for info in theirs.infolist()
    ]
    weights = [name for name in ours.namelist() if "/data/weights/" in name and not name.endswith(".json")]
    assert len(weights) > 0
    for name in weights:
        assert ours.read(name) == theirs.read(f"{theirs.namelist()[0].partition('/')[0]}/{name.partition('/')[2]}")


def test_no_path_of_this_machine_and_no_picture_is_in_it(exported):
    content = exported.path.read_bytes()
    for secret in (b".py", b"File ", images(1).numpy().tobytes()):
        assert secret not in content


def test_bfloat16_weights_take_half_the_bytes_and_give_float32(exported, tmp_path):
    report = export_torch(build(), images(1), tmp_path / "half.pt2", precision="bfloat16")
    assert 1e-5 < report.max_error <= 5e-2
    program = torch.export.load(tmp_path / "half.pt2")
    floating = [tensor for tensor in program.state_dict.values() if tensor.is_floating_point()]
    assert {tensor.dtype for tensor in floating} == {torch.bfloat16}
    assert program.module()(images(2)).dtype == torch.float32


def test_another_result_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(AnyformerError, match="the torch program of ExportsAnother in float32 differs"):
        export_torch(ExportsAnother(), images(1), tmp_path / "model.pt2")
    with pytest.raises(AnyformerError, match="cannot export Unexportable as a torch program: ") as caught:
        export_torch(Unexportable(), images(1), tmp_path / "model.pt2")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
