import pytest
import torch

import anyformer as af
from anyformer.verify.filling import fill, uniform
from anyformer.verify.sensitivity import movements, stages_and_scores


@pytest.mark.parametrize("name", ["vit_micro", "edgenext_micro"])
def test_replaying_gives_what_whole_passes_give(name):
    model = af.create_model(name, img_size=32, num_classes=7).double().eval()
    fill(model)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    images = uniform("images", (1, 3, 32, 32)).double()
    found = movements(model, images)

    with torch.no_grad():
        reference = stages_and_scores(model, images)
        assert set(found) == {key for key, _ in model.named_parameters()}
        for key, parameter in model.named_parameters():
            kept = parameter.clone()
            parameter.mul_(1.1)
            moved = zip(stages_and_scores(model, images), reference, strict=True)
            assert found[key] == max(((a - b).abs().max() / b.abs().max()).item() for a, b in moved)
            parameter.copy_(kept)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_only_the_parameters_asked_for():
    model = af.create_model("convnext_micro").eval()
    assert list(movements(model, torch.ones(1, 3, 32, 32), ["head.linear.bias"])) == ["head.linear.bias"]


def test_the_model_runs_again_after_an_error():
    model = af.create_model("convnext_micro").eval()
    calls = []

    def fail_later(*_):
        calls.append(1)
        if len(calls) > 3:
            raise RuntimeError("broken")

    handle = model.head.register_forward_hook(fail_later)
    with pytest.raises(RuntimeError, match="broken"):
        movements(model, torch.ones(1, 3, 32, 32))
    handle.remove()
    one, other = model(torch.ones(1, 3, 32, 32)), model(torch.zeros(1, 3, 32, 32))
    assert not torch.equal(one, other)
