"""Every tensor of every model has axes of its shape; what cannot be cut says so."""

import pytest
import torch

import anyformer as af
from anyformer import core
from anyformer.core import registry
from anyformer.core.binding import axis_table, slice_spec

from .axes_models import DECODERS, example

CHANNELS = {
    *("dim", "hidden", "heads", "head_dim", "width", "rest", "channels", "num_classes"),
    *("groups", "key_dim", "value_dim"),  # which the unit tests of Visformer and EfficientFormer cut
}


@pytest.mark.parametrize("name", [*af.list_models(), *DECODERS])
def test_every_tensor_has_the_shape_that_its_axes_say(name: str) -> None:
    with torch.device("meta"):
        model = core.build(DECODERS[name]) if name in DECODERS else af.create_model(name)
    table = axis_table(model.spec)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == {key: table.shape(key) for key in tensors}


@pytest.mark.parametrize("system", [slug for slug, system in registry.systems().items() if system.field == "vision"])
def test_the_proofs_reach_every_axis_of_every_model(system: str) -> None:
    for name in registry.system(system).names:
        table = axis_table(core.resolve(registry.system(system).pattern(name)))
        assert {axis.rpartition(".")[2] for axis in table.atoms()} <= CHANNELS, name


@pytest.mark.parametrize(
    ("name", "axis", "reason"),
    [
        ("vit_micro", "embed.rows", "tokens, not channels"),
        ("convnext_micro", "stages.0.blocks.0.mixer.kernel", "places, not channels"),
        ("edgenext_micro", "stages.2.blocks.1.mixer.chunks", "a convolution of its own"),
        ("edgenext_micro", "stages.1.blocks.1.mixer.position.hidden", "depend on their number"),
    ],
)
def test_what_is_no_channel_is_not_cut(name: str, axis: str, reason: str) -> None:
    with pytest.raises(core.UsageError, match=reason):
        slice_spec(example(name)[0].spec, {axis: torch.tensor([0])})


def test_tables_that_are_resampled_are_not_cut() -> None:
    model, _ = example("swin_mini")
    with pytest.raises(core.UsageError, match="follows from other numbers"):
        slice_spec(model.spec, {"stages.0.blocks.0.mixer.row_offsets": torch.arange(3)})


def test_a_width_that_two_cascades_divide_differently_is_not_cut() -> None:
    model, raw = example("edgenext_micro")
    mixer = model.spec.stages[2].blocks[1].mixer
    other = mixer.replace(chunks=1, width=48, convolutions=mixer.convolutions[:1])
    spec = core.edit(model.spec, {"stages.2.blocks.0.mixer": core.config.reopen(other)})
    assert torch.isfinite(core.build(spec).double()(raw)).all()
    table = axis_table(spec)
    divided = {"stages.2.dim"} | {f"stages.2.blocks.{i}.mixer.{name}" for i in (0, 1) for name in ("width", "rest")}
    assert not divided & set(table.atoms())
    for axis in divided:
        with pytest.raises(core.UsageError, match="divides it in another way"):
            slice_spec(spec, {axis: torch.arange(16)})
