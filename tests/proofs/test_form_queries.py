"""Form: learned queries attend to pixels, and a head gives each query several named outputs.

As in DETR (arXiv:2005.12872, sections 3.2 and 4.2, figure 10): a class, a box and a mask a query.
"""

import dataclasses
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer import core
from anyformer.ops.attention import attention
from anyformer.parts.channel_mixers.mlp import MLP
from anyformer.parts.embeds.patch_embed import PatchEmbed
from anyformer.parts.norms.layer_norm import LayerNorm
from anyformer.skeletons.blocks import layer_block
from anyformer.skeletons.isotropic import Isotropic


class Image(NamedTuple):
    """``pixels (batch, channels, height, width)``; ``keep (batch, height, width)``, False where an image was filled up."""

    pixels: Tensor
    keep: Tensor


class Detection(NamedTuple):
    """A query's answers: ``classes (batch, queries, n)``, ``boxes (batch, queries, 4)`` in [0, 1], ``masks`` on the grid."""

    classes: Tensor
    boxes: Tensor
    masks: Tensor


class ToyQueryEmbed(core.Embed, name="toy_query_embed"):
    """Learned queries are the features; the pixels, with their own layout and mask, are the memory.

    Shapes: an image -> ``(batch, queries, dim)``, beside a memory of ``(batch, height, width, dim)``.
    """

    class Config(core.Config):
        dim: int = core.bound()
        queries: int
        patch: core.Config

    axes = {"queries": "1 queries dim"}

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.queries = self.parameter("queries", core.Init("normal"))

    def forward(self, raw: Image) -> tuple[Tensor, core.Context]:
        pixels, ctx = self.patch(raw.pixels)
        shown = F.max_pool2d(raw.keep[:, None].to(pixels.dtype), self.config.patch.patch) > 0
        memory = (pixels, dataclasses.replace(ctx, mask=shown.flatten(1)))
        queries = self.queries.expand(len(pixels), -1, -1)
        return queries, core.Context(layout=core.Layout((self.config.queries,)), memory=memory)


class ToyCrossAttention(core.TokenMixer, name="toy_cross_attention"):
    """Tokens attend to the memory. Cost: O(tokens * tokens of the memory)."""

    class Config(core.Config):
        dim: int = core.bound()
        heads: int
        head_dim: int = core.derived(lambda c: c.dim // c.heads)
        scale: float = core.derived(lambda c: c.head_dim**-0.5)
        query: core.Config = core.linear()
        key_value: core.Config = core.linear()
        proj: core.Config = core.linear()

    axes = {
        "query.weight": "(heads head_dim) dim",
        "key_value.weight": "(k:heads head_dim + v:heads head_dim) dim",
        "proj.weight": "dim (heads head_dim)",
    }

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        memory, surroundings = ctx.memory
        heads = (self.config.heads, self.config.head_dim)
        q = self.query(x).unflatten(2, heads).transpose(1, 2)
        k, v = self.key_value(memory.flatten(1, -2)).unflatten(2, (2, *heads)).permute(2, 0, 3, 1, 4).unbind(0)
        keep = None if surroundings.mask is None else surroundings.mask[:, None, None, :]
        mixed = attention(q, k, v, scale=self.config.scale, bias=keep)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class ToyDetectionHead(core.Head, name="toy_detection_head"):
    """Class scores, a box and a mask for every query; the mask is the query's product with each pixel."""

    class Config(core.Config):
        dim: int = core.bound()
        num_classes: int
        classes: core.Config = core.linear()
        boxes: core.Config = core.linear()
        mask: core.Config = core.linear()

    axes = {"classes.weight": "num_classes dim", "boxes.weight": "4 dim", "mask.weight": "dim dim"}

    def forward(self, x: Tensor, ctx: core.Context) -> Detection:
        masks = torch.einsum("bqc,bhwc->bqhw", self.mask(x), ctx.memory[0])
        return Detection(self.classes(x), self.boxes(x).sigmoid(), masks)


def made(queries: int = 4) -> Isotropic:
    torch.manual_seed(0)
    norm = LayerNorm.Config()
    block = layer_block(ToyCrossAttention.Config(heads=2), MLP.Config(ratio=2.0), norm)
    patch = PatchEmbed.Config(channels=1, patch=2)
    return core.build(
        Isotropic.Config(
            dim=16,
            embed=ToyQueryEmbed.Config(queries=queries, patch=patch),
            blocks=(block, block),
            norm=norm,
            head=ToyDetectionHead.Config(num_classes=3),
        )
    )


def random_images() -> Image:
    """Two images of 8 x 12; of the second only the left 8 x 8 counts."""
    torch.manual_seed(1)
    keep = torch.ones(2, 8, 12, dtype=torch.bool)
    keep[1, :, 8:] = False
    return Image(torch.randn(2, 1, 8, 12, dtype=torch.float64), keep)


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_every_query_gives_a_named_record():
    found = made().double()(random_images())
    assert {name: tuple(tensor.shape) for name, tensor in found._asdict().items()} == {
        "classes": (2, 4, 3),
        "boxes": (2, 4, 4),
        "masks": (2, 4, 4, 6),
    }
    assert (found.classes[0, 0] - found.classes[0, 1]).abs().max() > 1e-6


def test_filled_up_image_is_as_its_own_size():
    model, images = made().double(), random_images()
    together = model(images)
    alone = model(Image(images.pixels[1:, :, :, :8], images.keep[1:, :, :8]))
    same(together.classes[1:], alone.classes)
    same(together.boxes[1:], alone.boxes)
    same(together.masks[1:, :, :, :4], alone.masks)
    seen = model(images._replace(keep=torch.ones_like(images.keep)))
    assert (seen.classes[1] - together.classes[1]).abs().max() > 1e-6


def test_order_of_the_queries_is_the_order_of_the_answers():
    model, images = made().double(), random_images()
    before = model(images)
    with torch.no_grad():
        model.embed.queries.copy_(model.embed.queries[:, [2, 0, 3, 1]])
    for old, new in zip(before, model(images), strict=True):
        same(new, old[:, [2, 0, 3, 1]])


def test_class_and_mask_learn_to_find_a_square():
    """One bright square: which of three sizes it has, and which pixels are its own."""
    torch.manual_seed(0)
    pixels, truth, sizes = torch.zeros(48, 1, 8, 8), torch.zeros(48, 4, 4), torch.arange(48) % 3
    for image, plane, size in zip(pixels, truth, sizes, strict=True):
        top, left = torch.randint(0, 4 - int(size), (2,))
        plane[top : top + size + 1, left : left + size + 1] = 1
        image[0] = plane.repeat_interleave(2, 0).repeat_interleave(2, 1)
    images, model = Image(pixels, torch.ones(48, 8, 8, dtype=torch.bool)), made(queries=1)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(40):
        found = model(images)
        loss = F.cross_entropy(found.classes[:, 0], sizes)
        loss = loss + F.binary_cross_entropy_with_logits(found.masks[:, 0], truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = model(images)
    assert (found.classes[:, 0].argmax(1) == sizes).float().mean() > 0.9
    assert ((found.masks[:, 0] > 0) == truth.bool()).float().mean() > 0.99


def test_exported_program_takes_and_gives_named_tensors():
    model, images = made().double().eval(), random_images()
    program = torch.export.export(model, (images,))
    assert program.graph_signature.user_inputs == ("raw_pixels", "raw_keep")
    found = program.module()(images)
    assert isinstance(found, Detection)
    same(found.masks, model(images).masks)
