"""Training of systems with batch norms, whose other proofs are in evaluation mode: scores, gradients and moments."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import anyformer as af
from anyformer.core.store import key_map
from anyformer.verify.equal import relative_error
from anyformer.verify.filling import fill, uniform
from anyformer.verify.oracles import oracle_stages_and_scores


@pytest.mark.parametrize("name", ["convmixer_micro", "visformer_micro", "efficientformer_micro"])
def test_two_steps_of_training_are_those_of_the_reference(name, oracle):
    model = af.create_model(name, num_classes=5, img_size=32).double().train()
    fill(model)
    theirs = oracle(name, num_classes=5, img_size=(32, 32)).double().train()
    theirs.load_state_dict(af.dump_weights(model, format="timm"))
    with sdpa_kernel(SDPBackend.MATH):  # torch's fused attention keeps part of its sums in float32, even for float64
        for step in range(2):
            images = uniform(f"images {step}", (2, 3, 32, 32)).double()
            given, expected = model(images), oracle_stages_and_scores(theirs, images)[-1]
            assert relative_error(given, expected) < 1e-9
            given.square().sum().backward(), expected.square().sum().backward()
    gradients = key_map(model, "timm").dump({key: tensor.grad for key, tensor in model.named_parameters()})
    # What a batch norm takes away at once, a bias before it, has no gradient but rounding.
    largest = max(tensor.abs().max() for tensor in gradients.values())
    for key, tensor in theirs.named_parameters():
        assert (gradients[key] - tensor.grad).abs().max() < 1e-8 * largest, key
    moments = af.dump_weights(model, format="timm")
    for key, tensor in theirs.named_buffers():
        torch.testing.assert_close(moments[key], tensor, rtol=1e-9, atol=1e-12, msg=key)
