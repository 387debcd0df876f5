"""H-Net: what its file says beyond what every system must show."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import anyformer as af
from anyformer import core
from anyformer.core.store import key_map
from anyformer.parts.down.dynamic_chunks import Chunks, DynamicChunks
from anyformer.parts.embeds.token_table import Tokens
from anyformer.parts.up.smoothed_chunks import SmoothedChunks
from anyformer.systems.language.h_net import SIZES, SMALL, pattern
from anyformer.verify.filling import fill
from anyformer.verify.oracle_of.h_net import oracle

PAPER = sorted(set(SIZES) - set(SMALL))
NAMES = json.loads((Path(__file__).parents[2] / "keys/h_net.official.json").read_text())["sizes"]
PARAMETERS = {
    "hnet_1stage_L": 679_405_312,
    "hnet_1stage_XL": 1_270_833_920,
    "hnet_2stage_L": 874_315_264,
    "hnet_2stage_XL": 1_603_492_224,
    "hnet_2stage_XL_chinese": 1_755_285_888,
    "hnet_2stage_XL_code": 1_654_090_112,
}


def random(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def ids(*shape):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(1))


def chunks(**settings):
    part = core.build(DynamicChunks.Config(dim=8, ratio=4, **settings)).double()
    fill(part)
    return part


@pytest.mark.parametrize("name", PAPER)
def test_names_shapes_and_parameters_are_those_of_the_official_code(name):
    with torch.device("meta"):
        model = af.create_model(name)
    dumped = af.dump_weights(model, format="official")
    assert {key: list(tensor.shape) for key, tensor in dumped.items()} == NAMES[name]
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]


def test_every_published_size_has_its_names():
    assert sorted(NAMES) == PAPER


def test_the_published_layers():
    outer: Any = core.resolve(pattern("hnet_2stage_XL")).blocks
    assert [block.part.name for block in outer] == ["mixer_block"] * 4 + ["hierarchical_block"] + ["mixer_block"] * 4
    middle = outer[4].blocks
    assert [block.part.name for block in middle[:2]] == ["pre_norm_block", "mixer_block"]
    assert (middle[0].mixer.window, middle[0].mixer.head_dim, middle[0].mixer.position.turned) == (1024, 96, 48)
    inner = middle[5].blocks
    assert (len(inner), inner[0].mixer.window, inner[0].mixer.position.turned) == (27, None, 64)
    assert (outer[4].width, middle[5].width, outer[4].down.ratio) == (1536, 2048, 3)
    # 4 + 4 branches outside, 6 + 6 in the middle, 54 inside
    deviations = [block.channel_mixer.fc2.init.value for block in (middle[0], inner[0])]
    assert deviations == pytest.approx([0.02 * 20**-0.5, 0.02 * 74**-0.5])


def test_weights_go_through_the_official_names_and_back():
    ours, again = af.create_model("h_net_2stage_micro"), af.create_model("h_net_2stage_micro")
    af.load_weights(again, af.dump_weights(ours, format="official"), format="official")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_the_router_learns_what_the_equations_say():
    """The comparison of all gradients leaves the router's out, because nothing depends on the scale of its weights."""
    ours, theirs = af.create_model("h_net_2stage_micro").double(), oracle("h_net_2stage_micro")
    fill(ours)
    theirs.load_state_dict(af.dump_weights(ours, format="oracle"), assign=True)
    theirs.requires_grad_(True)
    weights = random(1, 14, 256)
    (ours(ids(1, 14)) * weights).sum().backward()
    (theirs(ids(1, 14))[-1] * weights).sum().backward()
    gradients = key_map(ours, "oracle").dump({name: p.grad for name, p in ours.named_parameters()})
    wanted = {name: p.grad for name, p in theirs.named_parameters() if "_proj_layer" in name}
    assert len(wanted) == 4
    for name, gradient in wanted.items():
        assert gradient.abs().max() > 1e-3
        torch.testing.assert_close(gradients[name], gradient, rtol=0, atol=1e-10 * gradient.abs().max().item())


def test_before_training_neighbours_are_compared_as_they_are():
    """And the way around a stage is closed."""
    stage = af.create_model("h_net_micro").blocks[1]
    x = random(1, 3, 64)
    likeness = F.cosine_similarity(x[:, 1:], x[:, :-1], dim=-1)
    probability = stage.double().down(x, core.Context())[2].probability
    torch.testing.assert_close(probability, F.pad((1 - likeness) / 2, (1, 0), value=1.0))
    assert not stage.skip.weight.any()


def test_a_chunk_starts_at_a_half():
    part = chunks()
    x = random(1, 6, 8)
    part.query.weight.data.zero_()  # all are then as unlike as alike
    assert part(x, core.Context())[2].starts.all()


