"""PoolFormer: what its file says beyond what every system must show."""

import pytest
import torch

import anyformer as af
from anyformer import core
from anyformer.core.binding import axis_table, slice_spec, slice_state
from anyformer.systems.vision.metaformer import SIZES, SMALL, pattern
from anyformer.verify.filling import fill


def filled(name: str = "poolformer_micro", **options):
    torch.manual_seed(0)
    model = af.create_model(name, **{"num_classes": 10, "in_chans": 1, "img_size": 8, "patch_size": 1, **options})
    model = model.double().eval().requires_grad_(False)
    fill(model)
    return model


@pytest.mark.parametrize("stride", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("side", [24, 48, 72])
def test_the_stem_overlaps_and_gives_one_token_a_stride(stride, side):
    model = filled("poolformer_s12", patch_size=stride)
    assert model.embed.config.kernel > stride
    assert model.embed(torch.zeros(1, 1, side, side, dtype=torch.float64))[0].shape[1:3] == (side // stride,) * 2


def test_the_published_stem_has_filters_of_7_with_padding_2_and_down_parts_of_3():
    spec = core.resolve(pattern("poolformer_s12"))
    assert (spec.embed.kernel, spec.embed.stride, spec.embed.padding) == (7, 4, 2)
    assert [(stage.down.kernel, stage.down.stride) for stage in spec.stages[1:]] == [(3, 2)] * 3


@pytest.mark.parametrize("name", sorted(set(SIZES) - set(SMALL)))
def test_learned_scales_start_as_the_authors_start_them(name):
    first = pattern(name).stages[0].blocks[0]
    deep = sum(SIZES[name]["depths"]) > 24
    assert first.residual1.init == first.residual2.init == core.Init("constant", 1e-6 if deep else 1e-5)


def test_the_bias_before_a_pooling_is_inert():
    """Its constant is in the mean and in what is taken off: the authors' parameter, which nothing can be learnt by."""
    model, images = filled(), torch.randn(2, 1, 8, 8, dtype=torch.float64)
    before = model(images)
    for stage in model.stages:
        for block in stage.blocks:
            block.norm1.bias.normal_()
    assert torch.allclose(model(images), before, rtol=1e-10)
    model.stages[0].blocks[0].norm2.bias.normal_()
    assert not torch.allclose(model(images), before, rtol=1e-3)


def test_hidden_units_are_cut_by_their_axis():
    model, images = filled(), torch.randn(2, 1, 8, 8, dtype=torch.float64)
    axis = "stages.1.blocks.0.channel_mixer.hidden"
    keep = {axis: torch.randperm(256)[:100]}
    smaller = core.build(slice_spec(model.spec, keep)).double().eval()
    smaller.load_state_dict(slice_state(model.spec, model.state_dict(), keep))
    outgoing = model.stages[1].blocks[0].channel_mixer.fc2.weight
    outgoing[:, [unit for unit in range(256) if unit not in keep[axis]]] = 0
    assert torch.allclose(smaller(images), model(images), rtol=1e-10)


def test_widths_can_be_cut():
    """A width goes through every group norm of its stage, so a cut model is another function; it is a whole model."""
    model = filled()
    keep = {"stages.1.dim": torch.arange(0, 64, 2)}
    assert keep.keys() <= set(axis_table(model.spec).atoms()) & axis_table(model.spec).reduces
    smaller = core.build(slice_spec(model.spec, keep)).double().eval()
    smaller.load_state_dict(slice_state(model.spec, model.state_dict(), keep))
    assert torch.equal(smaller.stages[1].down.weight, model.stages[1].down.weight[::2])
    assert torch.equal(smaller.stages[2].down.weight, model.stages[2].down.weight[:, ::2])
    assert smaller(torch.zeros(1, 1, 8, 8, dtype=torch.float64)).isfinite().all()


def test_other_channels_and_strides_are_adapted():
    model = filled(in_chans=3, patch_size=4, img_size=32)
    grey = af.adapt(model, in_chans=1)
    image = torch.randn(1, 1, 32, 32, dtype=torch.float64)
    assert torch.allclose(grey(image), model(image.expand(1, 3, 32, 32)), rtol=1e-10)
    finer = af.adapt(model, patch_size=2)
    assert finer.embed.weight.shape[2:] == (3, 3)
    assert finer(torch.randn(1, 3, 32, 32, dtype=torch.float64)).isfinite().all()


def test_an_image_without_a_window_is_refused():
    with pytest.raises(core.UsageError, match="give a smaller patch_size"):
        filled(patch_size=4)(torch.zeros(1, 1, 2, 2, dtype=torch.float64))


def authors(images, model):
    """The end of the authors' network, from their names: a norm over grid and channels, a mean, a linear map."""
    theirs = af.dump_weights(model, format="official")
    features = model.stages_of(images)[0][-1].movedim(-1, 1)
    normal = torch.nn.functional.group_norm(features, 1, theirs["norm.weight"], theirs["norm.bias"], 1e-5)
    return torch.nn.functional.linear(normal.mean((2, 3)), theirs["head.weight"], theirs["head.bias"])


@pytest.mark.parametrize("format", ["official", "timm"])
def test_the_authors_scores_from_weights_of_either_format(format):
    plain, images = filled(), torch.randn(2, 1, 8, 8, dtype=torch.float64)
    model = af.create_model(
        "poolformer_micro", num_classes=10, in_chans=1, img_size=8, patch_size=1, norm_first=True
    ).double()
    af.load_weights(model.eval(), af.dump_weights(plain, format=format), format=format)
    scores = model(images)
    assert torch.allclose(scores, authors(images, plain), rtol=1e-12)
    assert not torch.allclose(scores, plain(images), rtol=1e-5)
    assert {name: t.shape for name, t in af.dump_weights(model, format="timm").items()} == {
        name: t.shape for name, t in af.dump_weights(plain, format="timm").items()
    }


def test_the_form_goes_with_a_saved_model(tmp_path):
    model = af.create_model("poolformer_micro", num_classes=3, norm_first=True).eval()
    model.save_pretrained(tmp_path)
    again, images = af.from_pretrained(tmp_path), torch.randn(1, 3, 32, 32)
    assert torch.equal(again(images), model(images))
    assert af.adapt(again, in_chans=1).norm is not None


@pytest.mark.parametrize("first", [True, False])
def test_a_model_is_not_adapted_to_the_other_form(first):
    model = af.create_model("poolformer_micro", norm_first=first)
    with pytest.raises(core.UsageError, match=r"adapting changes the structure: norm\.\w+ has no counterpart"):
        af.adapt(model, norm_first=not first)
