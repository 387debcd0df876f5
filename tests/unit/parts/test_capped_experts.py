"""Switch routing, and experts with a capacity, against a loop over the tokens."""

import pytest
import torch
from torch.nn import functional as F

from anyformer import core

from .build_part import build, config, random

DIM = 6


def made(count=3, capacity=4, router=None, **settings):
    router = config("switch") if router is None else router
    return build("capped_experts", dim=DIM, count=count, capacity=capacity, router=router, **settings)


def by_hand(part, row, counts=None):
    """One row of tokens, one after the other; experts that are full give nothing."""
    counts = [0] * part.config.count if counts is None else counts
    k, outs = getattr(part.router.config, "k", 1), []
    for token in row:
        shares = (part.router.linear.weight @ token).softmax(-1)
        out = torch.zeros_like(token)
        for expert in shares.sort(descending=True).indices[:k].tolist():
            counts[expert] += 1
            if counts[expert] <= part.config.capacity:
                fc1, fc2 = part.experts[expert].fc1, part.experts[expert].fc2
                out = out + shares[expert] * (fc2.weight @ F.gelu(fc1.weight @ token + fc1.bias) + fc2.bias)
        outs.append(out)
    return torch.stack(outs) if outs else row


ROUTERS = [config("switch"), config("top_k", k=2, over="all")]


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("capacity", [1, 4, 100])
@pytest.mark.parametrize("shape", [(2, 15), (1, 1), (3, 0), (0, 4)])
def test_each_expert_takes_the_first_tokens_of_a_row(shape, capacity, router):
    part = made(capacity=capacity, router=router)
    x = random(*shape, DIM, requires_grad=True)
    given = part(x, core.Context())
    wanted = torch.stack([by_hand(part, row) for row in x]) if shape[0] else x
    torch.testing.assert_close(given, wanted, rtol=1e-10, atol=1e-10)
    if min(shape) and capacity < 100:
        tensors = [x, part.router.linear.weight]
        cotangent = torch.randn_like(given)
        pairs = [torch.autograd.grad(y, tensors, cotangent, retain_graph=True) for y in (given, wanted)]
        for ours, theirs in zip(*pairs, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_stream_counts_on():
    part, x = made(), random(2, 15, DIM)
    keep = torch.rand(2, 15, generator=torch.Generator().manual_seed(0)) > 0.3
    for mask in (None, keep):
        whole = part(x, core.Context(mask=mask))
        state, given, start = part.init_state(2, 15, x), [], 0
        for length in (4, 1, 0, 7, 3):
            here = core.Context(mask=None if mask is None else mask[:, start : start + length])
            y, state = part.stream(x[:, start : start + length], here, state)
            given.append(y)
            start += length
        torch.testing.assert_close(torch.cat(given, 1), whole, rtol=0, atol=1e-12)
        assert state.counts.sum() == (30 if mask is None else keep.sum())


def test_masked_tokens_ask_for_nothing():
    part, x = made(capacity=2), random(2, 9, DIM)
    keep = torch.rand(2, 9, generator=torch.Generator().manual_seed(1)) > 0.4
    sink = {}
    given = part(torch.where(keep[..., None], x, torch.nan), core.Context(mask=keep, sink=sink))
    assert not given[~keep].any()
    for row in range(2):
        alone = part(x[row : row + 1, keep[row]], core.Context())[0]
        torch.testing.assert_close(given[row, keep[row]], alone, rtol=0, atol=1e-12)
    together = {}
    part(x[keep][None], core.Context(sink=together))
    for name in ("load_balance", "router_z"):
        torch.testing.assert_close(sink[name][0], together[name][0], rtol=1e-12, atol=1e-12)


def test_packed_sequences_do_not_compete():
    part, x = made(capacity=2), random(1, 9, DIM)
    packed = part(x, core.Context(offsets=torch.tensor([0, 5, 5, 9])))
    alone = torch.cat([part(x[:, :5], core.Context()), part(x[:, 5:], core.Context())], 1)
    torch.testing.assert_close(packed, alone, rtol=0, atol=1e-12)


def test_losses_are_those_of_the_papers():
    part, x, sink = made(balance=0.5, router=config("switch", z=0.25)), random(2, 8, DIM), {}
    part(x, core.Context(sink=sink))
    scores = x.flatten(0, 1) @ part.router.linear.weight.T
    share, load = scores.softmax(-1).mean(0), F.one_hot(scores.argmax(-1), 3).double().mean(0)
    balance, z = 3 * (share * load).sum(), scores.exp().sum(-1).log().square().mean()
    wanted = {"load_balance": balance, "load_balance_loss": balance / 2, "router_z": z, "router_z_loss": z / 4}
    assert sink.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(sink[name][0], value, rtol=1e-12, atol=1e-12)


def test_the_router_is_computed_in_float32():
    router = build("switch", dim=64, experts=5).to(torch.bfloat16)
    x = random(7, 64).to(torch.bfloat16)
    sink = {}
    routing = router(x, core.Context(sink=sink))
    wanted = (x.float() @ router.linear.weight.float().T).softmax(-1)
    assert routing.weights.dtype == torch.bfloat16
    assert routing.shares.dtype == sink["router_z"][0].dtype == torch.float32
    torch.testing.assert_close(routing.shares, wanted)
    assert torch.equal(routing.experts[:, 0], wanted.argmax(-1))


def test_autocast_lowers_the_experts_alone():
    part, x = made(count=3, capacity=100).float(), random(2, 40, DIM).float()
    chosen = []
    part.router.register_forward_hook(lambda _, given, routing: chosen.append(routing.shares))
    with torch.autocast("cpu", torch.bfloat16):
        lowered = part(x, core.Context())
    exact = part(x, core.Context())
    assert torch.equal(*chosen)
    assert lowered.dtype == exact.dtype == torch.float32
    assert 0 < (lowered - exact).abs().max() < 0.1 * exact.abs().max()


def test_noise_is_for_training_alone():
    router = build("switch", dim=DIM, experts=3, jitter=0.1)
    x = random(200, DIM)
    plain = build("switch", dim=DIM, experts=3)
    plain.load_state_dict(router.state_dict())
    assert torch.equal(router(x, core.Context()).shares, plain(x, core.Context()).shares)
    router.train()
    torch.manual_seed(1)
    noisy = router(x, core.Context()).shares
    torch.manual_seed(1)
    factor = torch.empty_like(x).uniform_(0.9, 1.1)
    torch.testing.assert_close(noisy, plain(x * factor, core.Context()).shares)


def test_a_router_may_have_a_bias():
    router = build("switch", dim=DIM, experts=3, linear=config("linear", bias=True))
    x = random(4, DIM)
    wanted = (x @ router.linear.weight.T + router.linear.bias).softmax(-1)
    torch.testing.assert_close(router(x, core.Context()).shares, wanted)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "there are 0 experts"),
        ({"count": 3, "experts": (config("mlp"),)}, "there are 1 experts, but count=3"),
        ({"capacity": 0}, "experts of a capacity of 0 take no token"),
        ({"router": config("switch", jitter=1.0)}, "jitter=1.0 would turn inputs round"),
    ],
)
def test_numbers_that_do_not_go_together(settings, message):
    with pytest.raises(core.UsageError, match=message):
        made(**settings)


def test_export_is_refused():
    part = made().float()

    class Alone(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.part = part

        def forward(self, x):
            return self.part(x, core.Context())

    with pytest.raises(core.UsageError, match="capped_experts cannot be exported: how many tokens"):
        torch.export.export(Alone(), (torch.randn(1, 3, DIM),))
