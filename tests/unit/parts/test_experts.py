"""Experts against every expert computed on every token, and what their router says."""

import pytest
import torch
from torch.nn import functional as F

from anyformer import core
from anyformer.core.pattern import parse_part
from anyformer.parts.routers.top_k import Routing

from .build_part import build, config, random

DIM = 6


def made(count=4, k=2, over="chosen", **settings):
    return build("experts", dim=DIM, count=count, router=config("top_k", k=k, over=over), **settings)


def by_hand(part, x, ctx):
    """Every expert on every token, and the weights of those that were not chosen put to 0; written with torch alone."""
    scores = x @ part.router.linear.weight.T
    k = part.router.config.k
    taken = scores >= scores.sort(-1, descending=True).values[..., k - 1 : k]
    weights = scores.softmax(-1) * taken
    if part.router.config.over == "chosen":
        weights = weights / weights.sum(-1, keepdim=True)
    outputs = []
    for expert in part.experts:
        gate, up = (x @ expert.fc1.weight.T).chunk(2, -1)
        outputs.append((F.silu(gate) * up) @ expert.fc2.weight.T)
    return (weights[..., None] * torch.stack(outputs, -2)).sum(-2)


@pytest.mark.parametrize("over", ["all", "chosen"])
@pytest.mark.parametrize(("count", "k"), [(1, 1), (4, 1), (4, 2), (4, 4), (9, 3)])
@pytest.mark.parametrize("shape", [(1, 1), (2, 7), (3, 4, 5), (0, 3), (2, 0)])
def test_they_are_the_weighted_sum_of_the_chosen(shape, count, k, over):
    part = made(count, k, over)
    x = random(*shape, DIM, requires_grad=True)
    given, wanted = part(x, core.Context()), by_hand(part, x, core.Context())
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-12 * (1 + float(wanted.detach().abs().sum())))
    tensors = [x, *part.parameters()]
    cotangent = torch.randn_like(given)
    for ours, theirs in zip(
        torch.autograd.grad(given, tensors, cotangent), torch.autograd.grad(wanted, tensors, cotangent), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_masked_tokens_go_nowhere():
    part, x = made(), random(2, 5, DIM)
    keep = torch.tensor([[True, False, True, True, False], [False, False, True, True, True]])
    with torch.no_grad():
        alone = part(x[keep], core.Context())
    dirty = torch.where(keep[..., None], x, torch.nan).requires_grad_()
    sinks = {}, {}
    given = part(dirty, core.Context(mask=keep, sink=sinks[0]))
    part(x[keep], core.Context(sink=sinks[1]))
    assert torch.equal(given[keep].detach(), alone)
    assert not given[~keep].any()
    assert torch.equal(sinks[0]["load_balance"][0], sinks[1]["load_balance"][0])
    given.sum().backward()
    assert not dirty.grad[~keep].any()
    assert dirty.grad[keep].isfinite().all()
    nobody = part(torch.full_like(x, torch.nan), core.Context(mask=torch.zeros_like(keep)))
    assert not nobody.any()


def test_no_expert_sees_more_than_its_tokens():
    part, rows = made(count=5, k=2), []
    for expert in part.experts:
        expert.register_forward_hook(lambda module, given, _: rows.append(given[0].shape))
    part(random(3, 4, DIM), core.Context())
    assert sum(shape[0] for shape in rows) == 3 * 4 * 2
    assert all(shape[1:] == (DIM,) for shape in rows)


class Given(torch.nn.Module):
    """A router that says what it is told."""

    def __init__(self, experts):
        super().__init__()
        self.experts = torch.tensor(experts)

    def forward(self, x, ctx):
        return Routing(self.experts, (self.experts >= 0) / 2, x.new_ones(len(x), 4) / 4)


def test_tokens_may_have_different_numbers_of_experts():
    part, x, rows = made(), random(5, DIM, requires_grad=True), []
    part.router = Given([[2, 0, -1], [-1, -1, -1], [1, -1, -1], [0, 2, 1], [-1, 2, -1]])
    for expert in part.experts:
        expert.register_forward_hook(lambda module, given, _: rows.append(len(given[0])))
    sink = {}
    given = part(x, core.Context(sink=sink))
    assert rows == [2, 2, 3, 0]
    expert = [expert(x, core.Context()) / 2 for expert in part.experts]
    wanted = [expert[2][0] + expert[0][0], x[1] * 0, expert[1][2], expert[0][3] + expert[2][3] + expert[1][3]]
    wanted = torch.stack([*wanted, expert[2][4]])
    torch.testing.assert_close(given, wanted, rtol=0, atol=1e-12)
    for ours, theirs in zip(*(torch.autograd.grad(y.square().sum(), x) for y in (given, wanted)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    assert sink["load_balance"][0].item() == pytest.approx(7 / 5)  # choices a token, for equal shares


def test_what_has_no_expert_reaches_nobody():
    part, x = made(), random(2, DIM)
    part.router = Given([[-1, -1], [-1, -1]])
    assert torch.equal(part(x, core.Context()), torch.zeros(2, DIM).double())
    part.router = Given([[-1], [3]])
    x[0] = torch.nan
    given = part(x, core.Context())
    assert not given[0].any()
    assert given[1].isfinite().all()


def test_the_balance_may_be_a_loss():
    for balance, names in ((0.0, {"load_balance"}), (0.5, {"load_balance", "load_balance_loss"})):
        part, sink = made(balance=balance), {}
        part(random(2, 6, DIM), core.Context(sink=sink))
        assert set(sink) == names
    assert sink["load_balance_loss"][0] == 0.5 * sink["load_balance"][0]


def test_a_row_does_not_reach_another():
    part, x = made(count=3), random(2, 6, DIM)
    before = part(x, core.Context())
    x[0] = torch.nan
    torch.testing.assert_close(part(x, core.Context())[1], before[1], rtol=0, atol=1e-12)


def test_balance_is_that_of_switch():
    part = made(count=4, k=2)
    with torch.no_grad():
        part.router.linear.weight.zero_()
    x, sink = random(2, 8, DIM), {}
    part(x, core.Context(sink=sink))
    torch.testing.assert_close(
        sink["load_balance"][0].item(), 2.0, rtol=0, atol=1e-12
    )  # equal shares: k, however chosen
    with torch.no_grad():
        part.router.linear.weight[1] = 1000 * x[0, 0]
    same, sink = x[:1, :1].expand(1, 5, DIM), {}
    part(same, core.Context(sink=sink))
    torch.testing.assert_close(sink["load_balance"][0].item(), 4.0, rtol=0, atol=1e-12)  # all share on one of four
    sink = {}
    loss = part(random(1, 0, DIM), core.Context(sink=sink)).sum() + sink["load_balance"][0]
    assert loss == 0


def test_the_loss_has_a_gradient_for_the_router_alone():
    part, sink = made(), {}
    part(random(2, 6, DIM), core.Context(sink=sink))
    sink["load_balance"][0].backward()
    moved = {name for name, parameter in part.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    assert moved == {"router.linear.weight"}


def test_experts_may_differ():
    wide, narrow = config("gated_mlp", hidden=10), config("mlp", hidden=3)
    part = build("experts", dim=DIM, experts=(wide, narrow), router=config("top_k", k=2))
    x = random(4, DIM)
    weights = (x @ part.router.linear.weight.T).softmax(-1)
    wanted = sum(weights[:, i : i + 1] * expert(x, core.Context()) for i, expert in enumerate(part.experts))
    torch.testing.assert_close(part(x, core.Context()), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_types_stay(dtype):
    part, sink = made().to(dtype), {}
    given = part(random(2, 3, DIM).to(dtype), core.Context(sink=sink))
    assert given.dtype == dtype
    assert sink["load_balance"][0].dtype == torch.float32


def test_a_text_says_it():
    spec = core.resolve(parse_part("experts(dim=6, count=3, ratio=2, router=top_k(k=1, over=all))"))
    assert [expert.hidden for expert in spec.experts] == [12, 12, 12]
    assert (spec.router.experts, spec.router.k) == (3, 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 3, "router": config("top_k", k=4)}, "1 to 3 experts, not to k=4"),
        ({"count": 3, "router": config("top_k", k=0)}, "1 to 3 experts, not to k=0"),
        ({"count": 0}, "give at least one"),
        ({"count": 3, "experts": (config("mlp"),)}, "there are 1 experts, but count=3"),
    ],
)
def test_numbers_that_do_not_go_together(settings, message):
    with pytest.raises(core.UsageError, match=message):
        core.build(config("experts", dim=DIM, **settings))


def test_export_is_refused():
    part = made().float()

    class Alone(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.part = part

        def forward(self, x):
            return self.part(x, core.Context())

    with pytest.raises(core.UsageError, match="experts cannot be exported: how many tokens"):
        torch.export.export(Alone(), (torch.randn(1, 3, DIM),))
