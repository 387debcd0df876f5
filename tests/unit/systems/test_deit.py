"""DeiT: what its file says beyond what every system must show."""

from typing import Any

import pytest
import torch

import anyformer as af
from anyformer import core
from anyformer.core import registry
from anyformer.parts.heads.distilled import DistilledScores
from anyformer.systems.vision.deit import SIZES, SMALL, pattern
from anyformer.verify.filling import fill
from anyformer.verify.oracles import oracle

DISTILLED = "deit_tiny_distilled_patch16_224"
PUBLISHED = {"tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12)}


@pytest.mark.parametrize("name", sorted(set(SIZES) - set(SMALL)))
def test_the_published_numbers(name):
    spec: Any = core.resolve(pattern(name))
    _, size, *_ = name.split("_")
    side = 24 if name.endswith("384") else 14
    assert (spec.dim, len(spec.blocks), spec.blocks[0].mixer.heads) == PUBLISHED[size]
    assert (spec.embed.prefix, spec.embed.rows, spec.embed.columns) == (1 + ("distilled" in name), side, side)
    assert registry.system("deit").data_config(name)["size"] == [16 * side] * 2


def test_without_distillation_it_is_vit_but_for_the_start_of_its_token():
    ours, vit = core.resolve(pattern("deit_tiny_patch16_224")), registry.system("vit").pattern("vit_tiny_patch16_224")
    start = core.Init("truncated_normal", 0.02)
    assert ours == core.edit(core.resolve(vit), {"embed.prefix_init": start})


@pytest.fixture(scope="module")
def distilled():
    """The distilled tiny model at a small size, and timm's with its weights."""
    ours = af.create_model(DISTILLED, img_size=48, num_classes=7).double().eval()
    fill(ours)
    theirs = oracle(DISTILLED, num_classes=7).double()
    return ours, theirs


def test_the_two_tokens_are_the_two_tensors_of_theirs(distilled):
    ours, _ = distilled
    weights = af.dump_weights(ours, format="timm")
    assert torch.equal(torch.cat((weights["cls_token"], weights["dist_token"]), dim=1), ours.embed.prefix)
    assert torch.equal(weights["head_dist.weight"], ours.head.teacher.weight)
    assert af.dump_weights(ours, format="official").keys() == weights.keys()
    again = af.create_model(DISTILLED, img_size=48, num_classes=7).double()
    af.load_weights(again, weights, format="timm")
    assert all(map(torch.equal, again.state_dict().values(), ours.state_dict().values()))


def test_each_token_gives_what_theirs_gives_in_training(distilled):
    ours, theirs = distilled
    theirs.set_input_size((48, 48))
    theirs.load_state_dict(af.dump_weights(ours, format="timm"))
    theirs.set_distilled_training(True)
    images = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    given, expected = ours.train()(images), theirs.train()(images)
    assert isinstance(given, DistilledScores)
    for our_scores, their_scores in zip(given, expected, strict=True):
        assert torch.allclose(our_scores, their_scores, rtol=1e-9)
    assert torch.allclose(ours.eval()(images), theirs.eval()(images), rtol=1e-9)
    assert torch.allclose(ours(images), (given.label + given.teacher) / 2, rtol=1e-9)


def test_a_new_classifier_has_both_heads_and_grids_are_adapted(distilled):
    ours, _ = distilled
    images = torch.randn(2, 3, 32, 64, dtype=torch.float64)
    other = af.adapt(ours, img_size=(32, 64), num_classes=3)
    assert torch.equal(other.embed.positions[:, :2], ours.embed.positions[:, :2])
    assert other(images).shape == (2, 3)
    other.reset_classifier(5)
    assert [tuple(scores.shape) for scores in other.train()(images)] == [(2, 5)] * 2
    assert af.create_model(DISTILLED, num_classes=0, img_size=32).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 192)


def test_features_leave_both_tokens_out(distilled):
    ours, _ = distilled
    stages, final, context = ours.stages_of(torch.randn(1, 3, 48, 48, dtype=torch.float64))
    assert [tuple(stage.shape) for stage in stages] == [(1, 3, 3, 192)] * 12
    assert final.shape == (1, 11, 192)
    assert context.layout == core.Layout(grid=(3, 3), prefix=2)


def test_it_is_exported_with_averaged_scores(distilled):
    spec = distilled[0].spec
    model = core.build(spec.replace(blocks=spec.blocks[:1])).eval()
    images = torch.randn(1, 3, 48, 48)
    program = torch.export.export(model, (images,)).module()
    assert torch.allclose(program(images), model(images), rtol=1e-5)


def test_too_small_an_image_is_refused():
    with pytest.raises(core.UsageError, match="give a smaller patch_size"):
        pattern("deit_tiny_patch16_224", img_size=8)
