"""Key maps are exact both ways, for every model and format, and say what does not fit."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import anyformer as af
from anyformer import core
from anyformer.core import keymap, registry, store
from anyformer.core.keymap import Join, KeyMap, Permute, Reshape, row

from .random_patterns import ALL_MODELS, SMALL_MODELS

FORMATS = [(name, format) for name in SMALL_MODELS for format in registry.system_of(name).keys]


def fresh(name, seed):
    torch.manual_seed(seed)
    model = af.create_model(name, num_classes=6)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    return model


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


@pytest.mark.parametrize(("name", "format"), FORMATS)
def test_what_is_dumped_is_loaded_to_the_bit(name, format):
    source, target = fresh(name, 1), fresh(name, 2)
    assert not same(source.state_dict(), target.state_dict())
    dumped = {key: tensor.clone() for key, tensor in af.dump_weights(source, format=format).items()}
    assert af.load_weights(target, dumped, format=format) is target
    assert same(source.state_dict(), target.state_dict())
    assert same(af.dump_weights(target, format=format), dumped)


@pytest.mark.parametrize(("name", "format"), [pair for pair in FORMATS if pair[0].endswith("micro")])
def test_no_tensor_is_left_out_or_mixed_up(name, format):
    """Every tensor of ours arrives in theirs: marking one of ours marks tensors of theirs that no other one marks."""
    model = fresh(name, 3)
    owner = {}
    for ours, tensor in model.state_dict().items():
        before = {key: t.clone() for key, t in af.dump_weights(model, format=format).items()}
        tensor.add_(1)
        changed = [key for key, t in af.dump_weights(model, format=format).items() if not torch.equal(t, before[key])]
        assert changed, ours
        for key in changed:
            assert owner.setdefault(key, ours) == ours
    buffers = {key for key in before if key not in owner}
    computed = ("relative_position_index", "attn_mask", "attention_bias_idxs")
    assert all(key.endswith(computed) for key in buffers)


@pytest.mark.parametrize("name", ALL_MODELS)
def test_every_size_has_the_formats_of_its_system(name):
    with torch.device("meta"):
        model = af.create_model(name)
    for format in registry.system_of(name).keys:
        dumped = af.dump_weights(model, format=format)
        made = store.key_map(model, format).load(dumped, model.state_dict(), store._computed(model))
        shapes = {key: tensor.shape for key, tensor in model.state_dict().items()}
        assert {key: made[key].shape for key in shapes} == shapes


def weights(name="convnext_micro", format="timm"):
    model = af.create_model(name)
    return model, dict(af.dump_weights(model, format=format))


def refused(model, tensors, format="timm"):
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(core.UsageError) as caught:
        af.load_weights(model, tensors, format=format)
    assert same(model.state_dict(), before), "a refused checkpoint must not leave a trace"
    return str(caught.value)


def test_missing_keys_are_named_five_at_most():
    model, tensors = weights()
    del tensors["head.fc.bias"]
    assert refused(model, tensors) == "the weights lack head.fc.bias"
    left_out = [key for key in tensors if key.startswith("stages.1.blocks.0.")]
    for key in left_out:
        del tensors[key]
    sentence = refused(model, tensors)
    assert sentence.startswith("the weights lack stages.1.blocks.0.")
    assert sentence.count("stages.1.blocks.0.") == 5
    assert sentence.endswith(f"and {len(left_out) + 1 - 5} more")


def test_missing_pieces_of_a_joined_tensor_are_named():
    model, tensors = weights("vit_micro", "official")
    key = "Transformer/encoderblock_2/MultiHeadDotProductAttention_1/{}/kernel"
    for gone, there in (("query", "key"), ("value", "query")):
        some = {name: tensor for name, tensor in tensors.items() if name != key.format(gone)}
        assert refused(model, some, "official") == f"the weights have {key.format(there)} but not {key.format(gone)}"


def test_keys_of_no_format_are_named_five_at_most():
    model, tensors = weights()
    extra = {f"extra.{i}": torch.zeros(1) for i in range(7)}
    sentence = refused(model, {**tensors, **extra})
    assert sentence == (
        "7 of 77 keys are not of this format: extra.0, extra.1, extra.2, extra.3, extra.4 and 2 more; name the right format"
    )


def test_another_depth_is_named():
    model, tensors = weights()
    deeper = {key.replace("stages.2.blocks.1", "stages.2.blocks.2"): tensor for key, tensor in tensors.items()}
    sentence = refused(model, {**tensors, **deeper})
    assert sentence.startswith("the model has no place for stages.2.blocks.2.")
    assert sentence.endswith("and 4 more; it has another depth or other parts")


def test_shapes_are_named():
    model, _ = weights()
    _, other = weights("convnext_mini")
    sentence = refused(model, {key: tensor for key, tensor in other.items() if "stages.2.blocks.3" not in key})
    assert sentence.startswith("the model has no place for stages.2.blocks.2.")
    tensors = dict(af.dump_weights(af.create_model("convnext_micro", num_classes=7), format="timm"))
    assert refused(model, tensors) == (
        "the weights do not fit the model: head.fc.weight is (7, 128) where (1000, 128) is needed, "
        "head.fc.bias is (7,) where (1000,) is needed"
    )
    model, tensors = weights("vit_micro", "official")
    tensors["head/kernel"] = torch.zeros(3, 3)
    assert refused(model, tensors, "official") == (
        "the weights do not fit the model: head/kernel is (3, 3) where (1000, 64) is needed"
    )


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_another_systems_format_is_refused(name):
    model = af.create_model(name)
    formats = registry.system_of(name).keys
    for mine in formats:
        tensors = af.dump_weights(model, format=mine)
        for other in formats:
            if formats[other] is not formats[mine]:  # where the authors' names are timm's there is one table
                assert "keys are not of this format" in refused(model, tensors, other)
    assert refused(model, {"nothing": torch.zeros(1)}).startswith("1 of 1 keys are not of this format: nothing")
    with pytest.raises(core.UsageError, match=f"{name} has no format 'tim'; known: timm, official; did you mean timm?"):
        af.load_weights(model, {}, format="tim")


def test_an_empty_checkpoint_lacks_everything():
    model, _ = weights()
    assert refused(model, {}).startswith("the weights lack stem.0.weight")


def test_a_hybrid_has_no_published_names():
    hybrid = af.build_hybrid({"skeleton": "isotropic", "dim": 8, "layers": "attention(heads=2)"})
    with pytest.raises(core.UsageError, match="a hybrid has no published names; use save_pretrained"):
        af.dump_weights(hybrid, format="timm")


def test_other_buffers_than_the_model_computes_are_refused():
    model, tensors = weights("swin_micro", "official")
    key = "layers.0.blocks.1.attn_mask"
    assert tensors[key].dtype == torch.float32
    sentence = refused(model, {**tensors, key: tensors[key] - 1}, "official")
    assert (
        sentence
        == "the weights hold another stages.0.blocks.1.mixer.mask than this model computes; its size or window differs"
    )
    without = {name: tensor for name, tensor in tensors.items() if not name.endswith(("attn_mask", "position_index"))}
    af.load_weights(model, without, format="official")  # their code drops them too before loading


@pytest.mark.parametrize(
    ("template", "key", "values"),
    [
        ("a.{i}.{p}", "a.3.weight", {"i": "3", "p": "weight"}),
        ("a.{i}.{p}", "a.3.bias", {"i": "3", "p": "bias"}),
        ("a.{i}.{p}", "a.3.gamma", None),
        ("a.{i}.{p}", "a.x.bias", None),
        ("a.{i}", "a.03", None),
        ("a.{i}", "a.0", {"i": "0"}),
        ("a.{i}", "a.³", None),
        ("a.{i}", "a.3.b", None),
        ("a.{i}", "b.a.3", None),
        ("a+{i}", "a+3", {"i": "3"}),
        ("a.{i}.{i}", "a.3.3", {"i": "3"}),
        ("a.{i}.{i}", "a.3.4", None),
        ("a.{i+1}", "a.1", {"i": "0"}),
        ("a.{i+1}", "a.0", None),
        ("a.{i-2}", "a.1", {"i": "3"}),
    ],
)
def test_holes_are_typed(template, key, values):
    assert keymap._match(template, key) == values
    if values is not None:
        assert keymap._fill(template, values) == key


def test_two_keys_for_one_tensor_are_refused():
    table = KeyMap((row("a.{i}", "x.{i}"), row("b.{i}", "x.{i}")))
    tensor = torch.zeros(2)
    with pytest.raises(core.UsageError, match=r"a\.0 and b\.0 are both x\.0; only one of them may be there"):
        table.load({"a.0": tensor, "b.0": tensor}, {"x.0": tensor})


shapes = st.lists(st.integers(1, 4), min_size=3, max_size=3).map(tuple)


@given(shapes, st.permutations(range(3)))
def test_permuting_is_undone(shape, order):
    theirs = torch.randn(shape)
    operation = Permute(tuple(order))
    (ours,) = operation.forward([theirs], [tuple(shape[d] for d in order)])
    assert torch.equal(ours, theirs.permute(order))
    (back,) = operation.backward([ours])
    assert torch.equal(back, theirs)
    assert back.is_contiguous()


@given(shapes, st.permutations(range(3)))
def test_permuting_and_flattening_is_undone(shape, order):
    theirs = torch.randn(shape)
    unflat = tuple(shape[d] for d in order)
    operation = Permute(tuple(order), unflat=unflat)
    (ours,) = operation.forward([theirs], [(unflat[0], unflat[1] * unflat[2])])
    assert torch.equal(ours, theirs.permute(order).flatten(1))
    assert torch.equal(operation.backward([ours])[0], theirs)


@given(shapes, st.integers(1, 4))
def test_joining_is_undone(shape, count):
    theirs = [torch.randn(shape) for _ in range(count)]
    turned = Join(Permute((2, 0, 1)), count=count)
    (ours,) = turned.forward(theirs, [(count * shape[2], shape[0], shape[1])])
    assert torch.equal(ours, torch.cat([t.permute(2, 0, 1) for t in theirs]))
    assert all(map(torch.equal, turned.backward([ours]), theirs))
    flat = Join(Reshape(shape), count=count)
    (ours,) = flat.forward(theirs, [(count * shape[0], shape[1] * shape[2])])
    assert all(map(torch.equal, flat.backward([ours]), theirs))
