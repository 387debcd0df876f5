"""The hybrids of attention and Mamba-2: what their file says beyond what every system must show."""

from typing import Any

import pytest
import torch

import anyformer as af
from anyformer import core
from anyformer.parts.token_mixers.grouped_query_attention import GroupedQueryAttention
from anyformer.systems.language.hybrid_lm_analysis import SIZES, ParallelMixers, PreNormLinear, spread
from anyformer.verify.equal import compare


def size_of(part: torch.nn.Module) -> float:
    return sum(parameter.numel() for parameter in part.parameters()) / 1e6


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    with torch.device("meta"):
        return {name: af.create_model(name) for name in SIZES}


def test_sizes_are_those_that_the_paper_prints(models):
    transformer, mamba = models["hybrid_lm_transformer_1b"], models["hybrid_lm_mamba_1b"]
    assert (round(size_of(transformer.blocks[0].mixer)), int(size_of(mamba.blocks[0].mixer))) == (10, 25)
    cache = transformer.bfloat16().init_state(1, 8192).blocks
    assert sum(2 * (block.keys.numel() + block.values.numel()) for block in cache) == 256 * 2**20
    totals = {name: size_of(model) / 1e3 for name, model in models.items() if name.endswith("_1b")}
    assert all(1.2 < total < 1.26 for total in totals.values())


def test_layers_with_attention_stand_apart_and_never_in_front():
    layers = {name: size.layers for name, size in SIZES.items()}
    assert layers["hybrid_lm_intra_1to5_1b"] == "MMMHMMMMMHMMM"
    assert layers["hybrid_lm_inter_1to5_1b"] == "MMMTMMMMMTMMM"
    assert layers["hybrid_lm_inter_1to1_1b"] == "MT" * 7
    assert spread("T", 3, 24) == "MMMMTMMMMMMMTMMMMMMMTMMM"


def test_the_two_halves_of_a_layer_are_half_as_wide(models):
    whole, halves = (
        models["hybrid_lm_transformer_1b"].blocks[0].mixer,
        models["hybrid_lm_intra_1to5_1b"].blocks[3].mixer,
    )
    assert halves.mixer1.proj.linear.weight.shape == (2048, 1024)
    assert halves.mixer1.config.head_dim == whole.config.head_dim == 64
    assert halves.mixer2.config.heads == models["hybrid_lm_mamba_1b"].blocks[0].mixer.config.heads // 2 == 32
    assert (halves.mixer1.proj.norm.config.groups, halves.mixer2.out_proj.norm.config.groups) == (16, 32)


@pytest.mark.parametrize("name", ["hybrid_lm_micro", "hybrid_lm_mini"])
def test_equal_to_the_equations(name):
    assert compare(name, (11,), 2).failures() == []


def mixers(**options: Any) -> Any:
    torch.manual_seed(0)
    attention = GroupedQueryAttention.Config(kv_heads=2, head_dim=4)
    shared = (
        attention.replace(proj=core.Shared.Config(path="mixer1.proj")) if options.pop("shared", False) else attention
    )
    return core.build(ParallelMixers.Config(dim=16, mixer1=attention, mixer2=shared, **options)).double()


def test_fusions():
    x, ctx = torch.randn(2, 5, 16, dtype=torch.float64), core.Context()
    a, b = (mixers()._modules[name](x, ctx) for name in ("mixer1", "mixer2"))
    torch.testing.assert_close(mixers()(x, ctx), a - b)
    torch.testing.assert_close(mixers(fusion="sum")(x, ctx), a + b)
    scaled = mixers(fusion="sum", scales=core.ONES)
    with torch.no_grad():
        scaled.scales.copy_(torch.tensor([0.5, 3.0]))
    torch.testing.assert_close(scaled(x, ctx), 0.5 * a + 3 * b)


def test_one_last_product_for_both():
    model, x, ctx = mixers(fusion="sum", shared=True), torch.randn(2, 5, 16, dtype=torch.float64), core.Context()
    given, weight = model(x, ctx), model.mixer1.proj.weight
    with torch.no_grad():
        weight.mul_(2.0)
    torch.testing.assert_close(model(x, ctx), 2 * given)
    assert [name for name, _ in model.named_parameters() if "proj" in name] == ["mixer1.proj.weight"]


def test_a_pre_norm_linear_takes_in_a_scale():
    model, scale = af.create_model("hybrid_lm_micro").blocks[1].mixer.mixer1.proj, torch.linspace(0.5, 2.0, 64)
    assert isinstance(model, PreNormLinear)
    x = torch.randn(3, 32)
    given = model(x)
    with torch.no_grad():
        assert model.scaled(scale)
    torch.testing.assert_close(model(x), given * scale)
