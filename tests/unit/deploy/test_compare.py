"""The comparison sees every image, every batch size, and every kind of difference."""

import pytest
import torch
from torch import nn

from anyformer.core.errors import AnyformerError
from anyformer.core.store import create_model
from anyformer.deploy.compare import batches, compare, lowered, reference

from .small_nets import build, images


@pytest.mark.parametrize("count", [1, 12, 20, 21, 100])
def test_every_unseen_image_is_compared(count):
    seen = list(batches(images(count)))
    assert [len(batch) for batch in seen[:3]] == [1, 3, 8]
    assert torch.equal(torch.cat(seen)[:count], images(count))
    assert sum(map(len, seen)) == max(count, 12)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda logits: logits + 1e-3, "a form differs from the model by"),
        (lambda logits: logits * float("inf"), "a form differs from the model by"),
        (lambda logits: logits[:, :-1], "gives logits of shape"),
    ],
)
def test_what_differs_is_refused(wrong, message):
    model = build()
    with pytest.raises(AnyformerError, match=message):
        compare(model, lambda batch: wrong(model(batch)), images(20), 1e-5, "a form")


def test_the_largest_error_is_relative_to_the_largest_logit():
    model = build()
    with torch.no_grad():
        largest = model(images(20)).abs().max().item()
    assert compare(model, lambda batch: model(batch) + 1e-6, images(20), 1e-3, "") == pytest.approx(
        1e-6 / largest, rel=0.05
    )
    assert compare(model, model, images(20), 0.0, "") == 0.0


def test_a_lowered_model_is_a_reparameterized_copy_in_float32():
    model = create_model("edgenext_micro", num_classes=3, img_size=32).double().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made = lowered(model)
    assert not made.training
    assert model.training
    assert {tensor.dtype for tensor in made.parameters()} == {torch.float32}
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    norms = [len([m for m in each.modules() if isinstance(m, nn.BatchNorm2d)]) for each in (reference(model), made)]
    assert norms[1] <= norms[0]
    assert compare(reference(model), made, torch.randn(12, 3, 32, 32), 1e-5, "") > 0
