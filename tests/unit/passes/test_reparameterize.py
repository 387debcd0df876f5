"""Deploy forms of every system, of random convolutions, and of what must not be folded."""

import copy
from functools import cache
from typing import Any, cast

import pytest
import torch

import anyformer as af
from anyformer import core
from anyformer.core import registry
from anyformer.core.model import Model
from anyformer.core.pattern import parse_pattern
from anyformer.core.store import build_hybrid
from anyformer.parts.convolutions.convolution import Convolution, GroupedConvolution
from anyformer.parts.convolutions.parallel import ParallelConvolution
from anyformer.parts.norms.batch_norm import BatchNorm
from anyformer.parts.norms.layer_norm import LayerNorm
from anyformer.parts.residuals.residual import PlainResidual, ScaledResidual
from anyformer.parts.token_mixers.rep_mixer import ConditionalPosition, RepMixer
from anyformer.passes.reparameterize import Reparameterize, reparameterize
from anyformer.skeletons.blocks import PreNormBlock

SMALL = [name for system in registry.systems().values() if system.field == "vision" for name in system.small]
GAINING = {"convnext", "edgenext", "fastvit"}
FOLDED = (ParallelConvolution, RepMixer, ConditionalPosition, BatchNorm, ScaledResidual)
OPTIONS = {"img_size": 8, "patch_size": 1, "in_chans": 1, "num_classes": 10}


