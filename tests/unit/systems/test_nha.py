"""Native hybrid attention: what its file says beyond what every system must show."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

import anyformer as af
from anyformer import core
from anyformer.core import registry
from anyformer.systems.language.nha import SIZES, SMALL, NativeHybridAttention, data_config, pattern
from anyformer.verify.equal import compare
from anyformer.verify.filling import fill

PARAMETERS = {"nha_340m": 347_415_552, "nha_1.3b": 1_376_929_792}


def made(window, slots=3) -> Any:
    part = core.resolve(NativeHybridAttention.Config(dim=16, heads=2, slots=slots, window=window)).build()
    fill(part)
    return part.double().eval().requires_grad_(False)


def features(tokens, rows=2):
    return torch.randn(rows, tokens, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("name", PARAMETERS)
def test_names_and_parameters_of_the_published_sizes(name):
    with torch.device("meta"):
        model = af.create_model(name)
    names = af.dump_weights(model, format="official")
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[name]
    size = SIZES[name]
    assert tuple(names["model.layers.0.attn.f_proj.weight"].shape) == (size["heads"] * size["slots"], size["dim"])
    assert tuple(names["model.layers.23.attn.g_norm.weight"].shape) == (size["dim"],)
    assert ("lm_head.weight" in names) is not size["tie"]


def test_equal_to_the_equations():
    assert compare("nha_micro", (21,), 2).failures() == []


def test_layers_differ_in_their_windows_alone():
    blocks: Any = core.resolve(pattern("nha_mini")).blocks
    assert tuple(block.mixer.window for block in blocks) == (0, 8, 8, 32)
    assert len({block.mixer.replace(window=0) for block in blocks}) == 1
    narrower = core.edit(core.resolve(pattern("nha_mini")), {"blocks.3.mixer.window": 8})
    assert narrower.blocks[3] == narrower.blocks[2]


def test_a_window_of_all_tokens_is_softmax_attention_beside_empty_slots():
    part, x = made(window=30), features(12)
    q, k, v, _ = part.in_proj(x).split((16, 16, 16, 6), -1)
    q, k, v = (t.unflatten(-1, (2, 8)).transpose(1, 2) for t in (q, k, F.silu(v)))
    q, k = (part.position(t, torch.arange(12)) for t in (q, k))
    scores = (8**-0.5 * q @ k.mT).masked_fill(torch.ones(12, 12, dtype=torch.bool).triu(1), -torch.inf)
    shares = F.pad(scores, (3, 0)).softmax(-1)[..., 3:]  # each of the three slots scores 0 and gives nothing
    expected = part.out_proj(part.norm(F.silu((shares @ v).transpose(1, 2).flatten(2))))
    assert (part(x, core.Context()) - expected).abs().max() <= 1e-12


def test_what_leaves_the_window_is_not_forgotten():
    part, x = made(window=4), features(20)
    other = x.clone()
    other[:, 0] += 1
    changed = (part(x, core.Context()) - part(other, core.Context())).abs().amax((0, 2))
    assert (changed > 1e-9).all()


def test_without_a_window_places_do_not_matter():
    part, x = made(window=0), features(9)
    moved = core.Context(positions=torch.arange(9) + 100)
    assert torch.equal(part(x, core.Context()), part(x, moved))
    near = made(window=3)
    assert (near(x, core.Context()) - near(x, moved)).abs().max() <= 1e-12  # but for rounding, distances alone do


@pytest.mark.parametrize("window", [0, 1, 4, 30])
@pytest.mark.parametrize("cut", [(3, 1, 1, 7), (12,), (1,) * 12])
def test_a_stream_through_windows_of_all_widths(window, cut):
    part, x = made(window), features(12)
    mask = torch.ones(2, 12, dtype=torch.bool)
    whole = part(x, core.Context())
    state, rows, outs, start = part.init_state(2, 12, x), part.init_state(2, 40, x), [], 0
    for piece in x.split(cut, 1):
        places = torch.arange(start, start + piece.shape[1])
        y, state = part.stream(piece, core.Context(positions=places), state)
        masked, rows = part.stream(piece, core.Context(positions=places, mask=mask[:, places]), rows)
        assert (masked - y).abs().max() <= 1e-12
        outs.append(y)
        start += piece.shape[1]
    assert (torch.cat(outs, 1) - whole).abs().max() <= 1e-12
    assert (state.slot_values - rows.slot_values).abs().max() <= 1e-12


def test_a_stream_may_go_on_for_ever_where_the_window_fits_in():
    part, x = made(window=4), features(40)
    state = part.init_state(2, 5, x)
    y, _ = part.stream(x, core.Context(positions=torch.arange(40)), state)
    assert (y - part(x, core.Context())).abs().max() <= 1e-12
    wide = made(window=8)
    with pytest.raises(core.UsageError, match="room for 5 tokens, not for 6"):
        wide.stream(x[:, :6], core.Context(), wide.init_state(2, 5, x))


def test_a_window_is_not_negative():
    with pytest.raises(core.UsageError, match="cannot have -1 tokens"):
        made(window=-1)


def test_weights_go_through_the_official_names_and_back():
    ours, again = af.create_model("nha_mini"), af.create_model("nha_mini")
    af.load_weights(again, af.dump_weights(ours, format="official"), format="official")
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in ours.state_dict().items())


def test_texts():
    assert data_config("nha_340m")["vocabulary"] == 32000
    assert data_config("nha_mini") == {"vocabulary": 256, "tokenizer": "bytes", "context": None}
    assert core.resolve(pattern("nha_micro", vocabulary=50)).vocabulary == 50
    assert set(SMALL) < set(registry.system("nha").names)
