"""The wiring: what follows what."""

import pytest
import torch

from anyformer import core
from anyformer.core import registry
from anyformer.core.pattern import parse_part
from anyformer.skeletons.blocks import layer_block, layer_blocks
from anyformer.skeletons.decoder import Decoder
from anyformer.skeletons.isotropic import Isotropic
from anyformer.skeletons.pyramid import Pyramid, Stage

MLP, NORM = parse_part("mlp"), parse_part("layer_norm")


def random_parameters(model):
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.double().eval()


def build(pattern):
    return random_parameters(core.build(pattern))


def grid(*sides):
    return core.Context(layout=core.Layout(grid=sides))


def test_a_pre_norm_block_is_two_residual_branches():
    block = build(layer_block(parse_part("attention(heads=2)"), MLP, NORM).replace(dim=8))
    x = torch.randn(2, 3, 3, 8, dtype=torch.float64)
    ctx = grid(3, 3)
    middle = x + block.mixer(block.norm1(x), ctx)
    assert torch.equal(block(x, ctx), middle + block.channel_mixer(block.norm2(middle), ctx))


def test_a_mixer_norm_block_is_one_residual_branch():
    config = registry.part("mixer_norm_block").Config(
        dim=8,
        mixer=parse_part("depthwise_convolution"),
        norm=NORM,
        channel_mixer=MLP,
        residual=parse_part("scaled_residual"),
    )
    block = build(config)
    x = torch.randn(2, 3, 3, 8, dtype=torch.float64)
    ctx = grid(3, 3)
    branch = block.channel_mixer(block.norm(block.mixer(x, ctx)), ctx)
    assert torch.equal(block(x, ctx), x + branch * block.residual.gamma)


def test_a_layer_is_a_mixer_or_a_whole_block():
    block = registry.part("mixer_norm_block").Config(mixer=NORM, norm=NORM, channel_mixer=MLP, residual=NORM)
    assert layer_block(block, MLP, NORM) is block
    with pytest.raises(core.UsageError, match="a layer is a token mixer or a block, 'layer_norm' is a norm"):
        layer_block(NORM, MLP, NORM)


def test_repeated_layers_are_one_block():
    first, second, third = layer_blocks("2 x attention(heads=2), attention(heads=1)", MLP, NORM)
    assert first is second
    assert (first.mixer.heads, third.mixer.heads) == (2, 1)


def test_isotropic_is_embed_blocks_norm_head():
    model = build(
        Isotropic.pattern(
            dim=8, layers="2 x depthwise_convolution(kernel=3)", embed="patch_embed(patch=2)", num_classes=3
        )
    )
    images = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    x, ctx = model.embed(images)
    features = []
    for block in model.blocks:
        x = block(x, ctx)
        features.append(x)
    stages, final, context = model.stages_of(images)
    assert all(map(torch.equal, stages, features))
    assert torch.equal(final, model.norm(x))
    assert torch.equal(model(images), model.head(final, context))
    assert context.layout == core.Layout(grid=(3, 4))


def test_isotropic_features_leave_prefix_tokens_out():
    embed = registry.part("prefixed_patch_embed").Config(
        patch=parse_part("patch_embed(patch=2)"), rows=3, columns=4, prefix=2
    )
    layers = layer_blocks("attention(heads=2)", MLP, NORM)
    model = build(Isotropic.Config(dim=8, embed=embed, blocks=layers, head=parse_part("prefix_head(num_classes=3)")))
    stages, final, context = model.stages_of(torch.randn(2, 3, 6, 8, dtype=torch.float64))
    assert [tuple(x.shape) for x in stages] == [(2, 3, 4, 8)]
    assert final.shape == (2, 14, 8)
    assert torch.equal(context.layout.split(final)[1], stages[0])


def test_a_pyramid_is_stages_of_falling_size_and_growing_width():
    model = build(
        Pyramid.pattern(
            dims=(4, 6, 10),
            stages=("depthwise_convolution", "attention(heads=2)", "2 x attention(heads=1)"),
            num_classes=3,
        )
    )
    images = torch.randn(2, 3, 34, 48, dtype=torch.float64)
    stages, final, context = model.stages_of(images)
    assert [tuple(x.shape) for x in stages] == [(2, 8, 12, 4), (2, 4, 6, 6), (2, 2, 3, 10)]
    assert torch.equal(final, model.norm(stages[-1]))
    assert context.layout == core.Layout(grid=(2, 3))
    assert model(images).shape == (2, 3)
    assert model.stages[0].down is None
    assert [stage.down.config.inputs for stage in model.stages[1:]] == [4, 6]


def test_a_stage_may_keep_its_grid_and_width():
    blocks = layer_blocks("attention(heads=2)", MLP, NORM)
    pattern = Pyramid.Config(
        embed=parse_part("patch_embed(patch=2)"),
        stages=(Stage.Config(dim=4, blocks=blocks), Stage.Config(dim=4, blocks=blocks)),
    )
    stages, final, _ = build(pattern).stages_of(torch.randn(1, 3, 4, 4, dtype=torch.float64))
    assert [tuple(x.shape) for x in stages] == [(1, 2, 2, 4)] * 2
    assert torch.equal(final, stages[1]), "no norm, no head"


def decoder(**changes):
    mixer = "grouped_query_attention(kv_heads=2, group=2, position=rotary())"
    slots = {"embed": parse_part("token_table"), "blocks": layer_blocks(f"2 x {mixer}", MLP, NORM), "norm": NORM}
    return build(Decoder.Config(dim=16, vocabulary=11, head=parse_part("vocabulary_head"), **{**slots, **changes}))


def test_a_decoder_scores_every_next_token_from_the_ones_before():
    model = decoder()
    words = torch.randint(11, (2, 9))
    scores = model(words)
    assert scores.shape == (2, 9, 11)
    for start in range(1, 9):
        other = words.clone()
        other[:, start:] = (other[:, start:] + 1) % 11
        assert torch.equal(model(other)[:, :start], scores[:, :start])
    features, final, _ = model.stages_of(words)
    assert [tuple(x.shape) for x in features] == [(2, 9, 16)] * 2
    assert torch.equal(final, model.norm(features[-1]))


def test_what_the_blocks_collect_goes_into_the_callers_sink(monkeypatch):
    model = decoder()
    for number, block in enumerate(model.blocks):
        forward = block.forward

        def spying(x, ctx, number=number, forward=forward):
            ctx.collect("seen", torch.tensor(number))
            return forward(x, ctx)

        monkeypatch.setattr(block, "forward", spying)
    sink = {}
    model(torch.randint(11, (1, 3)), sink)
    assert [int(t) for t in sink["seen"]] == [0, 1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layers": "attention(heads=2)", "norm": "2 x layer_norm"}, "expected one part, got 2"),
        ({"layers": "attention(heads=2)", "head": "vocabulary_head"}, "part 'vocabulary_head' has no 'num_classes'"),
        ({"layers": "layer_norm"}, "a layer is a token mixer or a block"),
    ],
)
def test_patterns_that_do_not_fit_are_named(arguments, words):
    with pytest.raises(core.UsageError) as caught:
        Isotropic.pattern(dim=8, **arguments)
    assert words in str(caught.value)


def test_a_pyramid_without_stages_is_none():
    with pytest.raises(core.UsageError, match="a pyramid has at least one stage"):
        core.resolve(Pyramid.Config(embed=parse_part("patch_embed(patch=2)"), stages=()))
