"""What every whole model can do."""

import pytest
import torch

import anyformer as af
from anyformer import core
from anyformer.core import store
from anyformer.core.binding import axis_table

from .random_patterns import SMALL_MODELS


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_features_of_every_stage(name):
    torch.manual_seed(0)
    model = af.create_model(name, img_size=(32, 48)).eval()
    torch.manual_seed(0)
    extractor = af.create_model(name, img_size=(32, 48), features_only=True).eval()
    images = torch.randn(2, 3, 32, 48)
    with torch.no_grad():
        features = extractor(images)
        stages, final, context = model.stages_of(images)
        scores = model(images)
        assert torch.equal(model.forward_head(final, context), scores)
        assert torch.equal(model.forward_features(images)[0], final)
    assert all(map(torch.equal, features, stages))
    depth = len(getattr(model.spec, "stages", ()) or model.spec.blocks)
    assert len(features) == depth
    assert all(x.dim() == 4 and x.shape[0] == 2 for x in features)
    sides = [tuple(x.shape[1:3]) for x in features]
    assert sides[0] == (8, 12)
    assert sides == sorted(sides, reverse=True)


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_an_extractor_has_no_head_and_says_so(name, tmp_path):
    extractor = af.create_model(name, features_only=True)
    assert not [key for key in extractor.state_dict() if key.startswith("model.head")]
    assert extractor.model.spec.head is None
    own = {key for key in axis_table(extractor.model.spec).tensors if not key.startswith("head")}
    assert set(extractor.model.state_dict()) <= own
    store.save_pretrained(extractor.model, tmp_path)
    again = af.from_pretrained(tmp_path)
    assert again.head is None
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        stages = again.stages_of(images)[0]
        assert all(map(torch.equal, stages, extractor.eval()(images)))
        assert torch.equal(again(images), again.forward_features(images)[0]), "without a head, the features"


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_resetting_the_classifier_changes_the_head_alone(name):
    model = af.create_model(name).double().train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)  # so that what starts anew shows
    body = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith("head.linear")}
    model.reset_classifier(4)
    assert model.training
    assert model.eval()(torch.randn(2, 3, 32, 32, dtype=torch.float64)).shape == (2, 4)
    assert all(tensor is not None and torch.equal(model.state_dict()[key], tensor) for key, tensor in body.items())
    assert (model.spec.head.num_classes, model.options["num_classes"]) == (4, 4)
    assert model.spec == af.create_model(name, num_classes=4).spec
    assert all(
        module.config is node
        for module, (_, node) in zip(
            (module for module in model.head.modules() if isinstance(module, core.Part)),
            core.walk(model.spec.head),
            strict=False,
        )
    )
    dumped = af.dump_weights(model, format="timm")
    af.load_weights(af.create_model(name, num_classes=4), dumped, format="timm")


@pytest.mark.parametrize("name", SMALL_MODELS)
def test_no_classes_means_pooled_features(name):
    model = af.create_model(name, num_classes=0).eval()
    images = torch.randn(2, 3, 32, 32)
    width = model.head.config.dim * getattr(model.head.config, "multiplier", 1)
    with torch.no_grad():
        assert model(images).shape == (2, width)
        model.reset_classifier(3)
        assert model(images).shape == (2, 3)
        model.reset_classifier(0)
        assert model(images).shape == (2, width)


def test_a_reset_that_is_refused_changes_nothing():
    model = af.create_model("vit_micro")
    head, spec = model.head, model.spec
    with pytest.raises(core.UsageError, match="the size of axis 'num_classes' is -1"):
        model.reset_classifier(-1)
    assert (model.head, model.spec) == (head, spec)
    extractor = af.create_model("vit_micro", features_only=True)
    with pytest.raises(core.UsageError, match="this model has no head to reset"):
        extractor.model.reset_classifier(3)


def test_a_reset_model_is_adapted_and_saved_as_it_is(tmp_path):
    model = af.create_model("swin_micro")
    model.reset_classifier(4)
    model.save_pretrained(tmp_path)
    again = af.from_pretrained(tmp_path)
    assert again.options == {"num_classes": 4}
    assert torch.equal(again.head.linear.weight, model.head.linear.weight)
    assert torch.equal(af.adapt(again, img_size=16).head.linear.weight, model.head.linear.weight)


def test_what_is_collected_comes_out(own_parts):
    class Counting(core.TokenMixer, name="counting_mixer"):
        """Hands out how many tokens it saw."""

        class Config(core.Config):
            """Nothing but the width."""

            dim: int = core.bound()

        collects = ("tokens",)

        def forward(self, x, ctx):
            ctx.collect("tokens", torch.tensor(x.shape[1:3].numel()))
            return x

    model = af.build_hybrid(
        {"skeleton": "isotropic", "dim": 8, "layers": "2 x counting_mixer", "embed": "patch_embed(patch=2)"}
    )
    images = torch.randn(1, 3, 8, 8)
    sink = {}
    scores = model(images, sink)
    assert [int(t) for t in sink["tokens"]] == [16, 16]
    assert torch.equal(model(images), scores)
