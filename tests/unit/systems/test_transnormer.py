"""TransNormer: what its file says beyond what every system must show."""

from typing import Any

import pytest
import torch

import anyformer as af
from anyformer import core
from anyformer.parts.embeds.token_table import Tokens
from anyformer.systems.language.transnormer import (
    SIZES,
    SMALL,
    MirroredRotary,
    SimpleRMSNorm,
    data_config,
    pattern,
)
from anyformer.verify.equal import compare

PAPER = sorted(set(SIZES) - set(SMALL))
LAYER = 4 * (512 * 512 + 512) + 3 * 512 * 1365 + 2 * 1365 + 512 + 32  # the angles are those of one head


@pytest.mark.parametrize("name", PAPER)
def test_the_published_models(name):
    with torch.device("meta"):
        model = af.create_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == 267744 * 512 + 6 * LAYER
    names = af.dump_weights(model, format="official")
    assert names["decoder.layers.5.self_attn.urpe.theta"].shape == (1, 1, 32)
    assert names["decoder.layers.0.glu.l2.weight"].shape == (1365, 512)
    assert "decoder.output_projection.weight" in names


def kinds(name) -> list[Any]:
    spec: Any = core.resolve(pattern(name))
    return [block.mixer for block in spec.blocks]


def test_blocks_below_and_linear_attention_above():
    first, second = kinds("transnormer_t1"), kinds("transnormer_t2")
    for mixers in (first, second):
        assert [mixer.part.name for mixer in mixers] == 3 * ["diag_attention"] + 3 * ["norm_attention"]
    assert (first[0].weights, first[0].block, first[5].activation) == ("relu", 64, "elu")
    assert (second[0].weights, second[0].norm, second[5].activation) == ("softmax", None, "1+elu")
    assert first[0].norm.dim == first[5].norm.dim == 512


@pytest.mark.parametrize("name", SMALL[:2])
def test_equal_to_the_equations(name):
    assert compare(name, (21,), 2).failures() == []


def test_a_norm_bounds_what_a_denominator_does_not():
    """What the paper is about: weights that sum up to almost nothing, as those of ELU do."""
    weights = torch.tensor([[1.0, -1.0 + 1e-6]], dtype=torch.float64, requires_grad=True)
    values = torch.tensor([[1.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    norm = core.resolve(SimpleRMSNorm.Config(dim=2)).build()
    divided, normed = weights @ values / weights.sum(-1, keepdim=True), norm(weights @ values)
    assert divided.abs().max() > 1e5 > 2 > normed.abs().max()
    gradients = [torch.autograd.grad(y[0, 0], weights, retain_graph=True)[0].norm() for y in (divided, normed)]
    assert gradients[0] > 1e5 > 1 > gradients[1] > 0


def test_the_reflection_keeps_products_and_positions_turn_them_by_distance():
    torch.manual_seed(0)
    part: Any = core.resolve(MirroredRotary.Config(head_dim=8)).build().double()
    x, y = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)

    def product(first, second):
        return (part(x, torch.tensor([first])) * part(y, torch.tensor([second]))).sum()

    torch.testing.assert_close(product(0, 0), (x * y).sum())
    torch.testing.assert_close(product(3, 7), product(1003, 1007))
    assert (product(3, 7) - product(3, 8)).abs() > 1e-3


@torch.no_grad()
def test_the_state_of_a_stream_does_not_grow():
    torch.manual_seed(0)
    model = af.create_model("transnormer_micro").double().eval()
    ids = torch.randint(256, (2, 60))
    state = model.init_state(2, 60)
    shapes = [tuple(state.blocks[0].keys.shape), tuple(state.blocks[1].memory.shape)]
    given = []
    for piece in ids.split((1, 30, 1, 28), 1):
        scores, state = model.stream(piece, state)
        given.append(scores)
        assert [tuple(state.blocks[0].keys.shape), tuple(state.blocks[1].memory.shape)] == shapes
    torch.testing.assert_close(torch.cat(given, 1), model(ids), rtol=0, atol=1e-11)


@torch.no_grad()
def test_packed_sequences_with_pads():
    torch.manual_seed(0)
    model = af.create_model("transnormer_rectified_micro").double().eval()
    ids, keep = torch.randint(256, (1, 40)), torch.ones(1, 40, dtype=torch.bool)
    keep[:, 37:] = False  # behind the last sequence
    packed = model(Tokens(ids, keep, torch.tensor([0, 21, 40])))
    torch.testing.assert_close(packed[:, :21], model(ids[:, :21]), rtol=0, atol=1e-11)
    torch.testing.assert_close(packed[:, 21:37], model(ids[:, 21:37]), rtol=0, atol=1e-11)


@pytest.mark.parametrize("format", ["official", "oracle"])
def test_weights_go_through_other_names_and_back(format):
    ours, again = af.create_model("transnormer_micro"), af.create_model("transnormer_micro")
    af.load_weights(again, af.dump_weights(ours, format=format), format=format)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_texts():
    assert data_config("transnormer_t1")["vocabulary"] == 267744
    assert data_config("transnormer_mini") == {"vocabulary": 256, "tokenizer": "bytes", "context": None}
    assert core.resolve(pattern("transnormer_micro", vocabulary=50)).vocabulary == 50
