"""BERT: what its file says beyond what every system must show; it sees later tokens, so that it neither streams nor packs."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import anyformer as af
from anyformer import core
from anyformer.parts.embeds.token_table import Tokens
from anyformer.systems.references.bert import SIZES, SMALL, Segments, pattern
from anyformer.verify.equal import compare
from anyformer.verify.filling import fill
from anyformer.verify.oracle_of.bert import oracle

PAPER = sorted(set(SIZES) - set(SMALL))
NAMES = json.loads((Path(__file__).parents[2] / "keys/bert.transformers.json").read_text())["sizes"]
PARAMETERS = {"bert_base_uncased": 109_514_298, "bert_large_uncased": 335_174_458}


@pytest.mark.parametrize("name", PAPER)
def test_names_shapes_and_parameters_are_those_of_the_published_files(name):
    with torch.device("meta"):
        model = af.create_model(name)
    dumped = af.dump_weights(model, format="transformers")
    assert {key: list(tensor.shape) for key, tensor in dumped.items()} == NAMES[name]
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_every_published_size_has_its_names():
    assert sorted(NAMES) == PAPER


@pytest.mark.parametrize("name", SMALL)
def test_equal_to_transformers(name):
    assert compare(name, (11,), 2).failures() == []


@pytest.fixture(scope="module")
def pair():
    """The small model and transformers', with the same weights, in float64."""
    ours, theirs = af.create_model("bert_micro").double().eval(), oracle("bert_micro")
    fill(ours)
    theirs.load_state_dict(af.dump_weights(ours, format="oracle"), assign=True)
    return ours.requires_grad_(False), theirs


def ids(*shape):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("left", [True, False])
def test_pads_and_pairs_are_those_of_transformers(pair, left):
    ours, theirs = pair
    places, lengths = torch.arange(9), torch.tensor([[9], [4], [1]])
    keep = places >= 9 - lengths if left else places < lengths
    positions, types = (keep.cumsum(1) - 1).clamp(min=0), (places >= 5).long().expand(3, 9)
    with torch.no_grad():
        wanted = theirs(ids(3, 9), attention_mask=keep.long(), position_ids=positions, token_type_ids=types).logits
    given = ours(Segments(ids(3, 9), keep, types))
    torch.testing.assert_close(given[keep], wanted[keep], rtol=0, atol=1e-12)
    assert not torch.allclose(given[keep], ours(Tokens(ids(3, 9), keep))[keep])


def test_pads_may_hold_anything_and_rows_are_by_themselves(pair):
    ours, text = pair[0], ids(1, 6)
    keep = torch.tensor([[True] * 6 + [False] * 3, [True] * 9])
    both = torch.cat((torch.cat((text, torch.full((1, 3), 7)), 1), ids(2, 9)[1:]))
    torch.testing.assert_close(ours(Tokens(both, keep))[0, :6], ours(text)[0], rtol=0, atol=1e-12)


def test_every_token_sees_every_other(pair):
    ours, text = pair[0], ids(1, 8)
    before = ours(text)
    for place in range(8):
        other = text.clone()
        other[0, place] = (other[0, place] + 1) % 256
        assert ((ours(other) - before).abs().amax(-1) > 1e-6).all()


def test_texts_that_it_refuses(pair):
    with pytest.raises(core.UsageError, match="257 tokens has more than the 256 places"):
        pair[0](torch.zeros(1, 257, dtype=torch.int64))
    with pytest.raises(core.UsageError, match="packed sequences would see one another"):
        pair[0](Tokens(ids(1, 5), offsets=torch.tensor([0, 2, 5])))


@pytest.mark.parametrize("format", ["transformers", "oracle"])
def test_weights_come_back(pair, format):
    ours, _ = pair
    weights = af.dump_weights(ours, format=format)
    assert ("cls.predictions.decoder.bias" in weights) == (format == "oracle")
    again = af.load_weights(af.create_model("bert_micro").double(), weights, format=format)
    assert all(map(torch.equal, again.state_dict().values(), ours.state_dict().values()))


def test_it_learns_what_was_masked():
    torch.manual_seed(0)
    model, text = af.create_model("bert_micro").train(), ids(4, 12)
    masked = torch.zeros(4, 12, dtype=torch.bool)
    masked[:, 2::4] = True
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(60):
        loss = F.cross_entropy(model(text.masked_fill(masked, 0))[masked], text[masked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


def test_the_features_are_of_every_layer_and_normalised(pair):
    stages, final, _ = pair[0].stages_of(ids(2, 5))
    assert [stage.shape for stage in stages] == [(2, 5, 64)] * 2
    assert torch.equal(stages[-1], final)
    block: Any = core.resolve(pattern("bert_large_uncased")).blocks[0]
    assert (block.mixer.head_dim, block.channel_mixer.hidden, block.norm2.eps) == (64, 4096, 1e-12)
