"""Dynamic MoE: how many experts a token takes, and what its file says beyond what every system must show."""

import json
from pathlib import Path

import pytest
import torch

import anyformer as af
from anyformer import core
from anyformer.core.pattern import parse_part
from anyformer.data.text import TextBatch
from anyformer.systems.language.dynamic_moe import SIZES, SMALL, TopP
from anyformer.train.language import NextToken
from anyformer.verify.equal import compare

NAMES = json.loads((Path(__file__).parents[2] / "keys/dynamic_moe.official.json").read_text())["sizes"]


def routed(scores, p):
    """The routing of tokens whose scores are these."""
    scores = torch.tensor(scores, dtype=torch.float64)
    router = core.build(TopP.Config(dim=scores.shape[1], experts=scores.shape[1], p=p)).double()
    with torch.no_grad():
        router.linear.weight.copy_(torch.eye(scores.shape[1]))
        return router(scores, core.Context())


SHARES = torch.tensor([[0.1, 0.7, 0.15, 0.05], [0.3, 0.25, 0.2, 0.25], [0.02, 0.03, 0.45, 0.5]]).double()


@pytest.mark.parametrize(
    ("p", "counts"), [(0.0, [1, 1, 1]), (0.4, [1, 2, 1]), (0.52, [1, 2, 2]), (0.8, [2, 4, 2]), (1.0, [4, 4, 4])]
)
def test_the_fewest_experts_whose_sum_exceeds_p(p, counts):
    experts, weights, shares = routed(SHARES.log().tolist(), p)
    assert (experts >= 0).sum(1).tolist() == counts
    torch.testing.assert_close(shares, SHARES)
    for token, (row, given) in enumerate(zip(experts.tolist(), weights.tolist(), strict=True)):
        assert given == pytest.approx([0.0 if e < 0 else SHARES[token, e].item() for e in row])  # not renormalised
        assert sum(given) >= min(p, 1 - 1e-12)
        taken = [weight for expert, weight in zip(row, given, strict=True) if expert >= 0]
        assert taken == sorted(taken, reverse=True)
        assert sum(taken[:-1]) <= p


@pytest.mark.parametrize(("count", "p", "width"), [(16, 0.4, 7), (4, 0.5, 3), (10, 0.7, 8), (4, 1.0, 4), (5, 0.0, 1)])
def test_equal_shares_need_the_most(count, p, width):
    experts, _, _ = routed([[0.0] * count, list(range(count))], p)
    assert experts.shape == (2, width)


@pytest.mark.parametrize("p", [-0.1, 1.1])
def test_thresholds_are_probabilities(p):
    with pytest.raises(core.UsageError, match="give a number from 0 to 1"):
        core.build(TopP.Config(dim=2, experts=3, p=p))


def test_a_text_says_it():
    spec = core.resolve(parse_part("experts(dim=6, count=3, router=top_p(p=0.6), balance=0.01)"))
    assert (spec.router.p, spec.router.experts, spec.balance) == (0.6, 3, 0.01)


def test_training_adds_both_losses_of_every_layer():
    torch.manual_seed(0)
    model, collected = af.create_model("dynamic_moe_micro"), {}
    ids = torch.randint(256, (2, 9))
    model(ids[:, :-1], collected)
    assert {name: len(values) for name, values in collected.items()} == dict.fromkeys(
        ("load_balance", "load_balance_loss", "routing_entropy", "routing_entropy_loss"), 2
    )
    batch = TextBatch(ids[:, :-1], ids[:, 1:], None)
    with_losses = NextToken().losses("student", {"student": model}, batch, 0)
    for block in model.blocks:
        mixer = block.channel_mixer
        mixer.config = mixer.config.replace(balance=0.0)
        mixer.router.config = mixer.router.config.replace(entropy=0.0)
    alone = NextToken().losses("student", {"student": model}, batch, 0)
    extra = 0.01 * sum(collected["load_balance"]) + 1e-4 * sum(collected["routing_entropy"])
    torch.testing.assert_close(with_losses - alone, extra, rtol=1e-4, atol=1e-6)


def test_the_entropy_is_that_of_the_probabilities():
    router, sink = core.build(TopP.Config(dim=3, experts=4)).double(), {}
    x = torch.randn(7, 3, dtype=torch.float64)
    wanted = torch.distributions.Categorical(logits=router.linear(x)).entropy().mean()
    router(x, core.Context(sink=sink))
    torch.testing.assert_close(sink["routing_entropy"], [wanted])
    router(x[:0], core.Context(sink=sink))
    assert sink["routing_entropy"][1] == 0


def test_names_shapes_and_parameters_are_those_of_the_authors_code():
    assert sorted(NAMES) == sorted(set(SIZES) - set(SMALL))
    with torch.device("meta"):
        model = af.create_model("dynamic_moe_3.5b")
    dumped = af.dump_weights(model, format="official")
    assert {key: list(tensor.shape) for key, tensor in dumped.items()} == NAMES["dynamic_moe_3.5b"]
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    unused = sum(size for name, size in sizes.items() if ".experts." in name) * 15 // 16
    assert round((sum(sizes.values()) - unused) / 1e6) == 374  # for one expert a token


def test_frequencies_of_the_authors_are_written_and_checked():
    model = af.create_model("dynamic_moe_micro")
    weights = af.dump_weights(model, format="official")
    name = "model.layers.1.self_attn.rotary_emb.inv_freq"
    torch.testing.assert_close(weights[name], 10000.0 ** -(torch.arange(8) / 8))
    again = af.load_weights(af.create_model("dynamic_moe_micro"), weights, format="official")
    assert all(map(torch.equal, again.state_dict().values(), model.state_dict().values()))
    weights[name] = weights[name] / 2
    with pytest.raises(core.UsageError, match=r"do not fit the model: model\.layers\.1\.self_attn\.rotary_emb"):
        af.load_weights(model, weights, format="official")


def test_equal_to_a_transcription():
    assert compare("dynamic_moe_micro", (11,), 2).failures() == []
