"""Models for other pictures: position tables and windows are resampled, filters spread, and everything else is kept."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import anyformer as af
from anyformer import core
from anyformer.core import store
from anyformer.verify import oracles

from .random_patterns import SMALL_MODELS


def noisy(name, **options):
    model = af.create_model(name, **{"num_classes": 5, **options}).double().eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


def equal_but(ours, theirs, *but):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    return ours.keys() == theirs.keys() and {k for k in ours if not torch.equal(ours[k], theirs[k])} <= set(but)


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_adapting_to_the_same_is_copying(name):
    model = noisy(name)
    again = af.adapt(model)
    assert again is not model
    assert again.spec == model.spec
    assert equal_but(again, model)
    assert {p.dtype for p in again.parameters()} == {torch.float64}


@pytest.mark.parametrize("name", SMALL_MODELS)
@pytest.mark.parametrize("size", [(16, 16), (48, 32), (64, 64)])
def test_another_size_runs_and_changes_position_tables_alone(name, size):
    model = noisy(name)
    other = af.adapt(model, img_size=size)
    tables = {key for key in model.state_dict() if key.endswith(("embed.positions", "position.table", "mixer.table"))}
    changed = [key for key, tensor in other.state_dict().items() if tensor.shape != model.state_dict()[key].shape]
    assert set(changed) <= tables
    assert equal_but(other, model, *tables) if not changed else True
    scores = other(torch.randn(2, 3, *size, dtype=torch.float64))
    assert scores.shape == (2, 5)
    assert scores.isfinite().all()
    assert other.options["img_size"] == list(size)
    assert other.data_config["size"] == list(size)
    assert not other.training


@pytest.mark.parametrize(
    ("old", "new"), [((32, 32), (64, 64)), ((64, 64), (32, 48)), ((32, 48), (48, 32)), ((64, 32), (32, 32))]
)
def test_positions_are_resampled_as_timm_does(old, new):
    oracles._timm()
    from timm.layers import resample_abs_pos_embed

    model = noisy("vit_micro", img_size=old).float()
    ours = af.adapt(model, img_size=new).state_dict()["embed.positions"]
    grid_old, grid_new = [side // 4 for side in old], [side // 4 for side in new]
    theirs = resample_abs_pos_embed(
        model.embed.positions.detach(), new_size=grid_new, old_size=grid_old, num_prefix_tokens=1
    )
    assert (ours - theirs).abs().max() <= 1e-6 * theirs.abs().max()
    assert torch.equal(ours[:, :1], model.embed.positions[:, :1])


def test_smooth_positions_stay_smooth():
    """A ramp over the picture stays a ramp on a finer grid: what resampling is for, whoever wrote it."""
    model = noisy("vit_micro")
    ramp = torch.arange(8.0, dtype=torch.float64)
    with torch.no_grad():
        model.embed.positions[:, 1:] = (ramp[:, None] * 3 + ramp[None, :]).reshape(1, 64, 1)
    fine = af.adapt(model, img_size=64).embed.positions[:, 1:].unflatten(1, (16, 16)).detach()
    inner = fine[0, 4:-4, 4:-4, 0]
    assert torch.allclose(inner.diff(dim=0), torch.full((7, 8), 1.5, dtype=torch.float64), atol=0.05)
    assert torch.allclose(inner.diff(dim=1), torch.full((8, 7), 0.5, dtype=torch.float64), atol=0.05)


def test_smaller_windows_take_their_bias_from_the_middle_of_the_table():
    model = noisy("swin_micro", img_size=32, patch_size=4)
    small = af.adapt(model, img_size=16)
    old, new = model.stages[1].blocks[0].mixer, small.stages[1].blocks[0].mixer
    assert (old.config.rows, new.config.rows) == (4, 2)
    expected = F.interpolate(
        old.table.detach().T.reshape(1, 6, 7, 7).float(), (3, 3), mode="bicubic", align_corners=False
    )
    assert torch.equal(new.table.detach(), expected.flatten(2)[0].T.double())
    assert torch.equal(new.table[4], old.table[24].float().double()), "no offset keeps its bias"
    assert equal_but(small.stages[0], model.stages[0])


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_grey_pictures_are_pictures_of_three_equal_channels(name):
    model = noisy(name)
    grey = af.adapt(model, in_chans=1)
    images = torch.randn(2, 1, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(grey(images), model(images.expand(-1, 3, -1, -1)), rtol=1e-9, atol=1e-9)
    assert grey.data_config["channels"] == 1
    assert len(grey.data_config["mean"]) == 1


@pytest.mark.parametrize("channels", [2, 4, 6])
def test_more_channels_keep_the_mean_response(channels):
    model = noisy("convnext_micro")
    other = af.adapt(model, in_chans=channels)
    weight = model.embed.weight.detach()
    expected = torch.stack([weight[:, i % 3] for i in range(channels)], dim=1) * (3 / channels)
    assert torch.equal(other.embed.weight.detach(), expected)
    if channels % 3 == 0:
        same = torch.randn(1, 1, 32, 32, dtype=torch.float64)
        with torch.no_grad():
            ours, theirs = other(same.expand(-1, channels, -1, -1)), model(same.expand(-1, 3, -1, -1))
        assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_another_head_starts_fresh_and_the_rest_is_kept(name):
    model = noisy(name)
    other = af.adapt(model, num_classes=9)
    assert other(torch.randn(1, 3, 32, 32, dtype=torch.float64)).shape == (1, 9)
    ours, theirs = other.state_dict(), model.state_dict()
    fresh = {key for key in ours if not torch.equal(ours[key], theirs[key])}
    assert fresh == {"head.linear.weight", "head.linear.bias"}
    headless = af.adapt(model, num_classes=0)
    assert headless.state_dict().keys() == theirs.keys() - {"head.linear.weight", "head.linear.bias"}
    assert af.adapt(headless, num_classes=5).state_dict().keys() == theirs.keys()


def test_changes_follow_one_another():
    model = noisy("vit_micro")
    model.reset_classifier(7)
    other = af.adapt(af.adapt(model, in_chans=1), img_size=16)
    assert (other.spec.head.num_classes, other.spec.embed.patch.channels, other.spec.embed.rows) == (7, 1, 4)
    assert equal_but(other.head, model.head)


def test_what_the_model_was_told_of_its_pictures_is_kept():
    model = noisy("vit_micro")
    model.data_config = {"mean": [0.1, 0.2, 0.3], "std": [1.0, 1.0, 1.0], "size": 32, "channels": 3, "classes": ["a"]}
    assert af.adapt(model, num_classes=3).data_config == model.data_config
    grey = af.adapt(model, in_chans=1, img_size=16).data_config
    assert grey["mean"] == [pytest.approx(0.2)]
    assert (grey["size"], grey["classes"]) == ([16, 16], ["a"])


def test_what_cannot_be_adapted_is_named():
    with pytest.raises(core.UsageError, match="a hybrid is not adapted: edit its pattern and build it again"):
        af.adapt(af.build_hybrid({"skeleton": "isotropic", "dim": 8, "layers": "attention(heads=2)"}), img_size=8)
    with pytest.raises(core.UsageError, match="vit_micro: there is no 'depth'"):
        af.adapt(noisy("vit_micro"), depth=3)
    model = noisy("vit_micro")
    edited = store._allocate(core.edit(model.spec, {"blocks.0.channel_mixer.hidden": 10}))
    edited.model_name, edited.options, edited.data_config = model.model_name, model.options, model.data_config
    with pytest.raises(core.UsageError, match=r"Linear\.weight cannot be adapted from shape \(10, 64\)"):
        af.adapt(edited)


def test_no_warning_stands_between():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        af.adapt(noisy("swin_micro"), img_size=24, in_chans=4)


def test_bias_tables_of_a_window_of_other_sides_are_resampled_even_where_the_shapes_agree():
    model = noisy("swin_micro", img_size=(8, 32))  # in the last stages, windows of 1 x 4 tokens
    turned = af.adapt(model, img_size=(32, 8))
    path, old = next(
        (p, m) for p, m in model.named_modules() if hasattr(m, "table") and m.config.rows != m.config.columns
    )
    new = turned.get_submodule(path)
    assert (new.config.rows, new.config.columns) == (old.config.columns, old.config.rows)
    assert new.table.shape == old.table.shape
    assert not torch.equal(new.table, old.table)
