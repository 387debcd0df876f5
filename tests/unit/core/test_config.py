"""Patterns become specs, and specs are edited, with every number where it belongs."""

import pytest
from hypothesis import given

from anyformer import core
from anyformer.core import config, registry, serial
from anyformer.parts.channel_mixers.mlp import MLP
from anyformer.parts.linear.linear import Linear
from anyformer.parts.norms.layer_norm import LayerNorm
from anyformer.parts.positions.rotary import Rotary
from anyformer.parts.residuals.residual import PlainResidual
from anyformer.parts.token_mixers.attention import Attention
from anyformer.parts.token_mixers.grouped_query_attention import GroupedQueryAttention
from anyformer.skeletons.blocks import PreNormBlock

from .random_patterns import ALL_MODELS, SMALL_MODELS, models


def block(**changes):
    norm, join = LayerNorm.Config(), PlainResidual.Config()
    slots = {"norm1": norm, "mixer": Attention.Config(heads=4), "residual1": join}
    slots |= {"norm2": norm, "channel_mixer": MLP.Config(), "residual2": join}
    return PreNormBlock.Config(**{"dim": 32, **slots, **changes})


def spec_of(name, **options):
    return core.resolve(registry.system_of(name).pattern(name, **options))


def test_resolving_writes_every_number_out():
    spec = core.resolve(block())
    assert spec.norm1 == LayerNorm.Config(dim=32)
    assert (spec.mixer.dim, spec.mixer.head_dim, spec.mixer.scale) == (32, 8, 8**-0.5)
    assert spec.mixer.qkv == Linear.Config(inputs=32, outputs=96)
    assert (spec.channel_mixer.hidden, spec.channel_mixer.fc2) == (128, Linear.Config(inputs=128, outputs=32))


def test_a_number_given_is_not_derived():
    spec = core.resolve(block(mixer=Attention.Config(heads=4, head_dim=5), channel_mixer=MLP.Config(hidden=7)))
    assert (spec.mixer.head_dim, spec.mixer.qkv.outputs, spec.mixer.proj.inputs) == (5, 60, 20)
    assert spec.channel_mixer.fc1 == Linear.Config(inputs=32, outputs=7)


@pytest.mark.parametrize(
    ("pattern", "sentence"),
    [
        (LayerNorm.Config(), "the root (layer_norm): dim is not given by what holds it"),
        (block(norm2=LayerNorm.Config(dim=16)), "norm2.dim is 16, but what holds it makes it 32"),
        (
            block(mixer=Attention.Config(heads=4, qkv=Linear.Config(outputs=90))),
            "mixer.qkv.outputs is 90, but mixer makes it 96",
        ),
        (
            block(mixer=Attention.Config(heads=0)),
            "mixer (attention): head_dim cannot be derived (integer division or modulo by zero); "
            "check the numbers beside it",
        ),
        (
            block(mixer=GroupedQueryAttention.Config(kv_heads=2, head_dim=5, position=Rotary.Config())),
            "mixer.position (rotary): head_dim is 5, but '2 half' is 4",
        ),
        (block(dim=None), "the root (pre_norm_block): dim is not given by what holds it"),
    ],
)
def test_what_does_not_go_together_is_named(pattern, sentence):
    with pytest.raises(core.UsageError) as caught:
        core.resolve(pattern)
    assert str(caught.value) == sentence


@pytest.mark.parametrize("size", [-1, 2**63, 2.0, True, "wide", pytest.param(10**5000, id="5000 digits")])
def test_a_size_is_a_number_of_things(size):
    with pytest.raises(core.UsageError, match=r"the size of axis 'hidden' is .*; give a whole number from 0 on"):
        core.resolve(MLP.Config(dim=4, hidden=size))


@given(models)
def test_a_spec_is_its_own_spec(pattern):
    spec = core.resolve(pattern)
    assert core.resolve(spec) == spec


@given(models)
def test_reopening_loses_nothing(pattern):
    spec = core.resolve(pattern)
    reopened = config.reopen(spec)
    assert core.resolve(reopened) == spec
    assert config.reopen(core.resolve(reopened)) == reopened


@pytest.mark.parametrize("name", ALL_MODELS)
def test_reopening_a_model_of_the_catalogue_loses_nothing(name):
    spec = spec_of(name)
    assert core.resolve(config.reopen(spec)) == spec
    assert core.edit(spec, {}) == spec


def test_reopening_says_no_more_than_it_must():
    pattern = config.reopen(core.resolve(block()))
    assert pattern.norm1 == LayerNorm.Config()
    assert (pattern.mixer.dim, pattern.mixer.qkv, pattern.channel_mixer.fc1) == (None, None, None)
    assert pattern.mixer.head_dim == 8, "what was derived is a number of its own"
    bare = config.reopen(core.resolve(block(mixer=Attention.Config(heads=4, qkv=Linear.Config(bias=False)))))
    assert bare.mixer.qkv == Linear.Config(bias=False)


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_sharing_work_between_equal_layers_changes_nothing(name):
    pattern = registry.system_of(name).pattern(name)
    apart = serial.from_data(serial.to_data(pattern))  # no object of this one stands in two places
    objects = [node for _, node in core.walk(apart)]
    assert len({id(node) for node in objects}) == len(objects)
    assert core.resolve(apart) == core.resolve(pattern)


