"""Visformer: what its file says beyond what every system must show."""

import pytest
import torch

import anyformer as af
from anyformer import core
from anyformer.core.binding import axis_table, slice_spec, slice_state
from anyformer.parts.norms.batch_norm import BatchNorm
from anyformer.passes.reparameterize import reparameterize
from anyformer.systems.vision.visformer import GroupedConvolutionMLP, pattern
from anyformer.verify.filling import fill, settle

OPTIONS = {"num_classes": 5, "img_size": 32}


def settled(**options):
    model = af.create_model("visformer_micro", **{**OPTIONS, **options}).double()
    fill(model)
    settle(model, torch.randn(2, 3, 32, 32, dtype=torch.float64))
    return model.requires_grad_(False)


def test_the_published_numbers():
    for name, width, heads, hidden in (("visformer_tiny", 192, 3, 16), ("visformer_small", 384, 6, 32)):
        spec = core.resolve(pattern(name))
        assert [stage.dim for stage in spec.stages] == [width // 2, width, 2 * width]
        assert [len(stage.blocks) for stage in spec.stages] == [7, 4, 4]
        assert [layer.kernel for layer in spec.embed.tokens.layers] == [7, 4]
        assert (spec.embed.tokens.hidden, spec.embed.position.rows) == (hidden, 28)
        assert all(block.mixer is None for block in spec.stages[0].blocks)
        assert {block.mixer.heads for stage in spec.stages[1:] for block in stage.blocks} == {heads}


def test_a_channel_of_every_group_or_a_whole_group_can_be_cut():
    """Against the same layer with zeros in what goes out of the channels that are cut."""
    part = core.build(GroupedConvolutionMLP.Config(dim=6, groups=4, hidden=12)).double().eval()
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter)
    x, context = torch.randn(2, 5, 4, 6, dtype=torch.float64), core.Context(layout=core.Layout(grid=(5, 4)))
    for axis, keep in (("width", torch.tensor([2, 0])), ("groups", torch.tensor([3, 0, 1]))):
        assert axis in axis_table(part.config).atoms()
        smaller = core.build(slice_spec(part.config, {axis: keep})).double()
        smaller.load_state_dict(slice_state(part.config, part.state_dict(), {axis: keep}))
        silent = torch.ones(4, 3, dtype=torch.float64)
        gone = [i for i in range(3 if axis == "width" else 4) if i not in keep]
        silent.select(1 if axis == "width" else 0, gone[0]).zero_()
        masked = core.build(part.config).double()
        masked.load_state_dict(part.state_dict())
        with torch.no_grad():
            masked.fc1.weight.mul_(silent.flatten()[:, None])
            masked.fc2.weight.mul_(silent.flatten())
        assert torch.allclose(smaller(x, context), masked(x, context), rtol=1e-10, atol=1e-12)


def test_norms_before_grouped_convolutions_fold():
    model, images = settled(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    deployed = reparameterize(model)
    assert all(block.norm2 is None for block in deployed.stages[0].blocks)
    assert all(isinstance(block.norm2, BatchNorm) for stage in deployed.stages[1:] for block in stage.blocks)
    assert all(layer.norm is None for layer in deployed.embed.tokens.layers)
    assert torch.allclose(deployed(images), model(images), rtol=1e-10)


def test_positions_of_every_stage_are_adapted_and_another_size_is_refused():
    model, wide = settled(), torch.randn(1, 3, 32, 64, dtype=torch.float64)
    with pytest.raises(core.UsageError, match=r"img_size"):
        model(wide)
    adapted = af.adapt(model, img_size=(32, 64), num_classes=3)
    assert adapted(wide).shape == (1, 3)
    tables = [adapted.embed.position.table, *(stage.down.position.table for stage in adapted.stages[1:])]
    assert [tuple(table.shape[:2]) for table in tables] == [(8, 16), (4, 8), (2, 4)]
    finer = af.adapt(model, patch_size=2)
    assert finer.embed.tokens.layers[1].weight.shape[2:] == (1, 1)
    assert finer(wide[..., :32]).isfinite().all()


@pytest.mark.parametrize("side", [32, 36, 40])
@pytest.mark.parametrize("patch", [1, 2, 4, 6, 8])
def test_positions_fit_the_grid_whatever_the_stride(side, patch):
    if patch > side // 8:
        return
    model = af.create_model("visformer_micro", num_classes=3, img_size=side, patch_size=patch).eval()
    assert model(torch.zeros(1, 3, side, side)).shape == (1, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"patch_size": 3}, "give an even one"), ({"img_size": 24, "patch_size": 8}, "give a smaller patch_size")],
)
def test_what_has_no_grid_is_refused(options, message):
    with pytest.raises(core.UsageError, match=message):
        pattern("visformer_tiny", **options)
