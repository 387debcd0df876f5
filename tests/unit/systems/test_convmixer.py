"""ConvMixer: what its file says beyond what every system must show."""

import pytest
import torch

import anyformer as af
from anyformer import core
from anyformer.parts.norms.batch_norm import BatchNorm
from anyformer.parts.residuals.residual import ScaledResidual
from anyformer.passes.reparameterize import reparameterize
from anyformer.systems.vision.convmixer import SIZES, SMALL, pattern
from anyformer.verify.filling import fill, settle


@pytest.mark.parametrize("name", sorted(set(SIZES) - set(SMALL)))
def test_the_published_numbers_are_in_the_name(name):
    spec = core.resolve(pattern(name))
    _, dim, depth, *rest = name.split("_")
    block = spec.blocks[0]
    assert (spec.dim, len(spec.blocks)) == (int(dim), int(depth))
    assert spec.embed.patch.patch == (14 if "p14" in rest else 7)
    assert block.mixer.kernel == (7 if dim == "768" else 9)
    assert block.activation == spec.embed.activation == ("relu" if dim == "768" else "gelu")


def test_one_of_two_norms_of_a_layer_folds():
    model = af.create_model("convmixer_micro", num_classes=5, drop_path_rate=0.2).double()
    fill(model)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    settle(model, images)
    deployed = reparameterize(model)
    for block in deployed.blocks:
        assert (block.norm1, block.config.norm1) == (None, None)
        assert isinstance(block.residual, ScaledResidual)
        assert isinstance(block.norm2, BatchNorm)
    assert deployed.blocks[-1].residual.config.drop_path == pytest.approx(0.2)
    assert torch.allclose(deployed(images), model(images), rtol=1e-10)


def test_a_layer_whose_residual_has_a_scale_of_its_own_is_left_as_it_is():
    whole = pattern("convmixer_micro", num_classes=5)
    scaled = whole.blocks[0].replace(residual=ScaledResidual.Config(init=core.Init("constant", 0.5)))
    model = core.build(whole.replace(blocks=(scaled,))).double()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    settle(model, images)
    deployed = reparameterize(model)
    assert isinstance(deployed.blocks[0].norm1, BatchNorm)
    assert torch.allclose(deployed(images), model(images), rtol=1e-10)


def test_coarse_patches_of_small_sizes_are_convolutions():
    assert af.create_model("convmixer_micro", patch_size=8).embed.name == "convolutional_stem"
    assert af.create_model("convmixer_micro", patch_size=4).embed.name == "activated_patch_embed"
