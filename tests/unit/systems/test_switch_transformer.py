"""Switch Transformers: what its file says beyond what every system must show."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer import core
from anyformer.parts.channel_mixers.capped_experts import CappedExperts
from anyformer.parts.embeds.token_table import Tokens
from anyformer.skeletons.encoder_decoder import Texts
from anyformer.systems.language.switch_transformer import SIZES, SMALL, pattern
from anyformer.verify.filling import fill
from anyformer.verify.oracle_of.switch_transformer import oracle

NAME = "switch_micro"
NAMES = json.loads((Path(__file__).parents[2] / "keys/switch_transformer.transformers.json").read_text())["sizes"]


def ids(*shape, seed=1):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def pair():
    """The small model and transformers', with the same weights, in float64."""
    ours, theirs = af.create_model(NAME).double().eval(), oracle(NAME)
    fill(ours)
    theirs.load_state_dict(af.dump_weights(ours, format="oracle"), assign=True)
    theirs.tie_weights()
    return ours.requires_grad_(False), theirs


def test_every_second_layer_has_experts():
    assert sorted(NAMES) == sorted(set(SIZES) - set(SMALL))
    spec: Any = core.resolve(pattern("switch_base_16"))
    for side in (spec.encoder, spec.decoder):
        routed = [i for i, block in enumerate(side.blocks) if block.channel_mixer.part is CappedExperts]
        assert routed == [1, 3, 5, 7, 9, 11]
        assert {block.mixer.scale for block in side.blocks} == {1.0}
        assert [block.mixer.position.part.name for block in side.blocks] == ["relative_bias", *["shared"] * 11]
    mixer = spec.decoder.blocks[1].channel_mixer
    assert (mixer.count, mixer.capacity, mixer.router.jitter, mixer.experts[0].hidden) == (16, 64, 0.01, 3072)
    assert spec.encoder.blocks[0].mixer.position.bidirectional
    assert not spec.decoder.blocks[0].mixer.position.bidirectional


def test_pads_and_full_experts_are_those_of_transformers(pair):
    ours, theirs = pair
    source, target, keep = ids(3, 70), ids(3, 90, seed=2), torch.arange(70) < torch.tensor([[70], [5], [33]])
    wanted = theirs(input_ids=source[:1], decoder_input_ids=target[:1]).logits.detach()
    given = ours(Texts(source[:1], target[:1]))
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-12)
    unlimited = core.edit(
        ours.spec, {f"{side}.blocks.1.channel_mixer.capacity": 1000 for side in ("encoder", "decoder")}
    )
    other = core.build(unlimited).double()
    other.load_state_dict(ours.state_dict())
    assert (other(Texts(source[:1], target[:1])) - wanted).abs().max() > 1e-3  # some experts were full
    with torch.no_grad():
        padded = theirs(input_ids=source, attention_mask=keep.long(), decoder_input_ids=target).logits
    torch.testing.assert_close(ours(Texts(source, target, keep)), padded, rtol=0, atol=1e-12)


def test_generation_is_that_of_transformers(pair):
    ours, theirs = pair  # as long as no expert is full: theirs forget in a stream how many tokens it took
    source, keep = ids(3, 9), torch.arange(9) < torch.tensor([[9], [4], [6]])
    wanted = theirs.generate(source, attention_mask=keep.long(), max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert ours.generate(source, keep=keep, max_new_tokens=8).tolist() == wanted.tolist()


def test_losses_are_those_of_transformers(pair):
    ours, theirs = pair  # of one layer of experts a side and one row; theirs pools several
    source, target, sink = ids(1, 20), ids(1, 25, seed=2), {}
    ours(Texts(source, target), sink)
    with torch.no_grad():
        wanted = theirs(input_ids=source, decoder_input_ids=target, output_router_logits=True)
    for name, kind in (("load_balance", "aux"), ("router_z", "z")):
        for given, side in zip(sink[name], ("encoder", "decoder"), strict=True):
            torch.testing.assert_close(given, wanted[f"{side}_{kind}_loss"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sink["load_balance_loss"], [0.01 * balance for balance in sink["load_balance"]])


def test_weights_come_back(pair):
    ours, _ = pair
    weights = af.dump_weights(ours, format="transformers")
    again = af.load_weights(af.create_model(NAME).double(), weights, format="transformers")
    assert all(map(torch.equal, again.state_dict().values(), ours.state_dict().values()))


def test_experts_drop_features_while_training():
    torch.manual_seed(0)
    model = af.create_model(NAME, expert_dropout=0.4)
    expert, x = model.decoder.blocks[1].channel_mixer.experts[0], torch.randn(50, 64)
    plain = expert.fc2(expert.fc1(x, "relu"))
    assert torch.equal(expert.eval()(x, core.Context()), plain)
    hidden = []
    expert.train().fc2.register_forward_pre_hook(lambda _, given: hidden.append(given[0]))
    expert(x, core.Context())
    dropped = (hidden[0] == 0) & (expert.fc1(x) > 0)
    assert 0.35 < dropped.sum() / (expert.fc1(x) > 0).sum() < 0.45
    with pytest.raises(core.UsageError, match=r"a dropout of 1\.0 leaves nothing"):
        af.create_model(NAME, expert_dropout=1.0)


def test_an_experts_branch_takes_a_scale_in():
    expert = af.create_model(NAME).decoder.blocks[1].channel_mixer.experts[0].eval().requires_grad_(False)
    x, scale = torch.randn(3, 64), torch.randn(64)
    before = expert(x, core.Context())
    assert expert.scaled(scale)
    torch.testing.assert_close(expert(x, core.Context()), before * scale)


def test_weights_start_with_the_deviations_of_transformers():
    torch.manual_seed(0)
    model = af.create_model("switch_mini")
    block = model.decoder.blocks[1]
    deviations = {
        model.decoder.embed.table: 1.0,
        block.mixer.q: (128 * 64) ** -0.5,
        block.cross_mixer.kv: 128**-0.5,
        block.channel_mixer.experts[0].fc1: 128**-0.5,
        model.encoder.blocks[0].mixer.position: 128**-0.5,
    }
    for part, deviation in deviations.items():
        assert 0.8 < part.weight.std().item() / deviation < 1.2


def test_a_stream_with_full_experts_is_the_whole(pair):
    ours, _ = pair
    source, target = ids(2, 30), ids(2, 80, seed=2)
    state, given = ours.init_state(2, 80, ours.encode(Tokens(source))), []
    for piece in target.split((50, 1, 29), 1):
        scores, state = ours.stream(piece, state)
        given.append(scores)
    assert int(state.blocks[1].channel_mixer.counts.max()) > SIZES[NAME].capacity
    torch.testing.assert_close(torch.cat(given, 1), ours(Texts(source, target)), rtol=0, atol=1e-12)
