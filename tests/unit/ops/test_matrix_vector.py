"""A matrix times one vector, and one query's attention, in C++ and in torch: the same, for odd sizes, groups and threads."""

import pytest
import torch

from anyformer.ops import extension, matrix_vector
from anyformer.ops.attention import reference_attention
from anyformer.ops.matrix_vector import attend_token, compiled, fits, gate_token, plain, turn_token, unwatched

pytestmark = pytest.mark.usefixtures("poisoned_memory")

needs_compiler = pytest.mark.skipif(not compiled(), reason="no compiler here")


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(1, 16), (7, 32), (8, 48), (33, 16), (300, 512), (5, 10), (0, 16), (3, 0)])
@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("without", [False, True])
def test_the_product_is_that_of_the_reference(size, more, without):
    weight, x = drawn(*size), drawn(1, 1, size[1], seed=1)
    bias, add = (drawn(size[0], seed=2), drawn(1, 1, size[0], seed=3)) if more else (None, None)
    expected = x.double() @ weight.double().T
    if bias is not None and add is not None:
        expected = expected + bias + add
    if without:
        with extension.without():
            y = matrix_vector.matrix_vector(weight, x, bias, add)
    else:
        y = matrix_vector.matrix_vector(weight, x, bias, add)
    assert y.shape == expected.shape
    assert y.numel() == 0 or (y - expected).abs().max() <= 1e-6 * max(1.0, size[1] ** 0.5)


def test_threads_share_the_rows(monkeypatch):
    weight, x = drawn(1001, 128), drawn(1, 128, seed=1)
    alone = matrix_vector.matrix_vector(weight, x)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    torch.testing.assert_close(matrix_vector.matrix_vector(weight, x), alone, rtol=1e-5, atol=1e-5)


@needs_compiler
@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("length", [1, 7, 64, 101])
@pytest.mark.parametrize("threads", [1, 2])
def test_a_token_goes_into_a_cache_and_attends_to_its_first_slots(group, length, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(matrix_vector, "_WORTH_THREADS", 0)
    q, keys, values = drawn(1, 3 * group, 1, 32), drawn(1, 3, 110, 32, seed=1), drawn(1, 3, 110, 80, seed=2)
    keys[:, :, length:] = values[:, :, length:] = torch.nan
    slot = length // 2
    k, v = keys[:, :, slot : slot + 1].clone(), values[:, :, slot : slot + 1].clone()
    keys[:, :, slot] = values[:, :, slot] = torch.nan
    assert fits(q, k, v, keys, values)
    out = attend_token(q, k, v, keys, values, slot, length, 0.3)
    exact = (x.double() for x in (q, keys[:, :, :length], values[:, :, :length]))
    assert (out - reference_attention(*exact, scale=0.3)).abs().max() <= 2e-6


@needs_compiler
def test_a_token_turned_is_one_of_many():
    x, pair = drawn(1, 3, 1, 20), torch.arange(10)
    y = turn_token(x, torch.tensor([977]), pair, -0.3)
    angle = 977 * torch.exp(-0.3 * pair.double())
    low, high = x.double().chunk(2, -1)
    expected = torch.cat((low * angle.cos() - high * angle.sin(), high * angle.cos() + low * angle.sin()), -1)
    assert y is not None
    assert (y - expected).abs().max() <= 3e-4  # of an angle of 977, float32 knows no more
    assert turn_token(x, torch.tensor([1, 2]), pair, -0.3) is None
    assert turn_token(x.double(), torch.tensor([1]), pair, -0.3) is None


@needs_compiler
def test_a_token_gated_is_one_of_many():
    x = 9 * drawn(1, 1, 46)
    x[..., 3], x[..., 5] = -200.0, 200.0
    gate, up = x.double().chunk(2, -1)
    y = gate_token(x)
    assert y is not None
    assert (y - gate * gate.sigmoid() * up).abs().max() <= 1e-6 * y.abs().max()
    assert gate_token(drawn(1, 2, 46)) is None
    assert gate_token(x.double()) is None


def test_asking_once_is_asking():
    x = drawn(4, 16)
    with torch.no_grad(), unwatched(), unwatched():
        assert plain(x)
        assert not plain(x.T)
    with unwatched():  # gradients are recorded
        assert not plain(x.clone().requires_grad_())
    with torch.no_grad(), torch.autocast("cpu"), unwatched():
        assert not plain(x)
    with torch.no_grad(), extension.without(), unwatched():
        assert not compiled()


def test_what_is_watched_or_other_is_left_to_torch():
    x = drawn(4, 16)
    assert plain(x)
    assert not plain(x.T)
    assert not plain(x, x.double())
    assert not plain(x.to("meta"))
    assert not plain(x.clone().requires_grad_())
    with torch.no_grad():
        assert plain(x.clone().requires_grad_())
    with torch.autocast("cpu"):
        assert not plain(x)
    with torch.device("cpu"):  # a mode that sees every call
        assert not plain(x)
    q, cache = drawn(1, 2, 1, 16), drawn(1, 2, 5, 16)
    assert fits(q, q, q, cache, cache) == compiled()
    assert not fits(drawn(2, 2, 1, 16), q, q, cache, cache)
    assert not fits(drawn(1, 2, 2, 16), q, q, cache, cache)
    assert not fits(drawn(1, 2, 1, 20), q, q, cache, cache)
    assert not fits(q, q, q, drawn(1, 3, 5, 16), cache)
    with extension.without():
        assert not fits(q, q, q, cache, cache)


@needs_compiler
def test_not_a_number_reaches_only_its_row():
    weight, x = drawn(40, 32), drawn(1, 32, seed=1)
    whole = matrix_vector.matrix_vector(weight, x)
    weight[9, 3] = torch.nan
    y = matrix_vector.matrix_vector(weight, x)
    assert torch.equal(y.isnan()[0].nonzero()[:, 0], torch.tensor([9]))
    kept = torch.arange(40) != 9
    assert torch.equal(y[0, kept], whole[0, kept])
