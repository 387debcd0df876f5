"""Form: causal mixers that stream in chunks of any length, with a state that branches.

One state has a fixed size (a decayed sum and the tail of a short convolution), the other grows with the tokens and is
written in place (cached keys and values).
"""

import dataclasses

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from anyformer import core
from anyformer.core.context import State
from anyformer.ops.attention import attention


class Decayed(State):
    """The decayed sum ``(batch, heads, key, value)`` and the last ``kernel - 1`` tokens ``(batch, kernel - 1, dim)``."""

    sum: Tensor
    tail: Tensor


class ToyRetention(core.TokenMixer, name="toy_retention"):
    """A short causal filter, then ``S_t = a S_(t-1) + k_t^T v_t; y_t = q_t S_t`` with one learned decay a head.

    Shapes: ``(batch, tokens, dim)`` to the same. Cost: O(tokens * (chunk + head_dim)); state: constant.
    """

    class Config(core.Config):
        dim: int = core.bound()
        heads: int
        head_dim: int = core.derived(lambda c: c.dim // c.heads)
        kernel: int = 3
        chunk: int = 64
        qkv: core.Config = core.linear(bias=False)
        proj: core.Config = core.linear(bias=False)

    axes = {
        "qkv.weight": "(q:heads head_dim + k:heads head_dim + v:heads head_dim) dim",
        "proj.weight": "dim (heads head_dim)",
        "filter": "dim 1 kernel",
        "decay": "heads",
    }

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.filter = self.parameter("filter", core.Init("uniform_fan_in"))
        self.decay = self.parameter("decay", core.Init("normal"))

    def init_state(self, batch: int, capacity: int, like: Tensor) -> Decayed:
        config = self.config
        return Decayed(
            sum=like.new_zeros(batch, config.heads, config.head_dim, config.head_dim),
            tail=like.new_zeros(batch, config.kernel - 1, config.dim),
        )

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        return self.stream(x, ctx, self.init_state(len(x), x.shape[1], x))[0]

    def stream(self, x: Tensor, ctx: core.Context, state: Decayed) -> tuple[Tensor, Decayed]:
        pieces = []
        for piece in x.split(self.config.chunk, dim=1):
            mixed, state = self._chunk(piece, state)
            pieces.append(mixed)
        return torch.cat(pieces, dim=1), state

    def _chunk(self, x: Tensor, state: Decayed) -> tuple[Tensor, Decayed]:
        config, count = self.config, x.shape[1]
        seen = torch.cat((state.tail, x), dim=1)
        filtered = F.conv1d(seen.mT, self.filter, groups=config.dim).mT
        heads = self.qkv(filtered).view(len(x), count, 3, config.heads, config.head_dim)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind(0)
        rate = F.logsigmoid(self.decay)[:, None, None]
        step = torch.arange(count, device=x.device, dtype=x.dtype)
        age = step[:, None] - step
        within = torch.exp(rate * age.clamp(min=0)).tril() * (q @ k.mT)
        mixed = within @ v + torch.exp(rate * (step[:, None] + 1)) * (q @ state.sum)
        left = torch.exp(rate * (count - 1 - step[:, None])) * k
        state = Decayed(sum=torch.exp(rate * count) * state.sum + left.mT @ v, tail=seen[:, count:])
        return self.proj(mixed.transpose(1, 2).flatten(2)), state


class Cache(State):
    """Keys and values ``(batch, heads, capacity, head_dim)``, of which the first ``length`` tokens are there."""

    keys: Tensor
    values: Tensor
    length: int


class ToyCachedAttention(core.TokenMixer, name="toy_cached_attention"):
    """Causal attention that keeps its keys and values. State: ``2 * heads * head_dim`` numbers a token of capacity."""

    class Config(core.Config):
        dim: int = core.bound()
        heads: int
        head_dim: int = core.derived(lambda c: c.dim // c.heads)
        scale: float = core.derived(lambda c: c.head_dim**-0.5)
        qkv: core.Config = core.linear(bias=False)
        proj: core.Config = core.linear(bias=False)

    axes = {
        "qkv.weight": "(q:heads head_dim + k:heads head_dim + v:heads head_dim) dim",
        "proj.weight": "dim (heads head_dim)",
    }

    def init_state(self, batch: int, capacity: int, like: Tensor) -> Cache:
        size = (batch, self.config.heads, capacity, self.config.head_dim)
        return Cache(keys=like.new_zeros(size), values=like.new_zeros(size), length=0)

    def forward(self, x: Tensor, ctx: core.Context) -> Tensor:
        return self._attend(*self._heads(x))

    def stream(self, x: Tensor, ctx: core.Context, state: Cache) -> tuple[Tensor, Cache]:
        end = state.length + x.shape[1]
        if end > state.keys.shape[2]:
            raise core.UsageError(f"a stream of {end} tokens needs a state of that capacity, not {state.keys.shape[2]}")
        q, k, v = self._heads(x)
        state.keys[:, :, state.length : end] = k
        state.values[:, :, state.length : end] = v
        mixed = self._attend(q, state.keys[:, :, :end], state.values[:, :, :end])
        return mixed, dataclasses.replace(state, length=end)

    def _heads(self, x: Tensor) -> tuple[Tensor, ...]:
        heads = self.qkv(x).view(*x.shape[:2], 3, self.config.heads, self.config.head_dim)
        return heads.permute(2, 0, 3, 1, 4).unbind(0)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mixed = attention(q, k, v, scale=self.config.scale, causal=True)
        return self.proj(mixed.transpose(1, 2).flatten(2))


def retention_by_token(part: ToyRetention, x: Tensor) -> Tensor:
    """The recurrence as it is written down, a token at a time."""
    config, padded = part.config, F.pad(x, (0, 0, part.config.kernel - 1, 0))
    state, outputs = x.new_zeros(len(x), config.heads, config.head_dim, config.head_dim), []
    for t in range(x.shape[1]):
        filtered = (padded[:, t : t + config.kernel] * part.filter[:, 0].T).sum(dim=1)
        q, k, v = part.qkv(filtered).view(len(x), 3, config.heads, config.head_dim).unbind(1)
        state = torch.sigmoid(part.decay)[:, None, None] * state + k[..., :, None] * v[..., None, :]
        outputs.append(part.proj((q[..., None, :] @ state).flatten(1)))
    return torch.stack(outputs, dim=1)


def attention_by_token(part: ToyCachedAttention, x: Tensor) -> Tensor:
    """Each token attends to the ones that there are, with softmax spelt out."""
    q, k, v = part._heads(x)
    rows = []
    for t in range(x.shape[1]):
        weights = (part.config.scale * k[:, :, : t + 1] @ q[:, :, t, :, None]).softmax(dim=2)
        rows.append((weights * v[:, :, : t + 1]).sum(dim=2).flatten(1))
    return part.proj(torch.stack(rows, dim=1))


ORACLES = {
    ToyRetention.Config(dim=6, heads=2, chunk=4): retention_by_token,
    ToyCachedAttention.Config(dim=6, heads=2): attention_by_token,
}
CONTEXT = core.Context()


def same(a: object, b: object) -> None:
    torch.testing.assert_close(pytree.tree_leaves(a), pytree.tree_leaves(b), rtol=0, atol=1e-12)


def made(config: core.Config, tokens: int = 11) -> tuple[core.Part, Tensor]:
    torch.manual_seed(0)
    part = core.build(config).double()
    for parameter in part.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return part, torch.randn(2, tokens, 6, dtype=torch.float64)


def run(part: core.Part, x: Tensor, cut: list[int], state: State | None = None) -> tuple[Tensor, State]:
    state = part.init_state(len(x), 32, x) if state is None else state
    outputs = []
    for piece in x.split(cut, dim=1):
        y, state = part.stream(piece, CONTEXT, state)
        outputs.append(y)
    return torch.cat(outputs, dim=1), state


@pytest.mark.parametrize("config", ORACLES, ids=lambda c: c.part.name)
def test_forward_is_any_cut_of_the_stream(config):
    part, x = made(config)
    whole, state = run(part, x, [11])
    same(part(x, CONTEXT), ORACLES[config](part, x))
    same(part(x, CONTEXT), whole)
    for cut in ([1] * 11, [3, 3, 3, 2], [1, 3, 7], [7, 3, 1], [2, 9]):
        same(run(part, x, cut), (whole, state))


@pytest.mark.parametrize("config", ORACLES, ids=lambda c: c.part.name)
def test_cloned_state_branches(config):
    """Three continuations of one beginning, which take turns."""
    part, x = made(config)
    _, state = run(part, x[:, :4], [3, 1])
    rows = {name: torch.cat((x[:, :4], torch.randn_like(x[:, 4:])), dim=1) for name in "abc"}
    states, outputs = {name: state.clone() for name in rows}, {name: [] for name in rows}
    for turn in ([4, 5], [5, 8], [8, 11]):
        for name, row in rows.items():
            y, states[name] = part.stream(row[:, slice(*turn)], CONTEXT, states[name])
            outputs[name].append(y)
    for name, row in rows.items():
        same(torch.cat(outputs[name], dim=1), part(row, CONTEXT)[:, 4:])


def test_gradients_flow_through_the_cuts():
    part, x = made(ToyRetention.Config(dim=6, heads=2, chunk=4))
    x.requires_grad_()
    tensors = (x, *part.parameters())
    expected = torch.autograd.grad(part(x, CONTEXT).square().sum(), tensors)
    same(torch.autograd.grad(run(part, x, [1, 3, 7])[0].square().sum(), tensors), expected)


def test_full_cache_is_refused():
    part, x = made(ToyCachedAttention.Config(dim=6, heads=2))
    with pytest.raises(core.UsageError, match="a stream of 11 tokens needs a state of that capacity, not 10"):
        part.stream(x, CONTEXT, part.init_state(2, 10, x))


@torch.no_grad()
def test_step_with_its_state_is_an_exportable_program():
    class Step(torch.nn.Module):
        def __init__(self, part: core.Part) -> None:
            super().__init__()
            self.part = part

        def forward(self, x: Tensor, state: Decayed) -> tuple[Tensor, Decayed]:
            return self.part.stream(x, CONTEXT, state)

    part, x = made(ToyRetention.Config(dim=6, heads=2))
    _, state = run(part, x[:, :5], [5])
    program = torch.export.export(Step(part), (x[:, :1], state)).module()
    for t in range(5, 11):
        y, state = program(x[:, t : t + 1], state)
        same(y, part(x, CONTEXT)[:, t : t + 1])
