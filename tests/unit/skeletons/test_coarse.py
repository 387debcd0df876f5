"""Small pyramids at coarse strides."""

import pytest
import torch

import anyformer as af
from anyformer.parts.embeds.convolutional_stem import halving_stem
from anyformer.parts.norms.batch_norm import BatchNorm

NAMES = ("convnext_micro", "edgenext_micro", "poolformer_micro")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("stride", "convolutional"), [(4, False), (8, True), (16, True)])
def test_the_stem_has_convolutions_and_the_head_a_batch_norm_where_patches_are_coarse(name, stride, convolutional):
    model = af.create_model(name, num_classes=3, in_chans=1, img_size=64, patch_size=stride)
    assert (model.embed.name == "convolutional_stem") == convolutional
    assert isinstance(model.head.norm, BatchNorm) == convolutional
    assert model.eval()(torch.zeros(2, 1, 64, 64)).shape == (2, 3)
    grid = model.embed(torch.zeros(1, 1, 64, 64))[0].shape[1:3]
    assert grid == (64 // stride, 64 // stride)


@pytest.mark.parametrize("name", NAMES)
def test_a_coarse_network_learns_through_every_parameter(name):
    torch.manual_seed(0)
    model = af.create_model(name, num_classes=3, in_chans=1, img_size=32, patch_size=8)
    model(torch.randn(4, 1, 32, 32)).square().sum().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []


@pytest.mark.parametrize("stride", [1, 3, 12])
def test_a_stride_that_is_no_power_of_two_is_refused(stride):
    with pytest.raises(af.UsageError, match="power of two"):
        halving_stem(1, stride)
