"""Cross attention against the reference, and what its memory keeps."""

import pytest
import torch

from anyformer import core
from anyformer.ops.attention import reference_attention

from .build_part import build, random

DIM = 12


def made():
    return build("cross_attention", dim=DIM, kv_heads=2, group=3, head_dim=4, scale=0.3)


def test_every_token_attends_to_the_memory():
    part, x, features = made(), random(2, 5, DIM), random(2, 7, DIM)
    keep = torch.tensor([[True] * 7, [True, False, True, False, False, True, True]])
    dirty = torch.where(keep[..., None], features, torch.nan)
    given = part(x, core.Context(memory=(dirty, core.Context(mask=keep))))
    for row in range(2):
        k, v = (features[row, keep[row]] @ part.kv.weight.T).chunk(2, -1)
        heads = (t.unflatten(-1, (-1, 4)).transpose(0, 1)[None] for t in (x[row] @ part.q.weight.T, k, v))
        wanted = reference_attention(*heads, scale=0.3)[0].transpose(0, 1).flatten(1) @ part.proj.weight.T
        torch.testing.assert_close(given[row], wanted, rtol=1e-10, atol=1e-10)


def test_what_is_remembered_is_the_memory():
    part, x, memory = made(), random(2, 5, DIM), (random(2, 7, DIM), core.Context())
    state = part.remember(memory)
    assert state.keys.shape == state.values.shape == (2, 2, 7, 4)
    assert torch.equal(part(x, core.Context(), state), part(x, core.Context(memory=memory)))


def test_a_memory_of_nothing_gives_zeros():
    part, x = made(), random(2, 5, DIM)
    nobody = torch.zeros(2, 3, dtype=torch.bool)
    assert not part(x, core.Context(memory=(random(2, 3, DIM), core.Context(mask=nobody)))).any()


def test_without_a_memory_it_says_where_it_belongs():
    with pytest.raises(core.UsageError, match="no memory to attend to; it belongs into an encoder_decoder"):
        made()(random(1, 2, DIM), core.Context())


def test_heads_follow_from_the_width():
    spec = core.resolve(core.registry.part("cross_attention").Config(dim=192))
    assert (spec.kv_heads, spec.head_dim, spec.scale) == (3, 64, 0.125)
    assert core.resolve(core.registry.part("cross_attention").Config(dim=32)).kv_heads == 1


def test_a_scale_is_taken_in():
    part, x, scale = made(), random(1, 4, DIM), random(DIM)
    context = core.Context(memory=(random(1, 3, DIM), core.Context()))
    before = part(x, context)
    with torch.no_grad():
        assert part.scaled(scale)
    torch.testing.assert_close(part(x, context), before * scale)
