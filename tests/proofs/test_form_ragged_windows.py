"""Form: ragged batches, packed without padding, whose points attend inside windows of space and never across samples.

As sparse window attention on point clouds does (SST, arXiv:2112.06375, section 3.2): points are sorted by window first.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from anyformer import core
from anyformer.ops.attention import attention
from anyformer.parts.channel_mixers.mlp import MLP
from anyformer.parts.norms.layer_norm import LayerNorm
from anyformer.skeletons.blocks import layer_block
from anyformer.skeletons.isotropic import Isotropic


class Cloud(NamedTuple):
    """Samples behind one another: ``features (total, channels)``, ``coordinates (total, d)``, ``offsets (batch + 1,)``."""

    features: Tensor
    coordinates: Tensor
    offsets: Tensor


class ToyCloudEmbed(core.Embed, name="toy_cloud_embed"):
    """Each point's features through one linear map. Shapes: a cloud -> ``(1, total, dim)``."""

    class Config(core.Config):
        dim: int = core.bound()
        channels: int
        linear: core.Config = core.linear()

    axes = {"linear.weight": "dim channels"}

    def forward(self, raw: Cloud) -> tuple[Tensor, core.Context]:
        layout = core.Layout((len(raw.features),))
        ctx = core.Context(layout=layout, offsets=raw.offsets, coordinates=raw.coordinates)
        return self.linear(raw.features)[None], ctx


def samples(offsets: Tensor) -> Tensor:
    """The sample that each of the packed points belongs to: ``(batch + 1,) -> (total,)``."""
    return torch.repeat_interleave(offsets.diff())


class ToyWindows(core.TokenMixer, name="toy_windows"):
    """Points attend to the points of their sample in the same cube of side ``window``.

    Shapes: ``(1, total, dim)`` to the same. Cost: O(windows * most points in one ^ 2), and a sort.
    """

    class Config(core.Config):
        dim: int = core.bound()
        heads: int
        head_dim: int = core.derived(lambda c: c.dim // c.heads)
        scale: float = core.derived(lambda c: c.head_dim**-0.5)
        window: float
        qkv: core.Config = core.linear()
        proj: core.Config = core.linear()

    axes = {
        "qkv.weight": "(q:heads head_dim + k:heads head_dim + v:heads head_dim) dim",
        "proj.weight": "dim (heads head_dim)",
    }
    refuses = {"export": "the number of windows depends on the data"}

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        config = self.config
        cell = (ctx.coordinates / config.window).floor().long()
        keys = torch.cat((samples(ctx.offsets)[:, None], cell), dim=1)
        _, window, counts = torch.unique(keys, dim=0, return_inverse=True, return_counts=True)
        order = window.argsort()
        rows = window[order]
        columns = torch.arange(len(order)) - (counts.cumsum(0) - counts)[rows]
        keep = torch.arange(int(counts.max())) < counts[:, None]
        padded = x.new_zeros(*keep.shape, config.dim)
        padded[rows, columns] = x[0, order]
        heads = self.qkv(padded).view(*keep.shape, 3, config.heads, config.head_dim)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attention(q, k, v, scale=config.scale, bias=keep[:, None, None, :])
        mixed = self.proj(mixed.transpose(1, 2).flatten(2))
        return torch.empty_like(x).index_copy(1, order, mixed[rows, columns][None])


class ToySampleMeanHead(core.Head, name="toy_sample_mean_head"):
    """Scores of the mean point of every sample. Shapes: ``(1, total, dim) -> (batch, num_classes)``."""

    class Config(core.Config):
        dim: int = core.bound()
        num_classes: int
        linear: core.Config = core.linear()

    axes = {"linear.weight": "num_classes dim"}

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        counts = ctx.offsets.diff()
        sums = x.new_zeros(len(counts), x.shape[2]).index_add(0, samples(ctx.offsets), x[0])
        return self.linear(sums / counts.clamp(min=1)[:, None])


def made() -> core.Part:
    torch.manual_seed(0)
    norm, mlp = LayerNorm.Config(), MLP.Config(ratio=2.0)
    model = core.build(
        Isotropic.Config(
            dim=8,
            embed=ToyCloudEmbed.Config(channels=3),
            blocks=tuple(layer_block(ToyWindows.Config(heads=2, window=w), mlp, norm) for w in (1.0, 0.75)),
            norm=norm,
            head=ToySampleMeanHead.Config(num_classes=4),
        )
    ).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model


def cloud(sizes: list[int]) -> Cloud:
    """All samples lie in the same place, so that only the offsets tell them apart."""
    generator = torch.Generator().manual_seed(2)
    features, coordinates = (torch.randn(sum(sizes), 3, generator=generator, dtype=torch.float64) for _ in range(2))
    return Cloud(features, coordinates, torch.tensor([0, *sizes]).cumsum(0))


def sample(raw: Cloud, index: int) -> Cloud:
    inside = slice(raw.offsets[index], raw.offsets[index + 1])
    features = raw.features[inside]
    return Cloud(features, raw.coordinates[inside], torch.tensor([0, len(features)]))


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_batch_is_every_sample_by_itself():
    model, raw = made(), cloud([40, 1, 25, 60])
    same(model(raw), torch.cat([model(sample(raw, index)) for index in range(4)]))
    features, _ = model.forward_features(raw)
    same(features, torch.cat([model.forward_features(sample(raw, i))[0] for i in range(4)], dim=1))


def test_empty_sample_changes_nothing():
    model, raw = made(), cloud([12, 0, 20])
    without = Cloud(raw.features, raw.coordinates, torch.tensor([0, 12, 32]))
    same(model(raw)[[0, 2]], model(without))


def test_windows_equal_attention_under_the_mask_of_who_sees_whom():
    model, raw = made(), cloud([30, 20])
    part = model.blocks[0].mixer
    x, ctx = model.embed(raw)
    owner = torch.tensor([0] * 30 + [1] * 20)
    cell = raw.coordinates.floor()
    sees = (owner[:, None] == owner) & (cell[:, None] == cell).all(dim=2)
    assert 1 < sees.sum(dim=1).float().mean() < 15
    q, k, v = part.qkv(x).view(50, 3, 2, 4).permute(1, 2, 0, 3)
    weights = (q @ k.mT / 2).masked_fill(~sees, -torch.inf).softmax(dim=-1)
    same(part(x, ctx), part.proj((weights @ v).transpose(0, 1).flatten(1))[None])


def test_order_of_points_does_not_matter():
    model, raw = made(), cloud([30, 20])
    order = torch.cat((torch.randperm(30), 30 + torch.randperm(20)))
    shuffled = Cloud(raw.features[order], raw.coordinates[order], raw.offsets)
    same(model(shuffled), model(raw))
    same(model.forward_features(shuffled)[0], model.forward_features(raw)[0][:, order])
