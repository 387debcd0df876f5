"""A graph is for every batch size, or it is none."""

import pytest
import torch

from anyformer.core.errors import AnyformerError
from anyformer.deploy.onnx import export_onnx
from anyformer.deploy.program import export_torch
from anyformer.deploy.trace import trace

from .small_nets import FrozenBatch, Unexportable, build, images


def test_a_graph_runs_batches_of_every_size():
    module = trace(build(), images(1), "").module()
    with torch.no_grad():
        for count in (1, 2, 7):
            assert (module(images(count)) - build()(images(count))).abs().max() <= 1e-6


@pytest.mark.parametrize(("export", "form"), [(export_onnx, "to ONNX"), (export_torch, "as a torch program")])
@pytest.mark.parametrize(
    ("kind", "why"), [(FrozenBatch, "fixes the size of the batch"), (Unexportable, "data-dependent")]
)
def test_a_model_that_freezes_its_batch_or_branches_is_refused_in_a_line(kind, why, export, form, tmp_path, capfd):
    with pytest.raises(AnyformerError, match=rf"^cannot export {kind.__name__} {form}: .*{why}") as caught:
        export(kind(), images(1), tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")  # torch would print the graph so far
