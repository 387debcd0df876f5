"""GPT-2: what its file says beyond what every system must show."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer import core
from anyformer.parts.embeds.token_table import Tokens
from anyformer.systems.references.gpt2 import SIZES, SMALL, pattern
from anyformer.verify.filling import fill
from anyformer.verify.oracle_of.gpt2 import oracle

PAPER = sorted(set(SIZES) - set(SMALL))
NAMES = json.loads((Path(__file__).parents[2] / "keys/gpt2.transformers.json").read_text())["sizes"]
PARAMETERS = {
    "gpt2": 124_439_808,
    "gpt2_medium": 354_823_168,
    "gpt2_large": 774_030_080,
    "gpt2_xl": 1_557_611_200,
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


@pytest.fixture(scope="module")
def pair():
    """The small model and transformers', with the same weights, in float64."""
    ours, theirs = af.create_model("gpt2_micro").double().eval(), oracle("gpt2_micro")
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
    again = af.load_weights(af.create_model("gpt2_micro").double(), weights, format=format)
    assert all(map(torch.equal, again.state_dict().values(), ours.state_dict().values()))


def test_texts_are_no_longer_than_the_context(pair):
    with pytest.raises(core.UsageError, match="257 tokens has more than the 256 places"):
        pair[0](torch.zeros(1, 257, dtype=torch.int64))


def test_what_ends_a_branch_starts_smaller():
    block: Any = core.resolve(pattern("gpt2_xl")).blocks[0]
    starts = [block.mixer.qkv, block.mixer.proj, block.channel_mixer.fc1, block.channel_mixer.fc2]
    assert [linear.init.value for linear in starts] == pytest.approx([0.02, 0.02 / 96**0.5] * 2)
