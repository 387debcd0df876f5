"""MASFormer: what its file says beyond what every system must show."""

import dataclasses
from typing import Any

import pytest
import torch

import anyformer as af
from anyformer import core
from anyformer.systems.language.masformer import BlockSparseAttention
from anyformer.verify.equal import compare
from anyformer.verify.filling import fill

TOKENS = 50


def mixer(block: int, before: int) -> Any:
    model = core.build(BlockSparseAttention.Config(dim=16, heads=2, block=block, before=before)).double()
    fill(model)
    return model.requires_grad_(False)


def rows(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, TOKENS, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def by_mask(model: Any, x: torch.Tensor) -> torch.Tensor:
    """The same with a mask of all pairs."""
    q, k, v = (heads.unflatten(-1, (2, 8)).transpose(1, 2) for heads in model.qkv(x).chunk(3, -1))
    place = torch.arange(x.shape[1])
    apart = place[:, None] // model.config.block - place // model.config.block
    seen = (apart <= model.config.before) & (place <= place[:, None])
    weights = (q @ k.mT * 8**-0.5).masked_fill(~seen, -torch.inf).softmax(-1)
    return model.proj((weights @ v).transpose(1, 2).flatten(2))


def streamed(model: Any, x: torch.Tensor, cut: tuple[int, ...], ctx: core.Context) -> torch.Tensor:
    state, outs, start = model.init_state(len(x), x.shape[1], x), [], 0
    for length in cut:
        piece = slice(start, start + length)
        mask = None if ctx.mask is None else ctx.mask[:, piece]
        out, state = model.stream(x[:, piece], dataclasses.replace(ctx, mask=mask), state)
        outs.append(out)
        start += length
    return torch.cat(outs, 1)


@pytest.mark.parametrize(("block", "before"), [(1, 0), (7, 0), (7, 1), (4, 3), (64, 1)])
def test_sees_its_block_and_those_before_in_a_pass_and_in_any_stream(block, before):
    model, x = mixer(block, before), rows()
    wanted = by_mask(model, x)
    torch.testing.assert_close(model(x, core.Context()), wanted, rtol=0, atol=1e-12)
    for cut in ((1,) * TOKENS, (3, 1, 30, 16), (TOKENS,)):
        torch.testing.assert_close(streamed(model, x, cut, core.Context()), wanted, rtol=0, atol=1e-12)


def test_blocks_count_what_counts_in_a_stream_too():
    model, x = mixer(4, 1), rows()
    keep = torch.rand(2, TOKENS, generator=torch.Generator().manual_seed(1)) < 0.6
    keep[1, :9] = False
    x[~keep] = torch.nan
    ctx = core.Context(mask=keep)
    for given in (model(x, ctx), streamed(model, x, (5, 1, 20, 24), ctx)):
        for row, kept in enumerate(keep):
            torch.testing.assert_close(given[row, kept], by_mask(model, x[row : row + 1, kept])[0], rtol=0, atol=1e-12)


def test_no_more_is_kept_than_is_seen_and_more_is_refused():
    model, x = mixer(4, 1), rows()
    assert model.init_state(2, TOKENS, x).keys.shape == (2, 2, 13, 8)
    with pytest.raises(core.UsageError, match="a stream of 50 tokens needs a state of that capacity, not 9"):
        model.stream(x, core.Context(), model.init_state(2, 9, x))


@pytest.mark.parametrize(("block", "before"), [(0, 1), (4, -1)])
def test_blocks_that_cannot_be_are_refused(block, before):
    with pytest.raises(core.UsageError, match="give block=1 or more"):
        mixer(block, before)


@pytest.fixture(scope="module")
def full_size() -> Any:
    with torch.device("meta"):
        return af.create_model("masformer_1.3b")


def test_full_attention_is_in_the_lowest_layers(full_size):
    kinds = [block.mixer.name for block in full_size.blocks]
    assert kinds == ["grouped_query_attention"] * 4 + ["block_sparse_attention"] * 20
    assert {block.mixer.config.scale for block in full_size.blocks} == {1.0}
    with pytest.raises(core.UsageError, match="8192 places"):
        full_size(torch.zeros(1, 8193, dtype=torch.int64, device="meta"))


def test_equal_to_gpt_neo_with_masks_of_blocks():
    assert compare("masformer_micro", (21,), 2).failures() == []
