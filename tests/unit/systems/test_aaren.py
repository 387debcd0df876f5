"""Aaren: what its file says beyond what every system must show."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

import anyformer as af
from anyformer import core
from anyformer.systems.language.aaren import SMALL, Aaren, data_config, pattern
from anyformer.verify.equal import compare
from anyformer.verify.oracle_of import aaren as transcription

LAYER = 3_152_896  # as printed


@pytest.fixture(scope="module")
def mixer() -> Any:
    torch.manual_seed(0)
    part = core.resolve(Aaren.Config(dim=32, heads=4)).build().double().eval()
    for parameter in part.parameters():
        parameter.data.normal_(std=0.4)
    return part.requires_grad_(False)


def attention(mixer, x, keep=None):
    """Causal softmax attention of torch, every query the learned one."""
    tokens = x.shape[1]
    q = mixer.q_proj(mixer.query).expand(len(x), tokens, -1)
    q, k, v = (y.unflatten(-1, (4, -1)).transpose(1, 2) for y in (q, mixer.k_proj(x), mixer.v_proj(x)))
    seen = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    seen = seen if keep is None else seen & keep[:, None, None]
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
    return mixer.out_proj(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("tokens", [1, 33, 150])
def test_it_is_causal_softmax_attention_of_the_learned_query(mixer, tokens):
    x = torch.randn(2, tokens, 32, dtype=torch.float64)
    ours, theirs = mixer(x, core.Context()), attention(mixer, x)
    assert (ours - theirs).abs().max() <= 1e-14 * theirs.abs().max() * tokens**0.5
    single = mixer.float()(x.float(), core.Context())
    mixer.double()
    assert (single - theirs).abs().max() <= 2e-6 * theirs.abs().max()


def test_masked_tokens_are_no_keys(mixer):
    x, keep = torch.randn(2, 50, 32, dtype=torch.float64), torch.rand(2, 50) > 0.4
    keep[:, 0] = True
    torch.testing.assert_close(mixer(x, core.Context(mask=keep)), attention(mixer, x, keep), rtol=0, atol=1e-12)


def test_the_transcription_is_causal_softmax_attention_too(mixer):
    literal = transcription.Aaren(32, 4).double()
    names = {"query": "query", **{f"{long}_projection": f"{long[0]}_proj" for long in ("query", "key", "value")}}
    names["out_projection"] = "out_proj"
    literal.load_state_dict(
        {
            key: mixer.state_dict()[key.replace(key.split(".")[0], names[key.split(".")[0]], 1)]
            for key in literal.state_dict()
        }
    )
    x = torch.randn(2, 40, 32, dtype=torch.float64)
    torch.testing.assert_close(literal(x), attention(mixer, x), rtol=0, atol=1e-13)


@torch.no_grad()
def test_the_state_does_not_grow():
    """Two numbers and a mean a head, after one token and after many, and no less exact."""
    torch.manual_seed(0)
    model = af.create_model("aaren_micro").double().eval()
    ids = torch.randint(256, (2, 300))
    state = model.init_state(2, 300)
    given = []
    for piece in ids.split((1, 200, 1, 98), 1):
        scores, state = model.stream(piece, state)
        given.append(scores)
        assert [tuple(block.memory.shape) for block in state.blocks] == [(2, 2, 34)] * 2
    torch.testing.assert_close(torch.cat(given, 1), model(ids), rtol=0, atol=1e-11)


def test_parameters_are_those_that_the_paper_prints():
    with torch.device("meta"):
        model = af.create_model("aaren_series")
    assert [sum(parameter.numel() for parameter in block.parameters()) for block in model.blocks] == [LAYER] * 2
    assert model.blocks[0].mixer.query.numel() == 512  # all that a Transformer's layer has not
    control: Any = core.resolve(pattern("aaren_control"))
    assert (len(control.blocks), control.dim, control.blocks[0].mixer.heads) == (3, 128, 1)


def test_equal_to_the_equations():
    assert compare("aaren_micro", (21,), 2).failures() == []


def test_weights_go_through_the_other_names_and_back():
    ours, again = af.create_model("aaren_micro"), af.create_model("aaren_micro")
    af.load_weights(again, af.dump_weights(ours, format="oracle"), format="oracle")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_texts():
    assert SMALL == ("aaren_micro", "aaren_mini")
    assert data_config("aaren_series") == {"vocabulary": 256, "tokenizer": "bytes", "context": None}
    assert core.resolve(pattern("aaren_micro", vocabulary=50)).vocabulary == 50
