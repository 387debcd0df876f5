"""How tokens are laid out, and what travels beside them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anyformer import core

grids = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


@given(grids, st.integers(0, 3), st.integers(1, 3))
def test_joining_undoes_splitting(grid, prefix, channels):
    layout = core.Layout(grid=grid, prefix=prefix)
    shape = (2, layout.tokens, channels) if prefix else (2, *grid, channels)
    x = torch.randn(shape)
    before, tokens = layout.split(x)
    assert before.shape == (2, prefix, channels)
    assert tokens.shape == (2, *grid, channels)
    assert torch.equal(layout.join(before, tokens), x)


@given(grids, st.integers(1, 3))
def test_splitting_takes_no_memory_and_keeps_the_order(grid, prefix):
    layout = core.Layout(grid=grid, prefix=prefix)
    x = torch.arange(layout.tokens, dtype=torch.float32)[None, :, None].clone()
    before, tokens = layout.split(x)
    assert before.flatten().tolist() == list(range(prefix))
    assert tokens.flatten().tolist() == list(range(prefix, layout.tokens))
    tokens[:] = -1.0
    assert (x[:, prefix:] == -1).all(), "both are views"


def test_gradients_pass_through_both_ways():
    layout = core.Layout(grid=(2, 3), prefix=1)
    x = torch.randn(1, 7, 2, requires_grad=True)
    before, tokens = layout.split(x)
    layout.join(before * 2, tokens * 3).sum().backward()
    assert x.grad[:, :1].unique().tolist() == [2.0]
    assert x.grad[:, 1:].unique().tolist() == [3.0]


def test_a_part_that_needs_a_grid_says_so():
    mixer = core.registry.part("depthwise_convolution")(
        core.resolve(core.registry.part("depthwise_convolution").Config(dim=4))
    )
    with_prefix = core.Context(layout=core.Layout(grid=(2, 2), prefix=1))
    for context in (with_prefix, core.Context()):
        with pytest.raises(
            core.UsageError, match="DepthwiseConvolution needs features on a grid without prefix tokens"
        ):
            mixer(torch.randn(1, 5, 4), context)
    assert core.grid_of(core.Context(layout=core.Layout(grid=(2, 3))), mixer) == (2, 3)


def test_nothing_is_collected_unless_asked_for():
    context = core.Context()
    context.collect("loss", torch.ones(1))
    assert context.sink is None
    sink = {}
    asked = core.Context(sink=sink)
    asked.collect("loss", torch.ones(1))
    asked.collect("loss", torch.zeros(1))
    assert [t.item() for t in sink["loss"]] == [1.0, 0.0]


def test_a_context_is_a_tree_of_tensors():
    context = core.Context(layout=core.Layout(grid=(2, 2)), mask=torch.ones(1, 4, dtype=torch.bool))
    leaves, tree = torch.utils._pytree.tree_flatten(context)
    assert any(leaf is context.mask for leaf in leaves)
    again = torch.utils._pytree.tree_unflatten(leaves, tree)
    assert again.layout == context.layout
    assert again.mask is context.mask


def test_contexts_cannot_be_changed_in_place():
    with pytest.raises(AttributeError):
        core.Context().mask = None


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (core.Context(layout=core.Layout(grid=(0, 2))), r"object needs at least one token, the grid is \(0, 2\)"),
        (core.Context(layout=core.Layout(grid=(1, 2)), mask=torch.ones(1, 2).bool()), "object works on the whole grid"),
    ],
)
def test_a_part_that_needs_its_whole_grid_says_what_is_missing(context, message):
    with pytest.raises(core.UsageError, match=message):
        core.grid_of(context, object())
