"""Form: a channel mixer that sends each token to a few experts, and whose balance loss leaves through the context.

As in Switch Transformers (arXiv:2101.03961, section 2): the loss is there for whoever asks, and for nobody else.
"""

from collections.abc import Mapping
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer import core
from anyformer.parts.channel_mixers.mlp import MLP
from anyformer.parts.embeds.patch_embed import PatchEmbed
from anyformer.parts.heads.classifier import MeanPoolHead
from anyformer.parts.norms.layer_norm import LayerNorm
from anyformer.parts.token_mixers.attention import Attention
from anyformer.skeletons.blocks import layer_block
from anyformer.skeletons.isotropic import Isotropic
from anyformer.train.loop import Role, Trainer


class Routing(NamedTuple):
    """The experts of each token and how much each counts, both ``(tokens, chosen)``."""

    experts: Tensor
    weights: Tensor


class ToyTopRouter(core.Router, name="toy_top_router"):
    """The ``chosen`` experts of the highest probability.

    Hands out the share that each expert gets, and the balance loss, which is 1 for even shares; eq. 4 to 6.
    """

    class Config(core.Config):
        dim: int = core.bound()
        experts: int = core.bound()
        chosen: int = 2
        scores: core.Config = core.linear(bias=False)

    axes = {"scores.weight": "experts dim"}
    reduces = ("experts",)
    collects = ("balance", "load")

    def forward(self, x: Tensor, ctx: core.Context) -> Routing:
        probability = self.scores(x).softmax(dim=-1)
        weights, experts = probability.topk(self.config.chosen, dim=-1)
        load = F.one_hot(experts, self.config.experts).sum(dim=1).to(x.dtype).mean(dim=0) / self.config.chosen
        ctx.collect("load", load)
        ctx.collect("balance", self.config.experts * (load * probability.mean(dim=0)).sum())
        return Routing(experts, weights)


class ToyExperts(core.ChannelMixer, name="toy_experts"):
    """``sum of w_e(x) expert_e(x)`` over the experts that the router chooses; only they compute.

    Shapes: ``(batch, *grid, dim)`` to the same. Cost: that of ``chosen`` experts a token.
    """

    class Config(core.Config):
        dim: int = core.bound()
        router: core.Config
        members: tuple[core.Config, ...]

        @property
        def experts(self) -> int:
            return len(self.members)

    @classmethod
    def binds(cls, config: Config) -> dict[str, dict[str, str]]:
        return {"router": {"experts": "experts"}}

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        tokens = x.flatten(0, -2)
        routing = self.router(tokens, ctx)
        mixed = torch.zeros_like(tokens)
        for index, expert in enumerate(self.members):
            token, rank = (routing.experts == index).nonzero(as_tuple=True)
            share = expert(tokens[token], ctx) * routing.weights[token, rank, None]
            mixed = mixed.index_add(0, token, share)
        return mixed.view(x.shape)


def pattern(dim: int = 8) -> core.Config:
    norm, expert = LayerNorm.Config(), MLP.Config(hidden=6)
    experts = ToyExperts.Config(router=ToyTopRouter.Config(), members=(expert,) * 4)
    return Isotropic.Config(
        dim=dim,
        embed=PatchEmbed.Config(channels=1, patch=2),
        blocks=tuple(layer_block(Attention.Config(heads=2), experts, norm) for _ in range(2)),
        norm=norm,
        head=MeanPoolHead.Config(num_classes=3),
    )


def made() -> Isotropic:
    torch.manual_seed(0)
    model = core.build(pattern())
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


IMAGES = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(4))


def test_equals_all_experts_weighted_by_their_probability():
    part = made().blocks[0].channel_mixer.double()
    x = torch.randn(2, 4, 4, 8, dtype=torch.float64)
    probability = part.router.scores(x).softmax(dim=-1)
    threshold = probability.sort(dim=-1, descending=True).values[..., 1:2]
    weights = torch.where(probability >= threshold, probability, 0)
    every = torch.stack([expert(x, core.Context()) for expert in part.members], dim=-1)
    torch.testing.assert_close(part(x, core.Context()), (every * weights[..., None, :]).sum(-1), rtol=0, atol=1e-12)


def test_loss_leaves_only_when_asked_for():
    model, sink = made(), {}
    plain, asked = model(IMAGES), model(IMAGES, sink)
    assert isinstance(plain, Tensor)
    assert torch.equal(plain, asked)
    assert set(sink) == set(ToyTopRouter.collects)
    first, second = sink["balance"]
    assert min(first, second) >= 0.9
    assert first.requires_grad
    assert first != second


def test_balance_loss_is_one_for_an_even_load():
    router = made().blocks[0].channel_mixer.router
    sink = {}
    with torch.no_grad():
        router.scores.weight.copy_(torch.eye(4, 8))
        router(torch.eye(4, 8).roll(1, 0) + torch.eye(4, 8), core.Context(sink=sink))
    assert sink["balance"][0] == pytest.approx(1)


class Balanced:
    """Cross entropy, and the balance of every router."""

    def __init__(self, weight: float) -> None:
        self.weight = weight

    def losses(self, role: str, models: Mapping[str, nn.Module], batch: Tensor, step: int) -> Tensor:
        sink: core.Collected = {}
        loss = F.cross_entropy(models[role](batch, sink), torch.arange(6) % 3)
        return loss + self.weight * torch.stack(sink["balance"]).sum()


def test_training_with_the_loss_balances_the_experts():
    busiest = {}
    for weight in (0.0, 0.3):
        model = made()
        role = Role(model, torch.optim.Adam(model.parameters(), 0.01))
        Trainer({"student": role}, Balanced(weight), lambda _: IMAGES).run(80)
        sink: core.Collected = {}
        assert torch.equal(model(IMAGES, sink).argmax(1), torch.arange(6) % 3)
        busiest[weight] = max(load.max().item() for load in sink["load"])
    assert busiest[0.3] < 0.35 < 0.45 < busiest[0.0], busiest


def test_exported_program_has_the_scores_as_its_only_output():
    model = made().eval()
    program = torch.export.export(model, (IMAGES,))
    assert len(program.graph_signature.user_outputs) == 1
    others = torch.randn_like(IMAGES)  # other tokens go to other experts: the routing is not frozen into the program
    torch.testing.assert_close(program.module()(others), model(others))
