"""Zamba: what its file says beyond what every system must show."""

from typing import Any

import pytest
import torch

import anyformer as af
from anyformer import core
from anyformer.core.folders import Settings
from anyformer.parts.embeds.token_table import Tokens
from anyformer.systems.language.zamba import FOLDERS, Alternate, Repeated, SharingBlock, pattern
from anyformer.verify.equal import compare
from anyformer.verify.filling import fill
from anyformer.verify.oracle_of.zamba import oracle


def test_the_published_layers():
    spec: Any = core.resolve(pattern("zamba_7b_v1"))
    calls = [index for index, block in enumerate(spec.blocks) if block.part is SharingBlock]
    assert calls == [2, 7, 13, 19, 25, 31, 37, 43, 49, 55, 61, 67, 73]
    transformer, mamba = spec.blocks[2].transformer, spec.blocks[0].mixer
    assert all(spec.blocks[call].transformer.path == "blocks.2.transformer" for call in calls[1:])
    assert (transformer.head_dim, transformer.scale, transformer.norm1.dim) == (464, 232**-0.5, 7424)
    assert [(head.dim, head.step_rank, head.state) for head in mamba.heads] == [(3712, 232, 16)] * 2
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in af.create_model("zamba_7b_v1").parameters())
    assert round(2 * size / 1e9, 2) == 14.46  # 4.94, 4.96 and 4.57 GB have the published files


def test_equal_to_transformers():
    assert compare("zamba_micro", (11,), 2).failures() == []


@pytest.fixture(scope="module")
def pair():
    """The small model and transformers', with the same weights, in float64."""
    ours, theirs = af.create_model("zamba_micro").double().eval(), oracle("zamba_micro")
    fill(ours)
    theirs.load_state_dict(af.dump_weights(ours, format="oracle"), assign=True)
    return ours.requires_grad_(False), theirs


def ids(*shape):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(1))


def test_pads_at_the_left_are_those_of_transformers(pair):
    ours, theirs = pair
    raw, keep = ids(3, 9), torch.arange(9) >= torch.tensor([[0], [5], [8]])
    with torch.no_grad():
        wanted = theirs(raw, attention_mask=keep.long()).logits
    torch.testing.assert_close(ours(Tokens(raw, keep))[keep], wanted[keep], rtol=0, atol=1e-11)


def test_a_stream_is_that_of_transformers_and_has_a_cache_a_call(pair):
    ours, theirs = pair
    state, cache = ours.init_state(2, 12), None
    for piece in ids(2, 12).split((9, 1, 1, 1), dim=1):
        given, state = ours.stream(piece, state)
        with torch.no_grad():
            out = theirs(piece, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        torch.testing.assert_close(given, out.logits, rtol=0, atol=1e-11)
    first, second = (state.blocks[call].call.keys for call in (1, 2))
    assert first.shape == second.shape == (2, 4, 12, 32)
    assert not torch.equal(first, second)


def test_every_call_moves_with_the_block_that_all_share(pair):
    ours, _ = pair
    assert [name for name, _ in ours.named_parameters() if "qkv" in name] == ["blocks.1.transformer.qkv.weight"]
    assert ours.blocks[2].called is ours.blocks[1].transformer


@pytest.mark.parametrize("format", ["transformers", "oracle"])
def test_weights_come_back(pair, format):
    ours, _ = pair
    weights = af.dump_weights(ours, format=format)
    again = af.load_weights(af.create_model("zamba_micro").double(), weights, format=format)
    assert all(map(torch.equal, again.state_dict().values(), ours.state_dict().values()))


def test_copies_that_differ_are_refused(pair):
    weights = af.dump_weights(pair[0], format="oracle")
    name = "model.layers.2.shared_transf.self_attn.q_proj.weight"
    with pytest.raises(core.UsageError, match="shared_transf"):
        af.load_weights(af.create_model("zamba_micro"), {**weights, name: weights[name] + 1}, format="oracle")


def test_rows_by_turns_and_repeated():
    rows = torch.arange(6)[:, None]
    assert Alternate().forward([rows], [(6, 1)])[0].flatten().tolist() == [0, 2, 4, 1, 3, 5]
    assert Repeated(3).forward([rows, rows, rows + 1], [(6, 1)]) == []


def test_layers_that_call_are_counted_where_a_folder_does_not_name_them():
    published: Any = core.resolve(pattern("zamba_7b_v1"))
    values: Any = FOLDERS[0].write(published)
    assert values.pop("layers_block_type").count("hybrid") == 13
    counted: Any = core.resolve(FOLDERS[0].read(Settings(values, "config.json")))
    assert [block.part for block in counted.blocks] == [block.part for block in published.blocks]
    for kinds in (["mamba"] * 76, ["hybrid"], "hybrid"):
        with pytest.raises(core.UsageError, match="a kind for each of 76 layers"):
            FOLDERS[0].read(Settings({**values, "layers_block_type": kinds}, "config.json"))


def test_the_shared_block_needs_an_embed_that_remembers(pair):
    block = pair[0].blocks[1].transformer
    with pytest.raises(core.UsageError, match="take remembering_table as the embed"):
        block(torch.zeros(1, 3, 64, dtype=torch.float64), core.Context())
