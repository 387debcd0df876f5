"""What the axes select equals an index selection written by hand, to the bit: how to read the strings."""

import torch
from torch import Tensor

from .axes_cutting import cut
from .axes_models import example


def rows(*indices: int) -> Tensor:
    return torch.tensor(indices)


def test_vit_fused_qkv_by_heads_and_residual_width() -> None:
    model, _ = example("vit_micro")  # 64 channels in 2 heads of 32
    dim = torch.randperm(64, generator=torch.Generator().manual_seed(0))[:50]
    whole, part = model.state_dict(), cut(model, {"dim": dim, "blocks.1.mixer.heads": rows(1)}).state_dict()
    fused = whole["blocks.1.mixer.qkv.weight"].view(3, 2, 32, 64)
    assert torch.equal(part["blocks.1.mixer.qkv.weight"], fused[:, [1]].flatten(0, 2)[:, dim])
    assert torch.equal(part["blocks.1.mixer.qkv.bias"], whole["blocks.1.mixer.qkv.bias"].view(3, 2, 32)[:, 1].flatten())
    assert torch.equal(part["blocks.1.mixer.proj.weight"], whole["blocks.1.mixer.proj.weight"][dim, 32:])
    assert torch.equal(part["blocks.0.mixer.qkv.weight"], whole["blocks.0.mixer.qkv.weight"][:, dim])
    assert torch.equal(part["blocks.0.channel_mixer.fc2.weight"], whole["blocks.0.channel_mixer.fc2.weight"][dim])
    for name in ("embed.prefix", "embed.positions", "norm.weight", "blocks.3.norm1.bias", "head.linear.weight"):
        assert torch.equal(part[name], whole[name][..., dim])
    assert torch.equal(part["embed.patch.weight"], whole["embed.patch.weight"][dim])


def test_swin_bias_table_by_heads_and_merging_by_width() -> None:
    model, _ = example("swin_mini")  # 64 channels in 2 heads, then 128 in 4
    dim, heads = torch.randperm(64, generator=torch.Generator().manual_seed(0))[:40], rows(3, 1)
    smaller = cut(model, {"stages.0.dim": dim, "stages.1.blocks.0.mixer.heads": heads})
    whole, part = model.state_dict(), smaller.state_dict()
    table, qkv = "stages.1.blocks.0.mixer.table", "stages.1.blocks.0.mixer.qkv.weight"
    assert torch.equal(part[table], whole[table][:, [3, 1]])
    assert torch.equal(part[qkv], whole[qkv].view(3, 4, 32, 128)[:, [3, 1]].flatten(0, 2))
    merged = torch.cat([dim + 64 * neighbour for neighbour in range(4)])
    assert torch.equal(part["stages.1.down.reduction.weight"], whole["stages.1.down.reduction.weight"][:, merged])
    assert torch.equal(part["stages.1.down.norm.weight"], whole["stages.1.down.norm.weight"][merged])
    shifted = "stages.0.blocks.1.mixer"  # no axis of the mask goes: it is made anew with the model, and is the same
    assert torch.equal(smaller.get_submodule(shifted).mask, model.get_submodule(shifted).mask)


def test_edgenext_cascade_by_the_width_of_its_groups() -> None:
    model, _ = example("edgenext_micro")  # 96 channels: 2 groups of 32 are convolved, 32 pass
    width, rest = torch.arange(0, 32, 3), rows(31, 0)
    sdta = "stages.2.blocks.1.mixer."
    smaller = cut(model, {sdta + "width": width, sdta + "rest": rest})
    whole, part = model.state_dict(), smaller.state_dict()
    dim = torch.cat((width, 32 + width, 64 + rest))
    assert smaller.spec.stages[2].dim == len(dim)
    for i in (0, 1):
        filters = sdta + f"convolutions.{i}.weight"
        assert torch.equal(part[filters], whole[filters][width])
    assert torch.equal(part[sdta + "attention.qkv.weight"], whole[sdta + "attention.qkv.weight"][:, dim])
    assert torch.equal(part["stages.2.blocks.0.mixer.weight"], whole["stages.2.blocks.0.mixer.weight"][dim])
    assert torch.equal(part["stages.2.down.weight"], whole["stages.2.down.weight"][dim])
    assert torch.equal(part["head.linear.weight"], whole["head.linear.weight"][:, dim])


def test_grouped_queries_by_rotary_pairs_and_the_tied_table_by_tokens() -> None:
    model, _ = example("grouped_query_decoder")  # 3 key heads, 2 query heads for each, 4 pairs a head
    tokens, half, heads = torch.arange(0, 23, 2), rows(0, 3), rows(2, 0)
    mixer = "blocks.0.mixer."
    keep = {"vocabulary": tokens, mixer + "kv_heads": heads, mixer + "position.half": half}
    smaller = cut(model, keep)
    whole, part = model.state_dict(), smaller.state_dict()
    q, k, v = whole[mixer + "qkv.weight"].split((48, 24, 24))
    queries = q.view(3, 2, 2, 4, 18)[[2, 0]][:, :, :, [0, 3]].flatten(0, 3)
    keys, values = (t.view(3, 2, 4, 18)[[2, 0]][:, :, [0, 3]].flatten(0, 2) for t in (k, v))
    assert torch.equal(part[mixer + "qkv.weight"], torch.cat((queries, keys, values)))
    assert torch.equal(part[mixer + "position.pair"], whole[mixer + "position.pair"][[0, 3]])
    assert torch.equal(part["embed.table.weight"], whole["embed.table.weight"][::2])
    assert "head.linear.weight" not in part
    assert smaller.head.linear.weight is smaller.embed.table.weight


def test_mamba2_projection_by_groups_and_by_states() -> None:
    model, _ = example("mamba2")  # 3 groups of 2 heads, 4 channels a head, 5 states
    groups, states = rows(2, 0), rows(1, 2, 4)
    mixer = "blocks.1.mixer."
    smaller = cut(model, {mixer + "groups": groups, mixer + "state": states})
    whole, part = model.state_dict(), smaller.state_dict()
    z, x, b, c, dt = whole[mixer + "in_proj.weight"].split((24, 24, 15, 15, 6))
    heads = [t.view(3, 2, 4, 18)[[2, 0]].flatten(0, 2) for t in (z, x)]
    shared = [t.view(3, 5, 18)[[2, 0]][:, [1, 2, 4]].flatten(0, 1) for t in (b, c)]
    steps = dt.view(3, 2, 18)[[2, 0]].flatten(0, 1)
    assert torch.equal(part[mixer + "in_proj.weight"], torch.cat((*heads, *shared, steps)))
    assert torch.equal(part[mixer + "skip"], whole[mixer + "skip"][[4, 5, 0, 1]])
    assert torch.equal(part[mixer + "norm.weight"], whole[mixer + "norm.weight"].view(3, 8)[[2, 0]].flatten())
