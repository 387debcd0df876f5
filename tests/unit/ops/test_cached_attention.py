"""A stream through a cache is the whole, however it is cut, masked and wound round a ring; a step copies no cache."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from anyformer.core.errors import UsageError
from anyformer.ops import cached_attention as module
from anyformer.ops.cached_attention import cached_attention, new_cache
from anyformer.ops.causal_attention import reference_causal_attention

pytestmark = pytest.mark.usefixtures("poisoned_memory")

TOKENS, HEADS, KV_HEADS = 23, 4, 2
SLOPES = torch.tensor([0.5, 0.1, 0.0, 1.0], dtype=torch.float64)
FORMS = {
    "all": {},
    "window": {"window": 5},
    "itself": {"window": 1},
    "sinks": {"window": 5, "sinks": 3},
    "wide": {"window": 40, "sinks": 2},
    "slopes": {"slopes": SLOPES},
    "everything": {"window": 4, "sinks": 2, "slopes": SLOPES},
}
CUTS = [[23], [1] * 23, [11, 12], [1, 1, 1, 9, 1, 1, 1, 8], [3, 0, 20]]


def drawn(seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = ((HEADS, 6), (KV_HEADS, 6), (KV_HEADS, 5))
    return [torch.randn(3, heads, TOKENS, size, generator=generator, dtype=torch.float64) for heads, size in sizes]


def scattered():
    """A row with holes, one padded on both sides, and one of pads until late."""
    keep = torch.rand(3, TOKENS, generator=torch.Generator().manual_seed(0)) > 0.4
    keep[1] = (torch.arange(TOKENS) >= 4) & (torch.arange(TOKENS) < 19)
    keep[2] = torch.arange(TOKENS) >= 17
    return keep


def empty(form, like, capacity=TOKENS):
    options = {name: value for name, value in FORMS[form].items() if name != "slopes"}
    return new_cache(like, len(like), KV_HEADS, capacity, 6, values=5, **options)


def streamed(form, tensors, cut, keep=None, cache=None):
    cache = empty(form, tensors[1]) if cache is None else cache
    options = {name: x.to(tensors[0].dtype) if name == "slopes" else x for name, x in FORMS[form].items()}
    keeps = [None] * len(cut) if keep is None else keep.split(cut, 1)
    outs = []
    for q, k, v, kept in zip(*(x.split(cut, 2) for x in tensors), keeps, strict=True):
        out, cache = cached_attention(q, k, v, cache, scale=0.4, keep=kept, **options)
        outs.append(out)
    return torch.cat(outs, 2), cache


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("block", [3, 256])
def test_any_cut_is_the_whole(form, masked, block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    tensors, keep = drawn(), scattered() if masked else None
    whole = reference_causal_attention(*tensors, scale=0.4, keep=keep, **FORMS[form])
    states = []
    for cut in CUTS:
        out, cache = streamed(form, tensors, cut, keep)
        assert (out - whole).abs().max() <= 1e-12
        assert cache.length == TOKENS
        states.append(cache)
    for state in states:
        assert torch.equal(state.keys, states[0].keys)
        assert torch.equal(state.values, states[0].values)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_lower_precision(form, dtype):
    exact = reference_causal_attention(*drawn(), scale=0.4, **FORMS[form])
    out, _ = streamed(form, [x.to(dtype) for x in drawn()], [7, 1, 1, 14])
    assert out.dtype == dtype
    assert (out - exact).abs().max() <= (1e-5 if dtype == torch.float32 else 0.05)


@pytest.mark.parametrize("form", FORMS)
def test_a_mask_ends_and_begins_in_a_stream(form):
    """Prompts padded to one length, then tokens that all count."""
    tensors, keep = drawn(), scattered()
    keep[:, 12:] = True
    keep[:, :2] = True
    whole = reference_causal_attention(*tensors, scale=0.4, keep=keep, **FORMS[form])
    cache, outs, start = None, [], 0
    for size, masked in ((1, False), (1, False), (10, True), (1, False), (3, False), (1, False), (6, False)):
        part = slice(start, start + size)
        cut = [x[:, :, part] for x in tensors]
        out, cache = streamed(form, cut, [size], keep[:, part] if masked else None, cache)
        outs.append(out)
        start += size
    assert (torch.cat(outs, 2) - whole).abs().max() <= 1e-12
    assert torch.equal(cache.counts, keep.sum(1))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("junk", [1e4, torch.nan])
def test_the_cache_of_a_padded_row_is_that_of_the_row_alone(form, junk):
    tensors, keep = drawn(), scattered()
    spoilt = [torch.where(keep[:, None, :, None], x, junk) for x in tensors]
    for cut in ([23], [1] * 23, [9, 14]):
        out, cache = streamed(form, spoilt, cut, keep)
        assert not out.transpose(1, 2)[~keep].any()
        for row in range(3):
            alone = [x[row : row + 1, :, keep[row]] for x in tensors]
            count = alone[0].shape[2]
            expected, one = streamed(form, alone, [count], cache=empty(form, alone[0]))
            assert (out[row][:, keep[row]] - expected[0]).abs().max() <= 1e-12
            assert torch.equal(cache.keys[row], one.keys[0])
            assert torch.equal(cache.values[row], one.values[0])


@pytest.mark.parametrize("form", ["window", "sinks", "everything", "itself"])
def test_a_ring_is_as_long_as_what_is_seen_and_never_full(form):
    options = FORMS[form]
    cache = empty(form, drawn()[1], 10_000)
    assert cache.keys.shape[2] == options["window"] + options.get("sinks", 0)
    place = cache.keys.data_ptr(), cache.values.data_ptr()
    tensors = [torch.cat((x, x.flip(2)), 2) for x in drawn()]
    out, cache = streamed(form, tensors, [5, 1, 1, 12, 20, 7], cache=cache)
    assert (out - reference_causal_attention(*tensors, scale=0.4, **options)).abs().max() <= 1e-12
    assert (cache.keys.data_ptr(), cache.values.data_ptr()) == place


@pytest.mark.parametrize("form", ["all", "wide"])
@pytest.mark.parametrize("masked", [False, True])
def test_a_stream_beyond_the_capacity(form, masked):
    tensors = drawn()
    with pytest.raises(UsageError, match="a stream of 23 tokens needs a state of that capacity, not 22"):
        streamed(form, tensors, [20, 3], scattered() if masked else None, empty(form, tensors[1], 22))


def test_fewer_slots_than_sinks():
    tensors = [x[:, :, :4] for x in drawn()]
    whole = reference_causal_attention(*tensors, scale=0.4, window=2, sinks=6)
    cache = new_cache(tensors[1], 3, KV_HEADS, 4, 6, values=5, window=2, sinks=6)
    keep = torch.ones(3, 4, dtype=torch.bool)
    for kept in (None, keep):
        out, _ = cached_attention(*tensors, cache.clone(), scale=0.4, window=2, sinks=6, keep=kept)
        assert (out - whole).abs().max() <= 1e-12


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("masked", [False, True])
def test_branches(form, masked):
    tensors, keep = drawn(), scattered() if masked else torch.ones(3, TOKENS, dtype=torch.bool)
    given = keep if masked else None
    _, cache = streamed(form, [x[:, :, :9] for x in tensors], [9], None if given is None else given[:, :9])
    branch = cache.clone()
    other = [torch.cat((x[:, :, :9], y[:, :, 9:]), 2) for x, y in zip(tensors, drawn(seed=1), strict=True)]
    for path, start in ((tensors, cache), (other, branch)):
        rest = None if given is None else given[:, 9:]
        out, _ = streamed(form, [x[:, :, 9:] for x in path], [1, 13], rest, start)
        whole = reference_causal_attention(*path, scale=0.4, keep=given, **FORMS[form])
        assert (out - whole[:, :, 9:]).abs().max() <= 1e-12


class Made(TorchDispatchMode):
    """Counts operators and the numbers of the largest tensor that is new, views and writes into others aside."""

    def __init__(self):
        super().__init__()
        self.operators, self.largest = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.operators += 1
        if not function.is_view and not function._schema.name.endswith("_"):
            for x in result if isinstance(result, tuple | list) else (result,):
                self.largest = max(self.largest, x.numel() if isinstance(x, torch.Tensor) else 0)
        return result


@pytest.mark.parametrize("form", ["all", "window", "sinks"])
@pytest.mark.parametrize("passed", [2, 20])
def test_a_step_makes_nothing_as_large_as_the_cache(form, passed):
    options, tensors = FORMS[form], [torch.randn(3, heads, TOKENS, 8) for heads in (HEADS, KV_HEADS, KV_HEADS)]
    cache = new_cache(tensors[1], 3, KV_HEADS, TOKENS, 8, **options)
    _, cache = streamed(form, [x[:, :, :passed] for x in tensors], [passed], cache=cache)
    with Made() as made:
        cached_attention(*(x[:, :, passed : passed + 1] for x in tensors), cache, scale=0.4, **options)
    assert made.largest <= tensors[0][:, :, :1].numel()
    assert made.operators <= 16


def test_a_step_exports_with_its_cache():
    class Step(torch.nn.Module):
        def forward(self, q, k, v, cache):
            return cached_attention(q, k, v, cache, scale=0.4)

    tensors = [x.float() for x in drawn()]
    past, one = ([x[:, :, part] for x in tensors] for part in (slice(0, 9), slice(9, 10)))
    _, cache = streamed("all", past, [9])
    expected, _ = cached_attention(*one, cache.clone(), scale=0.4)
    out, after = torch.export.export(Step(), (*one, cache.clone())).module()(*one, cache.clone())
    assert torch.allclose(out, expected, atol=1e-6)
    assert torch.equal(after.keys[:, :, :10], tensors[1][:, :, :10])
