"""Mamba: what its file says beyond what every system must show."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer import core
from anyformer.parts.embeds.token_table import Tokens
from anyformer.systems.language.mamba import SIZES, SMALL, data_config, pattern
from anyformer.verify.equal import compare
from anyformer.verify.filling import fill
from anyformer.verify.oracle_of.mamba import oracle

PAPER = sorted(set(SIZES) - set(SMALL))
FORMATS = ("official", "transformers")
KEYS = Path(__file__).parents[2] / "keys"
NAMES = {form: json.loads((KEYS / f"mamba.{form}.json").read_text())["sizes"] for form in FORMATS}
PARAMETERS = {
    "mamba_130m": 129_135_360,
    "mamba_370m": 371_516_416,
    "mamba_790m": 793_204_224,
    "mamba_1.4b": 1_372_178_432,
    "mamba_2.8b": 2_768_345_600,
}


def on_meta(name):
    with torch.device("meta"):
        return af.create_model(name)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", PAPER)
def test_names_and_shapes_are_those_of_the_published_files(name, format):
    model = on_meta(name)
    dumped = af.dump_weights(model, format=format)
    assert {key: list(tensor.shape) for key, tensor in dumped.items()} == NAMES[format][name]
    theirs = {key: torch.empty(shape, device="meta") for key, shape in NAMES[format][name].items()}
    af.load_weights(model, theirs, format=format)


@pytest.mark.parametrize("name", PAPER)
def test_parameters_are_those_of_the_published_models(name):
    assert sum(parameter.numel() for parameter in on_meta(name).parameters()) == PARAMETERS[name]


def test_every_published_size_has_its_names():
    assert sorted(NAMES["official"]) == sorted(NAMES["transformers"]) == PAPER


def test_equal_to_transformers():
    assert compare("mamba_micro", (11,), 2).failures() == []


@pytest.fixture(scope="module")
def pair():
    """The small model and transformers', with the same weights, in float64."""
    ours, theirs = af.create_model("mamba_micro").double().eval(), oracle("mamba_micro")
    fill(ours)
    theirs.load_state_dict(af.dump_weights(ours, format="oracle"), assign=True)
    return ours.requires_grad_(False), theirs


@pytest.mark.parametrize("left", [True, False])
def test_pads_are_those_of_transformers(pair, left):
    ours, theirs = pair
    ids = torch.randint(256, (3, 9), generator=torch.Generator().manual_seed(1))
    places, lengths = torch.arange(9), torch.tensor([[9], [4], [1]])
    keep = places >= 9 - lengths if left else places < lengths
    with torch.no_grad():
        wanted = theirs(ids, attention_mask=keep.long()).logits
    torch.testing.assert_close(ours(Tokens(ids, keep))[keep], wanted[keep], rtol=0, atol=1e-12)


def test_a_stream_is_that_of_transformers(pair):
    ours, theirs = pair
    ids = torch.randint(256, (2, 10), generator=torch.Generator().manual_seed(2))
    state, cache = ours.init_state(2, 10), None
    for piece in ids.split((7, 1, 1, 1), dim=1):
        given, state = ours.stream(piece, state)
        with torch.no_grad():
            out = theirs(piece, cache_params=cache, use_cache=True)
        cache = out.cache_params
        torch.testing.assert_close(given, out.logits, rtol=0, atol=1e-12)


@pytest.mark.parametrize("format", [*FORMATS, "oracle"])
def test_weights_come_back(pair, format):
    ours, _ = pair
    weights = af.dump_weights(ours, format=format)
    assert ("lm_head.weight" in weights) == (format != "transformers")
    again = af.load_weights(af.create_model("mamba_micro").double(), weights, format=format)
    assert all(map(torch.equal, again.state_dict().values(), ours.state_dict().values()))


def test_branches_start_smaller_in_deeper_models():
    spec: Any = core.resolve(pattern("mamba_130m"))
    assert spec.blocks[0].mixer.out_proj.init == core.Init("uniform_fan_in", 24**-0.5)
    assert spec.blocks[0].norm.eps == spec.norm.eps == 1e-5


def test_the_vocabulary_can_be_chosen():
    spec: Any = core.resolve(pattern("mamba_micro", vocabulary=31))
    assert (spec.vocabulary, spec.embed.vocabulary, spec.head.vocabulary) == (31, 31, 31)
    assert [data_config(name)["vocabulary"] for name in ("mamba_130m", *SMALL)] == [50280, 256, 256]


def test_a_long_text_needs_no_more_state(pair):
    ours, _ = pair
    short, long = (ours.init_state(1, capacity) for capacity in (1, 100_000))
    assert [block.scan.shape for block in short.blocks] == [block.scan.shape for block in long.blocks]
