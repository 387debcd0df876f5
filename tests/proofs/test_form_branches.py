"""Form: a skeleton with a tuple of features, one a branch, and a part that exchanges between them.

As in CrossViT (arXiv:2103.14899, section 3.3): one branch sees small patches, the other large ones, each with a width of
its own; the class token of each attends to the other's patches, and both vote.
"""

import dataclasses

import torch
from torch import Tensor

from anyformer import core
from anyformer.core.binding import axis_table, slice_spec, slice_state
from anyformer.core.model import Model
from anyformer.core.store import from_pretrained
from anyformer.ops.attention import attention
from anyformer.parts.channel_mixers.mlp import MLP
from anyformer.parts.embeds.patch_embed import PatchEmbed, PrefixedPatchEmbed
from anyformer.parts.norms.layer_norm import LayerNorm
from anyformer.parts.token_mixers.attention import Attention
from anyformer.skeletons.blocks import layer_block
from anyformer.skeletons.pyramid import Stage

Features = tuple[Tensor, ...]
Contexts = tuple[core.Context, ...]


class ToyClassExchange(core.Part, name="toy_class_exchange"):
    """A class token goes into the other branch's width, attends to its patches, and comes back; eq. 4 and 5."""

    slot = "exchange"

    class Config(core.Config):
        own: int = core.bound()
        other: int = core.bound()
        heads: int
        head_dim: int = core.derived(lambda c: c.other // c.heads)
        scale: float = core.derived(lambda c: c.head_dim**-0.5)
        enter: core.Config = core.linear()
        query: core.Config = core.linear()
        key_value: core.Config = core.linear()
        leave: core.Config = core.linear()

    axes = {
        "enter.weight": "other own",
        "query.weight": "(heads head_dim) other",
        "key_value.weight": "(k:heads head_dim + v:heads head_dim) other",
        "leave.weight": "own (heads head_dim)",
    }

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        heads = (self.config.heads, self.config.head_dim)
        token = self.enter(x[:, :1])
        keys = torch.cat((token, other), dim=1)
        q = self.query(token).unflatten(2, heads).transpose(1, 2)
        k, v = self.key_value(keys).unflatten(2, (2, *heads)).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = attention(q, k, v, scale=self.config.scale).transpose(1, 2).flatten(2)
        return torch.cat((x[:, :1] + self.leave(mixed), x[:, 1:]), dim=1)


class ToyExchange(core.Part, name="toy_exchange"):
    """``exchange(features, contexts) -> features``: both class tokens at once, from what was there before."""

    slot = "exchange"

    class Config(core.Config):
        first: int = core.bound()
        second: int = core.bound()
        forth: core.Config
        back: core.Config

    @classmethod
    def binds(cls, config: Config) -> dict[str, dict[str, str]]:
        return {"forth": {"own": "first", "other": "second"}, "back": {"own": "second", "other": "first"}}

    def forward(self, features: Features, contexts: Contexts) -> Features:
        (a, b), (grid_a, grid_b) = features, (c.layout.split(x)[1] for x, c in zip(features, contexts, strict=True))
        return self.forth(a, grid_b.flatten(1, -2)), self.back(b, grid_a.flatten(1, -2))


class ToyVote(core.Head, name="toy_vote"):
    """``head(features, contexts)``: the sum of both class tokens' scores."""

    class Config(core.Config):
        first: int = core.bound()
        second: int = core.bound()
        num_classes: int
        linear1: core.Config = core.linear()
        linear2: core.Config = core.linear()

    axes = {"linear1.weight": "num_classes first", "linear2.weight": "num_classes second"}

    def forward(self, features: Features, contexts: Contexts) -> Tensor:
        return self.linear1(features[0][:, 0]) + self.linear2(features[1][:, 0])


class ToyBranches(Model, name="toy_branches"):
    """An embed and a stage for each branch, an exchange, a head for all; features and contexts are tuples."""

    class Config(core.Config):
        embeds: tuple[core.Config, ...]
        stages: tuple[core.Config, ...]
        exchange: core.Config
        head: core.Config | None = None

    @classmethod
    def binds(cls, config: Config) -> dict[str, dict[str, str]]:
        widths = {"first": "stages.0.dim", "second": "stages.1.dim"}
        embeds = {f"embeds.{i}": {"dim": f"stages.{i}.dim"} for i in range(2)}
        stages = {f"stages.{i}": {"inputs": f"stages.{i}.dim"} for i in range(2)}
        return {"exchange": widths, "head": widths, **embeds, **stages}

    def forward_features(
        self, raw: Tensor, sink: core.Collected | None = None, stages: list[Features] | None = None
    ) -> tuple[Features, Contexts]:
        embedded = [embed(raw) for embed in self.embeds]
        contexts = [dataclasses.replace(ctx, sink=sink) for _, ctx in embedded]
        run = [stage(x, ctx) for stage, (x, _), ctx in zip(self.stages, embedded, contexts, strict=True)]
        features, contexts = zip(*run, strict=True)
        mixed = self.exchange(features, contexts)
        if stages is not None:
            stages += [features, mixed]
        return mixed, contexts


def pattern() -> core.Config:
    norm, attend = LayerNorm.Config(), Attention.Config(heads=2)
    return ToyBranches.Config(
        embeds=tuple(
            PrefixedPatchEmbed.Config(patch=PatchEmbed.Config(channels=1, patch=p), rows=8 // p, columns=8 // p)
            for p in (2, 4)
        ),
        stages=tuple(
            Stage.Config(dim=dim, blocks=(layer_block(attend, MLP.Config(ratio=2.0), norm),)) for dim in (8, 12)
        ),
        exchange=ToyExchange.Config(
            forth=ToyClassExchange.Config(heads=3), back=ToyClassExchange.Config(heads=2, head_dim=4)
        ),
        head=ToyVote.Config(num_classes=5),
    )


def made() -> ToyBranches:
    torch.manual_seed(0)
    model = core.build(pattern()).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


IMAGES = torch.randn(3, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def test_each_class_token_learns_from_the_other_branch_through_the_exchange_alone():
    model = made()
    (before, after), _, contexts = model.stages_of(IMAGES)
    assert [ctx.layout.grid for ctx in contexts] == [(4, 4), (2, 2)]
    assert [x.shape for x in after] == [(3, 17, 8), (3, 5, 12)]
    for branch in range(2):
        other = model.embeds[1 - branch].patch.weight
        for features, reached in ((before, False), (after, True)):
            scores = features[branch][:, 0].sum()
            (gradient,) = torch.autograd.grad(scores, other, retain_graph=True, allow_unused=True)
            assert (gradient is not None and bool((gradient != 0).any())) is reached
        assert torch.equal(before[branch][:, 1:], after[branch][:, 1:])


def test_every_parameter_takes_part():
    model = made()
    model(IMAGES).square().sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not (p.grad != 0).any()] == []


def test_axes_hold_across_branches():
    """A head cut from the exchange by axes alone is the head with its outgoing weights zeroed."""
    model = made()
    table = axis_table(model.spec)
    assert {name: table.shape(name) for name in model.state_dict()} == {
        name: tuple(tensor.shape) for name, tensor in model.state_dict().items()
    }
    keep = {"exchange.forth.heads": torch.tensor([0, 2])}
    small = core.build(slice_spec(model.spec, keep)).double()
    small.load_state_dict(slice_state(model.spec, model.state_dict(), keep))
    with torch.no_grad():
        model.exchange.forth.leave.weight[:, 4:8] = 0
    torch.testing.assert_close(small(IMAGES), model(IMAGES), rtol=0, atol=1e-12)


def test_branches_are_saved_and_read_again(tmp_path):
    model = made()
    model.save_pretrained(tmp_path)
    again = from_pretrained(tmp_path)
    assert again.spec == model.spec
    assert torch.equal(again(IMAGES), model(IMAGES))
