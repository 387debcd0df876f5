"""Form: a class and a distillation token before the grid, a head for each, both scores in one named record.

As in DeiT (arXiv:2012.12877, section 4): the second token learns from the teacher what the first learns from the label.
"""

import dataclasses
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.parts.channel_mixers.mlp import MLP
from anyformer.parts.embeds.patch_embed import PatchEmbed, PrefixedPatchEmbed
from anyformer.parts.norms.layer_norm import LayerNorm
from anyformer.parts.token_mixers.attention import Attention
from anyformer.parts.token_mixers.depthwise import DepthwiseConvolution
from anyformer.skeletons.blocks import layer_block
from anyformer.skeletons.isotropic import Isotropic


class Scores(NamedTuple):
    """What two heads give, each ``(batch, num_classes)``."""

    label: Tensor
    teacher: Tensor


class ToyTwoHeads(core.Head, name="toy_two_heads"):
    """Scores from the class token and from the distillation token."""

    class Config(core.Config):
        dim: int = core.bound()
        num_classes: int = 1000
        label: core.Config = core.linear()
        teacher: core.Config = core.linear()

    axes = {"label.weight": "num_classes dim", "teacher.weight": "num_classes dim"}

    def forward(self, x: Tensor, ctx: core.Context) -> Scores:
        prefix, _ = ctx.layout.split(x)
        return Scores(self.label(prefix[:, 0]), self.teacher(prefix[:, 1]))


class ToyBesidePrefix(core.TokenMixer, name="toy_beside_prefix"):
    """A mixer that needs a grid, in a network with prefix tokens, which wait beside."""

    class Config(core.Config):
        dim: int = core.bound()
        mixer: core.Config

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        prefix, grid = ctx.layout.split(x)
        bare = dataclasses.replace(ctx, layout=core.Layout(ctx.layout.grid))
        return ctx.layout.join(prefix, self.mixer(grid, bare))


def deit(*mixers: core.Config) -> core.Config:
    norm = LayerNorm.Config()
    return Isotropic.Config(
        dim=16,
        embed=PrefixedPatchEmbed.Config(patch=PatchEmbed.Config(channels=1, patch=4), prefix=2, rows=2, columns=3),
        blocks=tuple(layer_block(mixer, MLP.Config(ratio=2.0), norm) for mixer in mixers),
        norm=norm,
        head=ToyTwoHeads.Config(num_classes=4),
    )


ATTENTION = Attention.Config(heads=2)
IMAGES = torch.randn(16, 1, 8, 12, generator=torch.Generator().manual_seed(0))


def test_each_head_reads_its_own_token_and_attention_joins_them():
    for mixers, expected in (((), [(True, False), (False, True)]), ((ATTENTION,), [(True, True), (True, True)])):
        torch.manual_seed(0)
        model = core.build(deit(*mixers))
        reads = []
        for scores in model(IMAGES):
            (gradient,) = torch.autograd.grad(scores[:, 0].sum(), model.embed.prefix, retain_graph=True)
            reads.append(tuple((gradient[0] != 0).any(dim=1).tolist()))
        assert reads == expected


def test_part_that_needs_a_grid_refuses_the_prefix_and_works_beside_it():
    convolution = DepthwiseConvolution.Config(kernel=3)
    with pytest.raises(core.UsageError, match=r"DepthwiseConvolution needs features on a grid .* prefix=2"):
        core.build(deit(convolution))(IMAGES)
    part = core.build(ToyBesidePrefix.Config(dim=16, mixer=convolution))
    layout = core.Layout(grid=(2, 3), prefix=2)
    x = torch.randn(5, layout.tokens, 16)
    prefix, grid = layout.split(part(x, core.Context(layout=layout)))
    assert torch.equal(prefix, x[:, :2])
    alone = part.mixer(x[:, 2:].reshape(5, 2, 3, 16), core.Context(layout=core.Layout((2, 3))))
    assert torch.equal(grid, alone)
    assert torch.equal(layout.join(*layout.split(x)), x)


def test_two_tokens_learn_two_answers_to_one_image():
    torch.manual_seed(0)
    model = core.build(deit(ATTENTION, ToyBesidePrefix.Config(mixer=DepthwiseConvolution.Config(kernel=3))))
    labels, teacher = torch.arange(16) % 4, torch.arange(16) // 4  # no pair of answers stands twice
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(80):
        scores = model(IMAGES)
        loss = F.cross_entropy(scores.label, labels) + F.cross_entropy(scores.teacher, teacher)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    scores = model(IMAGES)
    assert torch.equal(scores.label.argmax(1), labels)
    assert torch.equal(scores.teacher.argmax(1), teacher)


def test_record_comes_out_of_an_exported_program():
    model = core.build(deit(ATTENTION)).eval()
    scores = torch.export.export(model, (IMAGES,)).module()(IMAGES)
    torch.testing.assert_close(scores.teacher, model(IMAGES).teacher)
    assert isinstance(scores, Scores)
