"""CaiT: what its file says beyond what every system must show."""

import pytest
import torch

import anyformer as af
from anyformer import core
from anyformer.parts.token_mixers.attention import Attention
from anyformer.systems.vision.cait import CLASS_DEPTH, SIZES, SMALL, ClassAttention, TalkingHeadsAttention, pattern

OPTIONS = {"num_classes": 5, "img_size": 16}


@pytest.mark.parametrize("name", sorted(set(SIZES) - set(SMALL)))
def test_the_published_numbers(name):
    spec = core.resolve(pattern(name, drop_path_rate=0.3))
    _, size, side = name.split("_")
    width = {"xxs": 192, "xs": 288, "s": 384, "m": 768}[size.rstrip("0123456789")]
    assert (spec.dim, len(spec.blocks), len(spec.head.layers)) == (width, int(size[-2:]), CLASS_DEPTH)
    assert {block.mixer.head_dim for block in spec.blocks} == {48}
    assert (spec.embed.position.rows, spec.embed.position.columns) == (int(side) // 16,) * 2
    assert {block.residual2.drop_path for block in spec.blocks} == {0.3}
    assert {layer.residual1.drop_path for layer in spec.head.layers} == {0.0}


def random(part: core.Part) -> core.Part:
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter)
    return part.double().eval()


def test_heads_that_keep_to_themselves_are_plain_attention():
    """Mixes that are the identity leave the attention of a ViT."""
    talking = random(core.build(TalkingHeadsAttention.Config(dim=12, heads=3)))
    plain = core.build(Attention.Config(dim=12, heads=3)).double().eval()
    plain.load_state_dict({k: v for k, v in talking.state_dict().items() if k.startswith(("qkv", "proj"))})
    with torch.no_grad():
        for mix in (talking.logits, talking.weights):
            mix.weight.copy_(torch.eye(3))
            mix.bias.zero_()
    x = torch.randn(2, 4, 5, 12, dtype=torch.float64)
    keep = torch.rand(2, 20) > 0.3
    for mask in (None, keep):
        context = core.Context(layout=core.Layout(grid=(4, 5)), mask=mask)
        assert torch.allclose(talking(x, context), plain(x, context), rtol=1e-10, atol=1e-12)


def test_what_is_masked_leaves_no_trace():
    """Neither softmax nor the bias of the weights may reach it."""
    talking = random(core.build(TalkingHeadsAttention.Config(dim=12, heads=3)))
    reading = random(core.build(ClassAttention.Config(dim=12, heads=3)))
    x = torch.randn(1, 7, 12, dtype=torch.float64)
    keep = torch.tensor([[True, True, True, True, False, True, False]])
    for part, layout in ((talking, core.Layout(grid=(7,))), (reading, core.Layout(grid=(6,), prefix=1))):
        changed = torch.where(keep[..., None], x, torch.randn_like(x))
        context = core.Context(layout=layout, mask=keep)
        count = layout.prefix or 7
        seen = keep[0, :count]
        assert torch.allclose(part(x, context)[:, seen], part(changed, context)[:, seen], rtol=1e-12)


def test_class_attention_changes_the_token_alone():
    model = af.create_model("cait_micro", **OPTIONS, patch_size=4).double().eval()
    x = torch.randn(2, 17, 64, dtype=torch.float64)
    context = core.Context(layout=core.Layout(grid=(4, 4), prefix=1))
    y = model.head.layers[0](x, context)
    assert torch.equal(y[:, 1:], x[:, 1:])
    assert not torch.allclose(y[:, 0], x[:, 0], rtol=1e-3)


def test_positions_are_adapted_and_another_grid_is_refused():
    model = af.create_model("cait_micro", **OPTIONS, patch_size=4).double().eval()
    with pytest.raises(core.UsageError, match=r"grid of \(4, 8\), the learned positions are for \(4, 4\); create"):
        model(torch.zeros(1, 3, 16, 32, dtype=torch.float64))
    wide = af.adapt(model, img_size=(16, 32), num_classes=3)
    assert wide(torch.zeros(1, 3, 16, 32, dtype=torch.float64)).shape == (1, 3)
    assert wide.embed.position.table.shape == (4, 8, 64)
    assert torch.equal(wide.head.token, model.head.token)
    with pytest.raises(core.UsageError, match="holds no patch of 16; give a smaller patch_size"):
        pattern("cait_xxs24_224", img_size=8)


def test_without_classes_the_head_gives_its_token():
    model = af.create_model("cait_micro", **{**OPTIONS, "num_classes": 0}).eval()
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 64)
