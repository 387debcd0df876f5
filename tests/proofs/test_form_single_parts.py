"""Form: a single part, with the context it is called with, exports and compiles in one piece.

The context is a pytree, so that its tensors are inputs of the program and its sizes are constants. What cannot be
exported says so in `refuses`, and is held to it.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.utils import _pytree as pytree

from anyformer import core
from anyformer.core import serial
from anyformer.core.binding import axis_table
from anyformer.parts.channel_mixers.mlp import MLP
from anyformer.parts.down.patch_down import PatchDown
from anyformer.parts.embeds.patch_embed import PatchEmbed
from anyformer.parts.heads.classifier import MeanPoolHead
from anyformer.parts.norms.layer_norm import LayerNorm
from anyformer.parts.positions.rotary import Rotary
from anyformer.parts.token_mixers.attention import Attention
from anyformer.parts.token_mixers.depthwise import DepthwiseConvolution
from anyformer.parts.token_mixers.grouped_query_attention import GroupedQueryAttention

from .test_form_branches import ToyClassExchange
from .test_form_dynamic_chunks import ToyChunk
from .test_form_lora import ToyLora
from .test_form_mesh_edges import ToyContactMesh, scene
from .test_form_prefix_tokens import ToyBesidePrefix, ToyTwoHeads
from .test_form_queries import Image, ToyCrossAttention, ToyQueryEmbed
from .test_form_ragged_windows import ToySampleMeanHead, ToyWindows
from .test_form_routed_experts import ToyExperts, ToyTopRouter
from .test_form_stream import ToyCachedAttention, ToyRetention

Given = tuple[object, ...]


def on_grid() -> Given:
    return torch.randn(2, 4, 6, 8), core.Context(layout=core.Layout((4, 6)))


def with_prefix() -> Given:
    return torch.randn(2, 8, 8), core.Context(layout=core.Layout((2, 3), prefix=2))


def masked() -> Given:
    mask = torch.arange(5) < torch.tensor([[3], [5]])
    return torch.randn(2, 5, 8), core.Context(layout=core.Layout((5,)), mask=mask)


def at_positions() -> Given:
    return torch.randn(2, 5, 8), core.Context(positions=torch.tensor([[0, 2, 5, 6, 7], [1, 2, 3, 4, 9]]))


def with_memory() -> Given:
    memory = (torch.randn(2, 4, 6, 8), core.Context(layout=core.Layout((4, 6)), mask=torch.rand(2, 24) > 0.3))
    return torch.randn(2, 3, 8), core.Context(layout=core.Layout((3,)), memory=memory)


def image() -> Given:
    return (Image(torch.randn(2, 1, 8, 12), torch.rand(2, 8, 12) > 0.3),)


def ragged() -> Given:
    return torch.randn(1, 20, 8), core.Context(offsets=torch.tensor([0, 8, 20]), coordinates=torch.randn(20, 3))


CONVOLUTION = DepthwiseConvolution.Config(dim=8, kernel=3)
ROTARY = Rotary.Config()
PARTS: list[tuple[core.Config, Callable[[], Given]]] = [
    (PatchEmbed.Config(dim=8, channels=3, patch=2), lambda: (torch.randn(2, 3, 8, 12),)),
    (LayerNorm.Config(dim=8), lambda: (torch.randn(2, 5, 8),)),
    (MLP.Config(dim=8), on_grid),
    (Attention.Config(dim=8, heads=2), masked),
    (GroupedQueryAttention.Config(dim=8, kv_heads=2, group=2, head_dim=2, position=ROTARY), at_positions),
    (CONVOLUTION, on_grid),
    (PatchDown.Config(inputs=8, dim=4, norm=LayerNorm.Config()), on_grid),
    (MeanPoolHead.Config(dim=8, num_classes=3), on_grid),
    (ToyTwoHeads.Config(dim=8, num_classes=3), with_prefix),
    (ToyBesidePrefix.Config(dim=8, mixer=CONVOLUTION.replace(dim=None)), with_prefix),
    (ToyRetention.Config(dim=8, heads=2, chunk=3), at_positions),
    (ToyCachedAttention.Config(dim=8, heads=2), at_positions),
    (ToyContactMesh.Config(dim=4, features=3), scene),
    (ToyClassExchange.Config(own=8, other=6, heads=2), lambda: (torch.randn(2, 5, 8), torch.randn(2, 9, 6))),
    (ToyQueryEmbed.Config(dim=8, queries=3, patch=PatchEmbed.Config(channels=1, patch=2)), image),
    (ToyCrossAttention.Config(dim=8, heads=2), with_memory),
    (ToyExperts.Config(dim=8, router=ToyTopRouter.Config(), members=(MLP.Config(hidden=6),) * 3), on_grid),
    (ToyLora.Config(inputs=8, outputs=4, rank=2), lambda: (torch.randn(2, 5, 8), "gelu", torch.randn(2, 5, 4))),
    (ToySampleMeanHead.Config(dim=8, num_classes=3), ragged),
]
REFUSED = [
    (ToyChunk.Config(dim=8), masked),
    (ToyWindows.Config(dim=8, heads=2, window=1.0), ragged),
]


def made(config: core.Config, given: Callable[[], Given]) -> tuple[core.Part, Given]:
    torch.manual_seed(0)
    example = given()
    part = core.build(config).eval()
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return part.to(next(leaf.dtype for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor))), example


def same(found: object, expected: object) -> None:
    """Records, contexts and traces too."""
    assert pytree.tree_structure(found) == pytree.tree_structure(expected)
    for a, b in zip(pytree.tree_leaves(found), pytree.tree_leaves(expected), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(("config", "given"), PARTS, ids=[config.part.name for config, _ in PARTS])
def test_part_exports_and_compiles_in_one_piece(config, given):
    part, example = made(config, given)
    expected = part(*example)
    same(torch.export.export(part, example).module()(*example), expected)
    torch.compiler.reset()
    same(torch.compile(part, fullgraph=True, backend="eager")(*example), expected)


@pytest.mark.parametrize(("config", "given"), REFUSED, ids=[config.part.name for config, _ in REFUSED])
def test_refused_export_is_impossible_for_the_reason_given(config, given):
    part, example = made(config, given)
    assert "depends on the data" in part.refuses["export"]
    with pytest.raises(GuardOnDataDependentSymNode):
        torch.export.export(part, example)


def test_tensors_of_the_context_are_inputs_with_a_free_batch():
    part, (x, ctx) = made(Attention.Config(dim=8, heads=2), masked)
    shapes, batch = torch.export.ShapesCollection(), torch.export.Dim("batch")
    shapes[x] = shapes[ctx.mask] = {0: batch}
    program = torch.export.export(part, (x, ctx), dynamic_shapes=shapes).module()
    others = torch.randn(7, 5, 8), core.Context(layout=ctx.layout, mask=torch.rand(7, 5) > 0.3)
    same(program(*others), part(*others))
    everyone = core.Context(layout=ctx.layout, mask=torch.ones(7, 5, dtype=torch.bool))
    assert (program(others[0], everyone) - program(*others)).abs().max() > 1e-3


def test_collecting_compiles_too():
    part, (x, ctx) = made(*PARTS[[config.part for config, _ in PARTS].index(ToyExperts)])
    sinks: list[core.Collected] = [{}, {}]
    for run, sink in zip((part, torch.compile(part, fullgraph=True, backend="eager")), sinks, strict=True):
        run(x, core.Context(layout=ctx.layout, sink=sink))
    same(*sinks)
    assert set(sinks[0]) == set(ToyTopRouter.collects)


@pytest.mark.parametrize(("config", "given"), PARTS + REFUSED, ids=[c.part.name for c, _ in PARTS + REFUSED])
def test_part_is_what_its_spec_and_axes_say(config, given):
    part, _ = made(config, given)
    assert serial.loads(serial.dumps(part.config)) == part.config
    table = axis_table(part.config)
    assert {name: table.shape(name) for name in part.state_dict()} == {
        name: tuple(tensor.shape) for name, tensor in part.state_dict().items()
    }
