"""Learned positions: where they are counted from, and where they end."""

import pytest
import torch

from anyformer import core
from anyformer.parts.embeds.positioned_token_table import PositionedTokenTable
from anyformer.parts.embeds.token_table import Tokens, TokenTable
from anyformer.parts.heads.vocabulary import VocabularyHead
from anyformer.parts.norms.layer_norm import LayerNorm
from anyformer.parts.token_mixers.grouped_query_attention import GroupedQueryAttention
from anyformer.skeletons.blocks import layer_block
from anyformer.skeletons.decoder import Decoder


@pytest.fixture(scope="module")
def model() -> Decoder:
    torch.manual_seed(0)
    return core.build(
        Decoder.Config(
            dim=8,
            vocabulary=16,
            embed=PositionedTokenTable.Config(context=10, init=core.Init("normal", 1.0)),
            blocks=(layer_block(GroupedQueryAttention.Config(kv_heads=2), None, LayerNorm.Config()),),
            head=VocabularyHead.Config(linear=core.Shared.Config(path="embed.tokens.table")),
        )
    ).double()


def ids(*shape):
    return torch.randint(16, shape, generator=torch.Generator().manual_seed(1))


def test_adds_the_vector_of_the_place(model):
    embed, raw = model.embed, ids(2, 10)
    given, ctx = embed(raw)
    assert torch.equal(given, embed.tokens.table.weight[raw] + embed.positions)
    assert ctx.positions is None


def test_pads_and_packed_sequences_have_places_of_their_own(model):
    raw, keep = ids(1, 7), torch.arange(7) >= 3
    alone = model.embed(raw[:, 3:])[0]
    assert torch.equal(model.embed(Tokens(raw, keep[None]))[0][:, 3:], alone)
    packed = model.embed(Tokens(torch.cat((raw, raw, raw), 1), offsets=torch.tensor([0, 7, 14, 21])))[0]
    assert torch.equal(packed, model.embed(raw)[0].repeat(1, 3, 1))


def test_a_stream_counts_on(model):
    raw = ids(2, 10)
    state, given = model.init_state(2, 10), []
    for piece in raw.split((4, 1, 5), dim=1):
        scores, state = model.stream(piece, state)
        given.append(scores)
    torch.testing.assert_close(torch.cat(given, 1), model(raw), rtol=0, atol=1e-12)


def test_more_tokens_than_places_are_refused(model):
    with pytest.raises(core.UsageError, match="a text of 11 tokens has more than the 10 places"):
        model(ids(1, 11))
    _, state = model.stream(ids(1, 9), model.init_state(1, 12))
    with pytest.raises(core.UsageError, match="11 tokens"):
        model.stream(ids(1, 2), state)
    keep = torch.ones(1, 11, dtype=torch.bool)
    with pytest.raises(core.UsageError, match="11 tokens"):
        model(Tokens(ids(1, 11), keep))
    keep[:, 0] = False
    _, state = model.stream(Tokens(ids(1, 11), keep), model.init_state(1, 12))
    with pytest.raises(core.UsageError, match="11 tokens"):
        model.stream(ids(1, 1), state)


def test_no_tokens_and_no_rows(model):
    assert model(ids(2, 0)).shape == (2, 0, 16)
    assert model.embed(Tokens(ids(0, 11), torch.ones(0, 11, dtype=torch.bool)))[0].shape == (0, 11, 8)


def test_the_spec_names_what_it_holds():
    spec = core.resolve(PositionedTokenTable.Config(vocabulary=16, dim=8, context=10))
    assert spec.tokens == core.resolve(TokenTable.Config(vocabulary=16, dim=8))
