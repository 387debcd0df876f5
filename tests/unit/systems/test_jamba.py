"""Jamba: what its file says beyond what every system must show."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer import core
from anyformer.parts.channel_mixers.experts import Experts
from anyformer.parts.embeds.token_table import Tokens
from anyformer.parts.token_mixers.grouped_query_attention import GroupedQueryAttention
from anyformer.systems.language.jamba import SIZES, SMALL, pattern
from anyformer.verify.equal import compare
from anyformer.verify.filling import fill
from anyformer.verify.oracle_of.jamba import oracle

NAMES = json.loads((Path(__file__).parents[2] / "keys/jamba.transformers.json").read_text())["sizes"]


def test_the_published_layers():
    spec: Any = core.resolve(pattern("jamba_v0.1"))
    mixers, channels = [block.mixer for block in spec.blocks], [block.channel_mixer for block in spec.blocks]
    assert [i for i, mixer in enumerate(mixers) if mixer.part is GroupedQueryAttention] == [4, 12, 20, 28]
    assert [i for i, mixer in enumerate(channels) if mixer.part is Experts] == list(range(1, 32, 2))
    assert (channels[1].count, channels[1].router.k, channels[0].hidden) == (16, 2, 14336)
    assert mixers[4].position is None
    assert (mixers[0].inner, mixers[0].step_rank, mixers[0].state) == (8192, 256, 16)


def test_names_shapes_and_parameters_are_those_of_the_published_files():
    assert sorted(NAMES) == sorted(set(SIZES) - set(SMALL))
    with torch.device("meta"):
        model = af.create_model("jamba_v0.1")
    dumped = af.dump_weights(model, format="transformers")
    assert {key: list(tensor.shape) for key, tensor in dumped.items()} == NAMES["jamba_v0.1"]
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    unused = sum(size for name, size in sizes.items() if ".experts." in name) * 14 // 16
    assert round((sum(sizes.values()) - unused) / 1e9) == 12  # "12B active parameters"


def test_equal_to_transformers():
    assert compare("jamba_micro", (11,), 2).failures() == []


@pytest.fixture(scope="module")
def pair():
    """The small model and transformers', with the same weights, in float64."""
    ours, theirs = af.create_model("jamba_micro").double().eval(), oracle("jamba_micro")
    fill(ours)
    theirs.load_state_dict(af.dump_weights(ours, format="oracle"), assign=True)
    return ours.requires_grad_(False), theirs


def ids(*shape):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(1))


def test_pads_at_the_left_are_those_of_transformers(pair):
    ours, theirs = pair
    raw, keep = ids(3, 9), torch.arange(9) >= torch.tensor([[0], [5], [8]])
    with torch.no_grad():
        wanted = theirs(raw, attention_mask=keep.long()).logits
    torch.testing.assert_close(ours(Tokens(raw, keep))[keep], wanted[keep], rtol=0, atol=1e-12)


def test_a_stream_is_that_of_transformers(pair):
    ours, theirs = pair
    state, cache = ours.init_state(2, 12), None
    for piece in ids(2, 12).split((9, 1, 1, 1), dim=1):
        given, state = ours.stream(piece, state)
        with torch.no_grad():
            out = theirs(piece, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        torch.testing.assert_close(given, out.logits, rtol=0, atol=1e-12)


def test_the_balance_is_that_of_transformers(pair):
    ours, theirs = pair
    raw, sink = ids(2, 20), {}
    ours(raw, sink)
    with torch.no_grad():
        wanted = theirs(raw, output_router_logits=True).aux_loss
    assert len(sink["load_balance"]) == 1  # a layer of experts; theirs pools several
    torch.testing.assert_close(sink["load_balance"][0], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("format", ["transformers", "oracle"])
def test_weights_come_back(pair, format):
    ours, _ = pair
    weights = af.dump_weights(ours, format=format)
    again = af.load_weights(af.create_model("jamba_micro").double(), weights, format=format)
    assert all(map(torch.equal, again.state_dict().values(), ours.state_dict().values()))