def test_one_object_under_two_widths_becomes_two():
    norm = LayerNorm.Config()
    mixer = GroupedQueryAttention.Config(kv_heads=2)
    spec = core.resolve(block(mixer=mixer, norm1=norm, norm2=norm))
    assert spec.norm1 is spec.norm2
    wide = core.resolve(block(dim=64, mixer=mixer, norm1=norm, norm2=norm))
    assert (spec.mixer.head_dim, wide.mixer.head_dim) == (16, 32)
    assert (spec.norm1.dim, wide.norm1.dim) == (32, 64)


def test_equal_layers_are_resolved_once():
    layers = core.resolve(
        registry.part("isotropic").Config(
            dim=32, embed=registry.part("patch_embed").Config(patch=1), blocks=(block(),) * config.MAX_LAYERS
        )
    ).blocks
    assert len(layers) == config.MAX_LAYERS
    assert len({id(layer) for layer in layers}) == 1


@given(models)
def test_every_path_of_a_walk_leads_to_its_node(pattern):
    spec = core.resolve(pattern)
    for path, node in core.walk(spec):
        assert config.at(spec, path) is node


def test_paths_of_the_spec_are_paths_of_the_modules():
    spec = core.resolve(block())
    module = spec.build()
    assert {path for path, _ in module.named_modules()} == {path for path, _ in core.walk(spec)}
    assert all(module.get_submodule(path).config is node for path, node in core.walk(spec))


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("blocks.0.mixr", "there is no 'blocks.0.mixr' in this spec ('mixr' is unknown); did you mean mixer"),
        ("blocks.99.mixer", "there is no 'blocks.99.mixer' in this spec ('99' is not one of 0 to 3)"),
        ("blocks.²", "'²' is not one of 0 to 3"),
        ("blocks.-1", "'-1' is not one of 0 to 3"),
        ("dim.x", "there is no 'dim.x' in this spec ('x' is unknown)"),
        ("head.num_classes", "'head.num_classes' is 1000, not a part"),
        ("blocks", "not a part"),
    ],
)
def test_a_path_that_leads_nowhere_is_named(path, words):
    with pytest.raises(core.UsageError) as caught:
        config.at(spec_of("vit_micro"), path)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_editing_the_classes_is_asking_for_them(name):
    assert core.edit(spec_of(name), {"head.num_classes": 7}) == spec_of(name, num_classes=7)


def test_an_edit_reaches_all_that_follows_and_leaves_the_original():
    spec = spec_of("vit_tiny_patch16_224")
    wide = core.edit(spec, {"dim": 80, "blocks.1.channel_mixer.hidden": 10})
    assert (spec.dim, spec.blocks[1].channel_mixer.hidden) == (192, 768)
    assert (wide.embed.patch.dim, wide.norm.dim, wide.head.linear.inputs) == (80, 80, 80)
    assert wide.blocks[1].channel_mixer.fc1 == Linear.Config(inputs=80, outputs=10)
    assert wide.blocks[0].mixer.head_dim == 64, "a derived number is one of its own from then on"
    assert wide.blocks[0].mixer.qkv.outputs == 3 * 192


def test_an_edit_reaches_into_linear_slots():
    spec = spec_of("vit_tiny_patch16_224", img_size=32)
    bare = core.edit(spec, {"blocks.2.mixer.qkv.bias": False})
    assert bare.blocks[2].mixer.qkv == Linear.Config(inputs=192, outputs=576, bias=False)
    assert bare.blocks[2].mixer.build().qkv.bias is None
    whole = core.edit(bare, {"blocks.2.mixer.qkv": Linear.Config(init=core.ZEROS)})
    assert not whole.blocks[2].mixer.build().qkv.weight.any()
    assert core.edit(whole, {"blocks.2.mixer.qkv": None}) == spec


def test_an_edit_puts_another_part_into_a_slot():
    mixer = registry.part("depthwise_convolution").Config(kernel=3)
    spec = core.edit(spec_of("convnext_micro"), {"stages.1.blocks.0.mixer": mixer})
    assert spec.stages[1].blocks[0].mixer == mixer.replace(dim=64)


@pytest.mark.parametrize(
    "path", ["hed.num_classes", "blocks.9.mixer.heads", "norm.eps.digits", "blocks.0.mixer.qkv.rank"]
)
def test_an_edit_of_nothing_is_refused(path):
    with pytest.raises(core.UsageError, match=f"there is no '{path}' in this spec"):
        core.edit(spec_of("vit_micro"), {path: 1})


def test_an_edit_that_contradicts_is_refused():
    with pytest.raises(core.UsageError, match=r"blocks\.0\.norm1\.dim is 16, but blocks\.0 makes it 64"):
        core.edit(spec_of("vit_micro"), {"blocks.0.norm1.dim": 16})


def test_configurations_cannot_be_changed_in_place():
    with pytest.raises(AttributeError):
        spec_of("vit_micro").dim = 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm1": Attention.Config(heads=4)}, "norm1 must be a norm, but 'attention' is a token_mixer"),
        ({"mixer": MLP.Config()}, "mixer must be a token_mixer, but 'mlp' is a channel_mixer"),
        (
            {"mixer": Attention.Config(heads=4, qkv=LayerNorm.Config())},
            "mixer.qkv must be a linear, but 'layer_norm' is a",
        ),
    ],
)
def test_a_part_in_a_slot_it_is_not_made_for_is_refused_with_its_path(changes, message):
    with pytest.raises(core.UsageError, match=message):
        core.resolve(block(**changes))
