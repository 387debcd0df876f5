"""Blocks inside of blocks: what goes down, what comes up, and what passes by."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from anyformer import core
from anyformer.core.pattern import parse_part
from anyformer.parts.down.dynamic_chunks import DynamicChunks
from anyformer.parts.up.smoothed_chunks import SmoothedChunks
from anyformer.skeletons.blocks import layer_block
from anyformer.skeletons.decoder import Decoder
from anyformer.skeletons.hierarchical import HierarchicalBlock

NORM = parse_part("rms_norm")
LAYER = layer_block(parse_part("grouped_query_attention(kv_heads=2)"), parse_part("gated_mlp"), NORM)


class Second(core.Down, name="test_second"):
    """Every second token, the first among them."""

    def forward(self, x, ctx):
        return x[:, ::2], dataclasses.replace(ctx, layout=core.Layout((-(-x.shape[1] // 2),))), x.shape[1]


class Twice(core.Up, name="test_twice"):
    """Every token twice."""

    def forward(self, x, trace):
        return x.repeat_interleave(2, 1)[:, :trace]


def block(down=None, up=None, blocks=(LAYER, LAYER), width=12):
    torch.manual_seed(0)
    down, up = down or DynamicChunks.Config(ratio=3), up or SmoothedChunks.Config()
    made = core.build(
        HierarchicalBlock.Config(dim=8, width=width, norm=NORM, down=down, blocks=blocks, norm2=NORM, up=up)
    )
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return made.double().eval()


X = torch.randn(4, 15, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def test_any_down_and_up_can_stand_in_it():
    made = block(Second.Config(), Twice.Config())
    x = made.norm(X)
    y = torch.cat((x[:, ::2], made.pad.expand(4, 8, 4)), -1)
    for layer in made.blocks:
        y = layer(y, core.Context())
    wanted = made.skip(x) + made.norm2(y)[..., :8].repeat_interleave(2, 1)[:, :15]
    assert torch.equal(made(X, core.Context()), wanted)


def test_without_additional_channels_there_is_no_parameter_for_them():
    made = block(width=8)
    assert made.pad is None
    assert made(X, core.Context()).shape == X.shape


def test_inside_it_is_not_narrower_than_outside():
    with pytest.raises(core.UsageError, match="whole number from 0 on"):
        block(width=6)


def test_a_row_is_as_it_is_alone_whatever_lies_at_masked_places():
    made = block()
    alone = [made(X[i : i + 1], core.Context()) for i in range(4)]
    torch.testing.assert_close(made(X, core.Context()), torch.cat(alone), rtol=0, atol=1e-12)
    left = torch.cat((torch.full((4, 3, 8), torch.nan, dtype=torch.float64), X), 1)
    keep = torch.arange(18).expand(4, -1) >= 3
    torch.testing.assert_close(
        made(left, core.Context(mask=keep))[keep], torch.cat(alone).flatten(0, 1), rtol=0, atol=1e-12
    )


def test_hierarchies_stand_in_hierarchies_and_stream():
    inner = HierarchicalBlock.Config(
        norm=NORM, down=DynamicChunks.Config(ratio=2), blocks=(LAYER,), norm2=NORM, up=SmoothedChunks.Config(), width=14
    )
    made = block(blocks=(LAYER, inner, LAYER))
    whole = made(X, core.Context())
    for cut in (1, 4, 14):
        state, given = made.init_state(4, 15, X), []
        for piece in X.split(cut, dim=1):
            y, state = made.stream(piece, core.Context(), state)
            given.append(y)
        torch.testing.assert_close(torch.cat(given, 1), whole, rtol=0, atol=1e-12)


def test_nothing_is_computed_inside_where_no_chunk_starts():
    made = block()
    calls = []
    made.blocks[0].norm1.register_forward_hook(lambda *_: calls.append(1))
    row, state = X[:1, :1].expand(1, 6, 8), made.init_state(1, 15, X)
    made.down.query.weight.data.copy_(made.down.key.weight)  # like tokens are then one chunk
    for token in row.split(1, dim=1):
        _, state = made.stream(token, core.Context(), state)
    assert (len(calls), state.down.count.item()) == (1, 1)


def test_what_passes_by_is_not_rounded_under_autocast():
    made = block().float()
    x = X.float()
    seen = []
    made.skip.register_forward_hook(lambda _, given, out: seen.append((given[0], out)))
    with torch.autocast("cpu", torch.bfloat16):
        made(x, core.Context())
    (given, out), weight = seen[0], made.skip.weight
    assert given.dtype == out.dtype == torch.float32
    assert torch.equal(out, F.linear(given, weight, made.skip.bias))


def test_a_decoder_of_text_refuses_a_mixer_inside_that_sees_later_tokens():
    noncausal = layer_block(parse_part("attention(heads=2)"), parse_part("mlp"), NORM)
    stage = HierarchicalBlock.Config(
        norm=NORM, down=DynamicChunks.Config(ratio=2), blocks=(noncausal,), norm2=NORM, up=SmoothedChunks.Config()
    )
    whole = Decoder.pattern(dim=8, layers="1 x mamba2(p=4)")
    with pytest.raises(core.UsageError, match="cannot stand in a decoder"):
        core.build(whole.replace(blocks=(stage,)))
