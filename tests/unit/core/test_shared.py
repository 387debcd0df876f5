"""A module that is used twice is there once."""

import copy

import pytest
import torch

from anyformer import core
from anyformer.core import registry, serial, store
from anyformer.core.binding import axis_table
from anyformer.parts.heads.vocabulary import VocabularyHead
from anyformer.parts.norms.layer_norm import LayerNorm
from anyformer.parts.positions.rotary import Rotary
from anyformer.parts.token_mixers.grouped_query_attention import GroupedQueryAttention
from anyformer.skeletons.blocks import layer_block
from anyformer.skeletons.decoder import Decoder

WORDS = torch.tensor([[1, 5, 2], [0, 3, 3]])


def decoder(tied=True):
    mixer = GroupedQueryAttention.Config(kv_heads=2, group=2, position=Rotary.Config())
    return Decoder.Config(
        dim=16,
        vocabulary=11,
        embed=registry.part("token_table").Config(),
        blocks=(layer_block(mixer, registry.part("mlp").Config(), LayerNorm.Config()),),
        norm=LayerNorm.Config(),
        head=VocabularyHead.Config(linear=core.Shared.Config(path="embed.table") if tied else None),
    )


def test_tied_weights_are_there_once():
    tied, apart = core.build(decoder()), core.build(decoder(tied=False))
    assert tied.head.linear.weight is tied.embed.table.weight
    assert [n for n, _ in tied.named_parameters()] == [
        n for n, _ in apart.named_parameters() if n != "head.linear.weight"
    ]
    assert tied.state_dict().keys() == apart.state_dict().keys() - {"head.linear.weight"}
    assert sum(p.numel() for p in apart.parameters()) - sum(p.numel() for p in tied.parameters()) == 11 * 16
    assert "head.linear.weight" not in axis_table(tied.spec).tensors


def test_both_uses_give_gradients_to_one_weight():
    model = core.build(decoder()).double()
    model(WORDS).square().sum().backward()
    both = model.embed.table.weight.grad
    apart = core.build(decoder(tied=False)).double()
    apart.load_state_dict({**model.state_dict(), "head.linear.weight": model.embed.table.weight.detach()})
    assert torch.equal(model(WORDS), apart(WORDS))
    apart(WORDS).square().sum().backward()
    assert torch.allclose(both, apart.embed.table.weight.grad + apart.head.linear.weight.grad, rtol=1e-12)


def test_a_copy_is_tied_to_itself():
    model = core.build(decoder())
    again = copy.deepcopy(model)
    assert again.head.linear.weight is again.embed.table.weight
    assert again.embed.table.weight is not model.embed.table.weight
    with torch.no_grad():
        again.embed.table.weight.zero_()
    assert not again(WORDS).any()
    assert model(WORDS).any()


@pytest.mark.parametrize("change", [lambda m: m.to(torch.float64), lambda m: m.half().float(), lambda m: m.to("meta")])
def test_the_tie_outlives_a_change_of_type_or_place(change):
    model = change(core.build(decoder()))
    assert model.head.linear.weight is model.embed.table.weight
    assert len(list(model.parameters())) == len({id(p) for p in model.parameters()})


def test_a_tie_goes_through_a_folder(tmp_path):
    model = core.build(decoder())
    store.save_pretrained(model, tmp_path)
    again = store.from_pretrained(tmp_path)
    assert again.head.linear.weight is again.embed.table.weight
    assert torch.equal(again(WORDS), model.eval()(WORDS))


def test_the_tie_is_in_the_spec():
    spec = core.resolve(decoder())
    assert serial.to_data(spec)["head"]["linear"] == {"part": "shared", "path": "embed.table"}
    assert serial.loads(serial.dumps(spec)) == spec
    assert core.edit(spec, {"vocabulary": 12}).embed.table.outputs == 12


@pytest.mark.parametrize("path", ["nowhere", "", "head", "head.linear", "blocks.7", "__class__"])
def test_what_cannot_be_used_a_second_time_is_named(path):
    pattern = decoder().replace(head=VocabularyHead.Config(linear=core.Shared.Config(path=path)))
    with pytest.raises(core.UsageError, match="no part that is built there can be used a second time"):
        core.build(pattern)


def test_a_new_head_is_attached_too():
    head = registry.part("mean_pool_head").Config(num_classes=3, norm=core.Shared.Config(path="embed.norm"))
    embed = registry.part("patch_embed").Config(patch=2, norm=LayerNorm.Config())
    pattern = registry.part("isotropic").Config(dim=8, embed=embed, blocks=(), head=head)
    model = core.build(pattern)
    model.reset_classifier(5)
    assert model(torch.randn(2, 3, 4, 4)).shape == (2, 5)
    assert model.head.norm.weight is model.embed.norm.weight