def random_numbers(model: Model) -> Model:
    """Every parameter and every moment random, large enough to matter; in float64 and evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    model.double().eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2, generator=generator)
            elif name.endswith("running_mean") or tensor.requires_grad:
                spread = tensor[0].numel() ** -0.5 if tensor.dim() > 1 else 0.5
                tensor.normal_(std=spread, generator=generator)
    return model


@cache
def example(name: str) -> tuple[Model, Model, torch.Tensor]:
    torch.manual_seed(0)
    model = random_numbers(af.create_model(name, **OPTIONS, drop_path_rate=0.1))
    images = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    return model, reparameterize(model), images


def error(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def parameters(model: Model) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", SMALL)
@torch.no_grad()
def test_the_deploy_form_is_equal_and_no_larger(name):
    model, deployed, images = example(name)
    ours, theirs = deployed.stages_of(images)[0], model.stages_of(images)[0]
    assert max(map(error, ours, theirs)) < 1e-9
    assert error(deployed(images), model(images)) < 1e-9
    gains = registry.system_of(name).paper.slug in GAINING
    assert parameters(deployed) < parameters(model) if gains else parameters(deployed) <= parameters(model)


@pytest.mark.parametrize("name", SMALL)
def test_the_deploy_form_is_an_ordinary_model(name, tmp_path):
    model, deployed, images = example(name)
    assert core.resolve(deployed.spec) == deployed.spec
    assert not deployed.training
    assert (deployed.model_name, deployed.options, deployed.data_config) == (name, model.options, model.data_config)
    deployed.save_pretrained(tmp_path)
    again = af.from_pretrained(tmp_path)
    assert again.spec == deployed.spec
    assert torch.equal(again(images), deployed(images))
    twice = reparameterize(deployed)
    assert twice.spec == deployed.spec
    state = deployed.state_dict()
    assert all(torch.equal(tensor, state[key]) for key, tensor in twice.state_dict().items())
    assert core.build(deployed.spec).train()(images.float()).shape == (2, 10)


@pytest.mark.parametrize("name", ["fastvit_micro", "fastvit_mini"])
def test_nothing_of_the_trained_form_is_left(name):
    model, deployed, _ = example(name)
    left = [path for path, part in deployed.named_modules() if isinstance(part, FOLDED)]
    assert left == []
    assert sum(isinstance(part, FOLDED) for part in model.modules()) > 40


def test_the_deploy_form_exports():
    _, deployed, images = example("fastvit_mini")
    program = torch.export.export(deployed, (images,)).module()
    torch.testing.assert_close(program(images), deployed(images), rtol=0, atol=1e-12)


def test_the_given_model_is_not_touched():
    model = af.create_model("fastvit_micro", **OPTIONS).train()
    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    spec = model.spec
    deployed = reparameterize(model)
    assert model.spec is spec
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    ours = {parameter.data_ptr() for parameter in deployed.parameters()}
    assert not ours & {parameter.data_ptr() for parameter in model.parameters()}


def test_a_model_in_training_is_taken_as_in_evaluation():
    torch.manual_seed(0)
    model = af.create_model("fastvit_micro", **OPTIONS).train()
    images = torch.randn(16, 1, 8, 8)
    for _ in range(3):  # moments that the pass must use
        model(images)
    deployed = reparameterize(model)
    assert all(tensor.dtype == torch.float32 for tensor in deployed.state_dict().values())
    with torch.no_grad():
        assert error(deployed(images), model.eval()(images)) < 1e-5
        assert error(deployed(images), model.train()(images)) > 1e-2


def test_as_a_pass():
    models = example("fastvit_micro")[0], example("vit_micro")[0]
    made, record = Reparameterize().apply(models)
    assert [model.spec for model in made] == [example(name)[1].spec for name in ("fastvit_micro", "vit_micro")]
    assert record == {"parameters": tuple((parameters(a), parameters(b)) for a, b in zip(models, made, strict=True))}


@pytest.mark.parametrize("seed", range(12))
def test_random_branches(seed):
    """A pattern that nobody wrote: random kinds, kernels, strides, norms, with an identity where one can be."""
    generator = torch.Generator().manual_seed(seed)

    def below(n: int) -> int:
        return int(torch.randint(n, (), generator=generator))

    def parallel(kind: type[core.Part], stride: int) -> core.Config:
        return ParallelConvolution.Config(
            branches=tuple(
                kind.Config(kernel=2 * below(4) + 1, stride=stride, norm=BatchNorm.Config() if below(4) else None)
                for _ in range(1 + below(4))
            ),
            identity=BatchNorm.Config() if stride == 1 and below(2) else None,
        )

    pattern: core.Config = registry.system_of("fastvit_micro").pattern("fastvit_micro", num_classes=3, in_chans=2)
    stride = 1 + below(2)
    kind = (Convolution, GroupedConvolution)[below(2)]
    spec = core.edit(
        core.resolve(pattern),
        {
            "embed.layers.1.convolution": parallel(kind, stride),
            "embed.layers.2.convolution": parallel(Convolution, 1),
            "stages.0.blocks.0.mixer.convolution": parallel(GroupedConvolution, 1),
            "stages.1.down.large": parallel(GroupedConvolution, stride).replace(identity=None),
        },
    )
    model = core.build(spec)
    assert isinstance(model, Model)
    random_numbers(model)
    images = torch.randn(2, 2, 9, 12, dtype=torch.float64, generator=generator)
    deployed = reparameterize(model)
    assert not any(isinstance(part, FOLDED) for part in deployed.modules())
    with torch.no_grad():
        assert error(deployed(images), model(images)) < 1e-9


def isotropic(*blocks: core.Config) -> Model:
    layers = "1 x depthwise_convolution(kernel=3)"
    spec = build_hybrid({"skeleton": "isotropic", "dim": 12, "embed": "patch_embed(patch=2)", "layers": layers}).spec
    return random_numbers(cast(Model, core.build(core.edit(spec, {"blocks": blocks}))))


def block(mixer: str = "attention(heads=2)", join: core.Config | None = None, **changes: core.Config) -> core.Config:
    mixing, mlp = parse_pattern(f"{mixer}, mlp(hidden=20)")
    norm = LayerNorm.Config()
    slots = {"norm1": norm, "mixer": mixing, "norm2": norm, "channel_mixer": mlp, "residual1": join, "residual2": join}
    return PreNormBlock.Config(**cast(Any, {**slots, **changes}))


SCALED = ScaledResidual.Config()


def joins(model: Model) -> list[type]:
    return [type(part) for part in model.modules() if isinstance(part, PlainResidual | ScaledResidual)]


@torch.no_grad()
def equal_after(model: Model) -> Model:
    images, deployed = torch.randn(2, 3, 8, 6, dtype=torch.float64), reparameterize(model)
    assert error(deployed(images), model(images)) < 1e-9
    return deployed


@pytest.mark.parametrize("mixer", ["attention(heads=2)", "depthwise_convolution(kernel=3)"])
def test_layer_scales_are_taken_in_by_the_branch(mixer):
    deployed = equal_after(isotropic(block(mixer, SCALED.replace(drop_path=0.25))))
    assert joins(deployed) == [PlainResidual, PlainResidual]
    assert deployed.spec.blocks[0].residual1.drop_path == 0.25


def test_a_branch_that_can_take_no_scale_in_keeps_its_join():
    deployed = equal_after(isotropic(block("pooling(kernel=3)", SCALED)))
    assert joins(deployed) == [ScaledResidual, PlainResidual]


def test_what_is_used_in_two_places_stays_as_it_is():
    second = block(join=SCALED, channel_mixer=core.Shared.Config(path="blocks.0.channel_mixer"))
    deployed = equal_after(isotropic(block(join=SCALED), second, block(join=SCALED)))
    stays, taken_in = ScaledResidual, PlainResidual
    assert joins(deployed) == [stays, stays, taken_in, stays, taken_in, taken_in]


def test_a_product_without_a_bias_has_one_after_a_batch_norm():
    model, deployed, _ = example("fastvit_mini")
    assert model.stages[2].blocks[0].mixer.qkv.bias is None
    assert deployed.stages[2].blocks[0].mixer.qkv.bias.abs().max() > 0
    assert deployed.spec.stages[2].blocks[0].mixer.qkv.bias