def test_the_ratio_loss():
    part, x, sink = chunks(loss=0.5), random(3, 30, 8), {}
    trace = part(x, core.Context(sink=sink))[2]
    share, mean = trace.starts.double().mean(), trace.probability.mean()
    ratio = 4 / 3 * (3 * share * mean + (1 - share) * (1 - mean))
    torch.testing.assert_close(sink["ratio"][0], ratio)
    torch.testing.assert_close(sink["ratio_loss"][0], ratio / 2)
    keep = torch.arange(40).expand(3, -1) < 30
    part(torch.cat((x, random(3, 10, 8)), 1), core.Context(mask=keep, sink=sink))
    torch.testing.assert_close(sink["ratio"][1], ratio, msg="pads count")


def test_on_target_the_ratio_loss_is_one_and_a_router_comes_there_by_itself():
    part, x = chunks(), random(4, 64, 8)
    optimizer = torch.optim.Adam(part.parameters(), 0.02)
    shares = []
    for _ in range(150):
        sink: dict = {}
        trace = part(x, core.Context(sink=sink))[2]
        shares.append(trace.starts.double().mean().item())
        optimizer.zero_grad()
        sink["ratio_loss"][0].backward()
        optimizer.step()
    assert shares[0] > 0.4
    assert 0.1 < sum(shares[-30:]) / 30 < 0.35, shares[-30:]  # chunks of 4 tokens are wanted
    assert abs(sink["ratio"][0].item() - 1) < 0.2


def test_a_chunk_needs_more_than_one_token():
    with pytest.raises(core.UsageError, match="give more than 1"):
        core.build(DynamicChunks.Config(dim=8, ratio=1))


def test_no_export():
    with pytest.raises(core.UsageError, match="how many chunks there are depends on the data"):
        torch.export.export(chunks(), (random(1, 9, 8), core.Context()))


@pytest.mark.parametrize("batch", [1, 3])
def test_smoothing_is_a_moving_average(batch):
    """Within a text, whatever the lengths: 70 chunks are more than the operation takes together."""
    starts = torch.rand(batch, 120, generator=torch.Generator().manual_seed(2)) < 0.6
    starts[:, 0] = True
    probability = torch.where(starts, 0.5 + 0.5 * random(batch, 120).sigmoid(), 0.5 * random(batch, 120).sigmoid())
    counts = starts.sum(1)
    most = int(counts.max())
    keep = torch.arange(most) < counts[:, None]
    weight = torch.zeros(batch, most, dtype=torch.float64).masked_scatter(keep, probability[starts])
    x = random(batch, most, 5).masked_fill(~keep[..., None], torch.nan)  # what is not there reaches nobody
    given = core.build(SmoothedChunks.Config(dim=5))(
        x, Chunks(probability, starts, starts.cumsum(1), weight, keep, None)
    )
    for row in range(batch):
        smooth, number = torch.zeros(5, dtype=torch.float64), 0
        for token in range(120):
            if starts[row, token]:
                p = probability[row, token].clamp(1e-4, 1 - 1e-4)
                smooth, number = p * x[row, number] + (1 - p) * smooth, number + 1
            torch.testing.assert_close(given[row, token], smooth, rtol=0, atol=1e-12)


def test_rows_that_start_chunks_at_different_places_stream_as_they_do_alone():
    """One token at a time: some rows go down, some do not, and all are continued with pads and packed."""
    model = af.create_model("h_net_2stage_micro").double().eval().requires_grad_(False)
    fill(model)
    raw = ids(3, 24)
    state, given = model.init_state(3, 24), []
    for token in raw.split(1, dim=1):
        scores, state = model.stream(token, state)
        given.append(scores)
    counts = state.blocks[1].down.count.flatten()
    assert len(set(counts.tolist())) > 1, "all rows have as many chunks"
    alone = torch.cat([model(row) for row in raw.split(1)])
    torch.testing.assert_close(torch.cat(given, 1), alone, rtol=0, atol=1e-11)
    keep = torch.arange(24) < torch.tensor([[24], [0], [7]])
    scores, after = model.stream(Tokens(raw, keep), model.init_state(3, 24))
    torch.testing.assert_close(scores[keep], alone[keep], rtol=0, atol=1e-11)
    assert after.blocks[1].down.count[1] == 0, "a row without tokens has no chunk"


def test_generated_rows_are_those_of_prompts_alone():
    model = af.create_model("h_net_micro").double().eval()
    fill(model)
    prompts = [[72, 105], [1, 2, 3, 4, 5, 6, 7]]
    together = model.generate(prompts, max_new_tokens=9)
    assert together == [model.generate([prompt], max_new_tokens=9)[0] for prompt in prompts]
