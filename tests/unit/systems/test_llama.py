"""Llama: what its file says beyond what every system must show."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer import core
from anyformer.core import registry
from anyformer.parts.embeds.token_table import Tokens
from anyformer.systems.references.llama import SIZES, SMALL, data_config, pattern
from anyformer.verify.equal import compare
from anyformer.verify.filling import fill
from anyformer.verify.oracle_of.llama import oracle

PAPER = sorted(set(SIZES) - set(SMALL))
NAMES = json.loads((Path(__file__).parents[2] / "keys/llama.transformers.json").read_text())["sizes"]
PARAMETERS = {
    "llama_7b": 6_738_415_616,
    "tinyllama_1.1b": 1_100_048_384,
    "smollm2_135m": 134_515_008,
    "smollm2_360m": 361_821_120,
}


@pytest.mark.parametrize("name", PAPER)
def test_names_shapes_and_parameters_are_those_of_the_published_files(name):
    with torch.device("meta"):
        model = af.create_model(name)
    dumped = af.dump_weights(model, format="transformers")
    assert {key: list(tensor.shape) for key, tensor in dumped.items()} == NAMES[name]
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_every_published_size_has_its_names():
    assert sorted(NAMES) == PAPER


def test_equal_to_transformers():
    assert compare("llama_micro", (11,), 2).failures() == []


@pytest.fixture(scope="module")
def pair():
    """The small model and transformers', with the same weights, in float64."""
    ours, theirs = af.create_model("llama_micro").double().eval(), oracle("llama_micro")
    fill(ours)
    theirs.load_state_dict(af.dump_weights(ours, format="oracle"), assign=True)
    return ours.requires_grad_(False), theirs


@pytest.mark.parametrize("left", [True, False])
def test_pads_are_those_of_transformers(pair, left):
    ours, theirs = pair
    ids = torch.randint(256, (3, 9), generator=torch.Generator().manual_seed(1))
    places, lengths = torch.arange(9), torch.tensor([[9], [4], [1]])
    keep = places >= 9 - lengths if left else places < lengths
    positions = (keep.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        wanted = theirs(ids, attention_mask=keep.long(), position_ids=positions).logits
    torch.testing.assert_close(ours(Tokens(ids, keep))[keep], wanted[keep], rtol=0, atol=1e-12)


def test_a_stream_is_that_of_transformers(pair):
    ours, theirs = pair
    ids = torch.randint(256, (2, 12), generator=torch.Generator().manual_seed(2))
    state, cache = ours.init_state(2, 12), None
    for piece in ids.split((7, 1, 4), dim=1):
        given, state = ours.stream(piece, state)
        with torch.no_grad():
            out = theirs(piece, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        torch.testing.assert_close(given, out.logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize("format", ["transformers", "oracle"])
def test_weights_come_back(pair, format):
    ours, _ = pair
    weights = af.dump_weights(ours, format=format)
    assert ("lm_head.weight" in weights) == (format == "oracle")
    again = af.load_weights(af.create_model("llama_micro").double(), weights, format=format)
    assert all(map(torch.equal, again.state_dict().values(), ours.state_dict().values()))


def test_tied_tensors_that_differ_are_refused(pair):
    weights = af.dump_weights(pair[0], format="oracle")
    weights["lm_head.weight"] = weights["lm_head.weight"] + 1
    with pytest.raises(core.UsageError, match=r"do not fit the model: model\.embed_tokens\.weight, lm_head\.weight"):
        af.load_weights(af.create_model("llama_micro"), weights, format="oracle")


def test_the_vocabulary_can_be_chosen():
    spec: Any = core.resolve(pattern("llama_micro", vocabulary=31))
    assert (spec.vocabulary, spec.embed.vocabulary, spec.head.vocabulary) == (31, 31, 31)
    assert [data_config(name)["vocabulary"] for name in SMALL] == [256, 256]


def test_the_groups_share_keys():
    spec: Any = core.resolve(pattern("tinyllama_1.1b"))
    mixer = spec.blocks[0].mixer
    assert (mixer.kv_heads, mixer.group, mixer.head_dim) == (4, 8, 64)
    assert registry.system("llama").field == "references"


def test_transformers_is_needed(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(core.UsageError, match="come with transformers: pip install"):
        oracle("llama_micro")
