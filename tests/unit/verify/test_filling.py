import torch

import anyformer as af
from anyformer.verify.filling import fill, uniform

PINNED = [[0.8032094240188599, 0.5347295999526978], [0.5779813528060913, 0.012691617012023926]]


def test_numbers_depend_on_name_alone_and_are_the_same_on_every_machine():
    assert uniform("a", (2, 2)).tolist() == PINNED
    assert torch.equal(uniform("a", (4,)), uniform("a", (2, 2)).flatten())
    assert not torch.equal(uniform("a", (4,)), uniform("b", (4,)))


def test_filled_parameters_matter_and_are_numbers_of_float32():
    model = af.create_model("edgenext_micro").double()
    fill(model)
    state = dict(model.named_parameters())
    assert all(torch.equal(tensor.float().double(), tensor) for tensor in state.values())
    for name in (
        "stages.0.blocks.0.residual.gamma",
        "stages.1.blocks.1.mixer.attention.temperature",
        "head.norm.weight",
    ):
        assert 0.75 < state[name].min() < state[name].max() < 1.25
    assert 0 < state["head.linear.bias"].abs().max() < 0.25
    weight = state["head.linear.weight"]
    assert abs(weight.std().item() * weight.shape[1] ** 0.5 - 1) < 0.05


def test_activations_keep_their_size_through_a_deep_model():
    model = af.create_model("convnext_tiny", img_size=64).eval()
    fill(model)
    with torch.no_grad():
        features, _, _ = model.stages_of(uniform("images", (1, 3, 64, 64)))
    assert all(0.1 < feature.std() < 10 for feature in features)
