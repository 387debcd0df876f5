"""Mamba-2-Hybrid: what its file says beyond what every system must show."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer import core
from anyformer.parts.embeds.token_table import Tokens
from anyformer.systems.language.mamba2_hybrid import SIZES, SMALL, QueryGroups, data_config, pattern
from anyformer.verify.equal import compare
from anyformer.verify.filling import fill
from anyformer.verify.oracle_of.mamba2_hybrid import oracle

PAPER = sorted(set(SIZES) - set(SMALL))
FORMATS = ("official", "transformers")
KEYS = Path(__file__).parents[2] / "keys"
NAMES = {form: json.loads((KEYS / f"mamba2_hybrid.{form}.json").read_text())["sizes"] for form in FORMATS}


def on_meta(name):
    with torch.device("meta"):
        return af.create_model(name)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", PAPER)
def test_names_and_shapes_are_those_of_the_authors(name, format):
    model = on_meta(name)
    dumped = af.dump_weights(model, format=format)
    assert {key: list(tensor.shape) for key, tensor in dumped.items()} == NAMES[format][name]
    theirs = {key: torch.empty(shape, device="meta") for key, shape in NAMES[format][name].items()}
    af.load_weights(model, theirs, format=format)


def test_every_published_size_has_its_names():
    assert sorted(NAMES["official"]) == sorted(NAMES["transformers"]) == PAPER


def test_the_hybrid_has_the_layers_of_the_paper():
    """Of 56 layers 43 % are Mamba-2, 7 % attention and 50 % perceptrons, without positions and without biases."""
    spec: Any = core.resolve(pattern("mamba2_hybrid_8b"))
    assert Counter(SIZES["mamba2_hybrid_8b"]["layers"]) == {"M": 24, "*": 4, "-": 28}
    mamba, attention, perceptron = spec.blocks[0].mixer, spec.blocks[10].mixer, spec.blocks[1].channel_mixer
    assert (mamba.heads, mamba.p, mamba.groups, mamba.state) == (128, 64, 8, 128)
    assert (attention.kv_heads, attention.group, attention.head_dim, attention.position) == (8, 4, 128, None)
    assert (perceptron.hidden, perceptron.activation, perceptron.fc1.bias) == (16384, "gelu", False)
    assert sum(parameter.numel() for parameter in on_meta("mamba2_hybrid_8b").parameters()) == 8_654_517_248


@pytest.mark.parametrize("name", ["mamba2_micro", "mamba2_hybrid_micro"])
def test_equal_to_transformers(name):
    assert compare(name, (21,), 2).failures() == []


@pytest.fixture(scope="module", params=["mamba2_micro", "mamba2_hybrid_micro"])
def pair(request):
    """A small model and transformers', with the same weights, in float64."""
    ours, theirs = af.create_model(request.param).double().eval(), oracle(request.param)
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
    torch.testing.assert_close(ours(Tokens(ids, keep))[keep], wanted[keep], rtol=0, atol=1e-11)


def test_a_stream_is_that_of_transformers(pair):
    ours, theirs = pair
    word = "cache_params" if theirs.config.model_type == "mamba2" else "past_key_values"
    ids = torch.randint(256, (2, 10), generator=torch.Generator().manual_seed(2))
    state, cache = ours.init_state(2, 10), None
    for piece in ids.split((7, 1, 1, 1), dim=1):
        given, state = ours.stream(piece, state)
        with torch.no_grad():
            out = theirs(piece, **{word: cache}, use_cache=True)
        cache = out[word]
        torch.testing.assert_close(given, out.logits, rtol=0, atol=1e-11)


def test_a_stream_in_pieces_is_the_whole(pair):
    ours, _ = pair
    ids = torch.randint(256, (2, 70), generator=torch.Generator().manual_seed(3))
    state, scores = ours.init_state(2, 70), []
    for piece in ids.split((66, 3, 1), dim=1):
        given, state = ours.stream(piece, state)
        scores.append(given)
    torch.testing.assert_close(torch.cat(scores, 1), ours(ids), rtol=0, atol=1e-11)


@pytest.mark.parametrize("format", [*FORMATS, "oracle"])
def test_weights_come_back(pair, format):
    ours, _ = pair
    weights = af.dump_weights(ours, format=format)
    again = af.load_weights(af.create_model(ours.model_name).double(), weights, format=format)
    assert all(map(torch.equal, again.state_dict().values(), ours.state_dict().values()))


def test_attention_stands_key_head_by_key_head_in_megatron():
    roles = {"q": 4, "k": 2, "v": 2}  # heads, of 2 channels
    ours = torch.tensor([[ord(role) * 10.0 + head] for role, heads in roles.items() for head in range(heads)])
    (theirs,) = QueryGroups(group=2, head_dim=2).backward([ours.repeat_interleave(2, 0)])
    heads = [f"{chr(int(number) // 10)}{int(number) % 10}" for number in theirs[::2, 0]]
    assert heads == ["q0", "q1", "k0", "v0", "q2", "q3", "k1", "v1"]


def test_branches_start_smaller_in_deeper_models():
    hybrid: Any = core.resolve(pattern("mamba2_hybrid_8b"))
    assert hybrid.blocks[0].mixer.out_proj.init == core.Init("normal", 0.02 * 56**-0.5)
    assert hybrid.blocks[10].mixer.proj.init == hybrid.blocks[1].channel_mixer.fc2.init
    assert hybrid.blocks[1].channel_mixer.fc2.init == core.Init("normal", 0.02 * 112**-0.5)
    pure: Any = core.resolve(pattern("mamba2_130m"))
    assert pure.blocks[0].mixer.out_proj.init == core.Init("uniform_fan_in", 24**-0.5)


def test_the_vocabulary_can_be_chosen():
    spec: Any = core.resolve(pattern("mamba2_hybrid_micro", vocabulary=31))
    assert (spec.vocabulary, spec.embed.vocabulary, spec.head.vocabulary) == (31, 31, 31)
    names = ("mamba2_hybrid_8b", "mamba2_130m", *SMALL)
    assert [data_config(name)["vocabulary"] for name in names] == [256000, 50288, 256, 256, 256]
