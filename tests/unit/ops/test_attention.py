"""``attention`` equals its reference, outputs and gradients, whatever is masked, odd or empty."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from anyformer.ops.attention import attention, reference_attention

pytestmark = pytest.mark.usefixtures("poisoned_memory")

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}


def close(ours, theirs, tolerance):
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    assert not ours.isnan().any()
    if ours.numel():
        assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1)


@st.composite
def problems(draw):
    seed = draw(st.integers(0, 999))
    generator = torch.Generator().manual_seed(seed)
    dtype = draw(st.sampled_from(list(TOLERANCES)))
    kv_heads, group = draw(st.sampled_from([(1, 1), (3, 1), (2, 3), (1, 4)]))
    batch = draw(st.sampled_from([1, 2, 0]))
    queries, keys = draw(
        st.sampled_from([(1, 1), (7, 7), (33, 33), (1, 19), (5, 19), (19, 5), (67, 3), (0, 5), (5, 0)])
    )
    head_dim, values = draw(st.sampled_from([(8, 8), (5, 5), (16, 3)]))
    heads = kv_heads * group
    sizes = [(batch, heads, queries, head_dim), (batch, kv_heads, keys, head_dim), (batch, kv_heads, keys, values)]
    tensors = [torch.randn(size, generator=generator, dtype=dtype) for size in sizes]
    shape = draw(st.sampled_from([None, (queries, keys), (1, heads, queries, keys), (batch, 1, 1, keys)]))
    kind = draw(st.sampled_from(["added", "kept", "learned"]))
    bias = None
    if shape is not None:
        bias = torch.randn(shape, generator=generator, dtype=dtype)
        bias = bias > -0.5 if kind == "kept" else bias.requires_grad_(kind == "learned")
    direction = torch.randn((batch, heads, queries, values), generator=generator, dtype=dtype)
    return tensors, bias, direction, draw(st.booleans()), TOLERANCES[dtype]


@given(problems())
def test_equal_to_the_reference(problem):
    tensors, bias, direction, causal, tolerance = problem
    arguments = {"scale": 0.3, "causal": causal, "bias": bias}
    close(attention(*tensors, **arguments), reference_attention(*tensors, **arguments), tolerance)
    wanted = [tensor.requires_grad_() for tensor in tensors]
    if bias is not None and bias.requires_grad:
        wanted.append(bias)
    ours, theirs = attention(*tensors, **arguments), reference_attention(*tensors, **arguments)
    close(ours, theirs, tolerance)
    # without queries torch leaves the bias out of the graph: its gradient is then made zero
    mine, expected = (torch.autograd.grad(y, wanted, direction, materialize_grads=True) for y in (ours, theirs))
    for one, other in zip(mine, expected, strict=True):
        close(one, other, tolerance)


@pytest.mark.parametrize("function", [attention, reference_attention])
@pytest.mark.parametrize("kind", ["boolean", "minus infinity", "learned"])
def test_a_query_that_may_attend_to_nothing_gives_zeros_and_no_gradient(function, kind):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 9, 8, requires_grad=True) for _ in range(3))
    keep = torch.ones(9, 9, dtype=torch.bool)
    keep[4] = False
    bias = keep
    if kind != "boolean":
        bias = torch.randn(9, 9).masked_fill(~keep, -torch.inf).requires_grad_(kind == "learned")
    y = function(q, k, v, scale=0.3, bias=bias)
    assert not y[:, :, 4].any()
    assert y[:, :, 5].all()
    for gradient in torch.autograd.grad(y.sum(), (q, k, v) + ((bias,) if kind == "learned" else ())):
        assert not gradient.isnan().any()
    gradient = torch.autograd.grad(function(q, k, v, scale=0.3, bias=bias).square().sum(), q)[0]
    assert not gradient[:, :, 4].any()


@pytest.mark.parametrize("function", [attention, reference_attention])
def test_causal_queries_stand_at_the_end_of_the_keys(function):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 9, 8, dtype=torch.float64) for _ in range(3))
    whole = function(q, k, v, scale=0.3, causal=True)
    for length in (1, 3, 9):
        tail = function(q[:, :, -length:], k, v, scale=0.3, causal=True)
        close(tail, whole[:, :, -length:], 1e-12)
    early = function(q, k[:, :, :4], v[:, :, :4], scale=0.3, causal=True)
    assert not early[:, :, :5].any()
    close(early[:, :, 5:6], v[:, :, :1], 1e-12)


def test_a_value_by_hand():
    q = torch.tensor([[[[1.0]]]])
    k = torch.tensor([[[[0.0], [2.0]]]])
    v = torch.tensor([[[[3.0], [5.0]]]])
    weight = torch.sigmoid(torch.tensor(2 * 0.5 + 0.25))
    for function in (attention, reference_attention):
        y = function(q, k, v, scale=0.5, bias=torch.tensor([[0.0, 0.25]]))
        torch.testing.assert_close(y, (3 + 2 * weight).view(1, 1, 1, 1))


def test_heads_share_the_keys_of_their_group():
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, 5, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 8)
    y = attention(q, k, v, scale=0.3)
    close(y[:, 2:], attention(q[:, 2:], k[:, 1:].expand(1, 2, 5, 8), v[:, 1:].expand(1, 2, 5, 8), scale=0.3), 1e-6)
