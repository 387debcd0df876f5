"""``causal_attention`` equals its reference with any window, sinks, slopes, masks and packing."""

import pytest
import torch

from anyformer.core.errors import UsageError
from anyformer.ops import causal_attention as module
from anyformer.ops.causal_attention import causal_attention, reference_causal_attention

from . import sequences

pytestmark = pytest.mark.usefixtures("poisoned_memory")

GROUP, KV_HEADS, KEY, VALUE = 2, 2, 6, 5
FORMS = {
    "all": {},
    "window": {"window": 5},
    "itself": {"window": 1},
    "sinks": {"window": 5, "sinks": 3},
    "wide": {"window": 37, "sinks": 20},
    "slopes": {"slopes": True},
    "everything": {"window": 9, "sinks": 2, "slopes": True},
}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    """Few tokens cross the edges of many blocks."""
    monkeypatch.setattr(module, "BLOCK", 8)


def make(generator, batch, tokens, dtype):
    shapes = {"q": (GROUP * KV_HEADS, KEY), "k": (KV_HEADS, KEY), "v": (KV_HEADS, VALUE)}
    return {
        name: torch.randn(batch, heads, tokens, size, generator=generator, dtype=dtype)
        for name, (heads, size) in shapes.items()
    }


def with_slopes(generator, batch, tokens, dtype):
    slopes = torch.rand(GROUP * KV_HEADS, generator=generator, dtype=dtype)
    return {**make(generator, batch, tokens, dtype), "slopes": slopes}


def stream(function, form, maker=make):
    """As the checks of sequences want it: the state is all keys and values that have passed, the slopes do not change."""
    options = {name: value for name, value in FORMS[form].items() if name != "slopes"}
    slopes = with_slopes(torch.Generator().manual_seed(7), 1, 1, torch.float64)["slopes"]

    def run(q, k, v, state=None, **others):
        if "slopes" in FORMS[form]:
            others.setdefault("slopes", slopes.to(q.dtype))
        if state is not None:
            past = state.split((KEY, VALUE), -1)
            k, v = torch.cat((past[0], k), 2), torch.cat((past[1], v), 2)
        out = function(q, k, v, scale=0.4, **options, **others)
        return out, torch.cat((k, v), -1)

    return run


def both(form):
    return stream(causal_attention, form), stream(reference_causal_attention, form)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equal_to_the_reference_at_every_length(form, dtype):
    fast, reference = both(form)
    for tokens in (0, 1, 2, 7, 8, 9, 17, 40):
        sequences.equal(fast, reference, sequences.generated(make, 2, tokens, dtype))
    sequences.equal(fast, reference, sequences.generated(make, 0, 5, dtype))


@pytest.mark.parametrize("form", FORMS)
def test_in_blocks_of_another_size(form, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 32)
    fast, reference = both(form)
    inputs = sequences.generated(make, 1, 2 * 32 + 1)
    sequences.close(fast(**inputs)[0], reference(**inputs)[0], 1e-12)
    leaves = [inputs[name].requires_grad_() for name in "qkv"]
    ours, theirs = (torch.autograd.grad(f(**inputs)[0].square().sum(), leaves) for f in (fast, reference))
    for mine, expected in zip(ours, theirs, strict=True):
        sequences.close(mine, expected, 1e-12)


@pytest.mark.parametrize("form", ["slopes", "everything"])
def test_slopes_have_gradients(form):
    inputs = sequences.generated(with_slopes, 2, 20)
    fast, reference = both(form)

    def over(function):
        def run(q, k, v, slopes):
            return function(q, k, v, slopes=slopes)

        return run

    sequences.equal(over(fast), over(reference), inputs)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_of_precision(form, dtype):
    sequences.halves_of_precision(*both(form), make, dtype, tokens=40)


@pytest.mark.parametrize("form", FORMS)
def test_any_split_of_a_stream_is_the_whole(form):
    sequences.any_split(both(form)[0], make)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "itself"])
def test_causal_to_the_bit(form):
    sequences.causal(both(form)[0], make, 40, every=3)


def test_a_window_of_one_gives_the_values():
    inputs = sequences.generated(make, 2, 20)
    out = both("itself")[0](**inputs)[0]
    sequences.close(out, inputs["v"].repeat_interleave(GROUP, 1), 1e-14)


def test_a_window_ends():
    """Noise in what has left the window changes nothing; in what is just inside, everything."""
    inputs = sequences.generated(make, 1, 30)
    for form, seen in (("window", [24, 25]), ("sinks", [0, 2, 24, 25])):
        fast = both(form)[0]
        before = fast(**inputs)[0][:, :, 28]
        for token in range(28):
            changed = {name: x.clone() for name, x in inputs.items()}
            changed["v"][:, :, token] += 1
            same = torch.equal(fast(**changed)[0][:, :, 28], before)
            inside = token > 28 - 5 or (form == "sinks" and token < 3)
            assert same != inside, (form, token)
            assert inside or token not in seen


@pytest.mark.parametrize("form", FORMS)
def test_rows_are_independent(form):
    sequences.rows_are_independent(both(form)[0], make, 40)


@pytest.mark.parametrize("form", FORMS)
def test_any_layout_and_nothing_written(form):
    sequences.layouts(both(form)[0], make, 40)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", [1e-6, 1e4])
@pytest.mark.parametrize("change", ["scaled", "zero keys", "equal keys"])
def test_extremes(form, scale, change):
    inputs = {name: x * scale for name, x in sequences.generated(make, 1, 40, torch.float32).items()}
    if change == "zero keys":
        inputs["k"] = torch.zeros_like(inputs["k"])
    if change == "equal keys":
        inputs["k"] = inputs["k"][:, :, :1].expand_as(inputs["k"])
    sequences.finite(both(form)[0], inputs)


@pytest.mark.parametrize("form", FORMS)
def test_masks(form):
    """Scattered, on both sides, none and all; what is masked may hold anything."""
    fast, reference = both(form)
    inputs = sequences.generated(make, 5, 21)
    keep = torch.rand(5, 21, generator=torch.Generator().manual_seed(0)) > 0.4
    keep[1], keep[2] = False, True
    keep[3, :4], keep[3, 15:] = False, False
    sequences.equal(lambda **x: fast(**x, keep=keep), lambda **x: reference(**x, keep=keep), inputs)
    expected = fast(**inputs, keep=keep)[0]
    assert not expected.transpose(1, 2)[~keep].any()
    for junk in (1e4, torch.inf, torch.nan):
        spoilt = {name: torch.where(keep[:, None, :, None], x, junk) for name, x in inputs.items()}
        assert torch.equal(fast(**spoilt, keep=keep)[0], expected)


@pytest.mark.parametrize("form", FORMS)
def test_a_padded_row_is_what_it_is_alone(form):
    fast = both(form)[0]
    inputs = sequences.generated(make, 1, 20)
    keep = (torch.arange(20) >= 3) & (torch.arange(20) < 15)
    alone = {name: x[:, :, 3:15] for name, x in inputs.items()}
    padded = fast(**inputs, keep=keep[None])[0]
    sequences.close(padded[:, :, 3:15], fast(**alone)[0], 1e-14)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("sizes", "masked"), [((3, 0, 1, 8, 20, 9, 0), False), ((3, 0, 12), True), ((1, 1, 1), False), ((0, 0), False)]
)
def test_packed_sequences(form, sizes, masked):
    fast, reference = both(form)
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    inputs = sequences.generated(make, 1, sum(sizes))
    keep = torch.rand(1, sum(sizes), generator=torch.Generator().manual_seed(0)) > 0.3 if masked else None

    def packed(**x):
        return fast(**x, offsets=offsets, keep=keep)

    sequences.equal(packed, lambda **x: reference(**x, offsets=offsets, keep=keep), inputs)
    whole = packed(**inputs)[0]
    for x in inputs.values():
        x[:, :, : offsets[1]] = torch.nan
    assert torch.equal(packed(**inputs)[0][:, :, offsets[1] :], whole[:, :, offsets[1] :])


@pytest.mark.parametrize("offsets", [[1, 5], [0, 4], [0, 6], [0, 3, 2, 5], [0]])
def test_offsets_that_do_not_rise_to_the_number_of_tokens(offsets):
    inputs = sequences.generated(make, 1, 5)
    with pytest.raises(UsageError, match=r"must rise from 0 to the number of tokens, 5, not \[.*\]"):
        causal_attention(**inputs, scale=1.0, offsets=torch.tensor(offsets))


@pytest.mark.parametrize("form", ["slopes", "everything"])
def test_gradients_by_differences(form):
    inputs = sequences.generated(make, 1, 9)
    leaves = [x[..., :2].clone().requires_grad_() for x in inputs.values()]
    options = {**FORMS[form], "slopes": torch.tensor([0.5, 0.1, 0.0, 1.0], dtype=torch.float64)}
    assert torch.autograd.gradcheck(lambda *x: causal_attention(*x, scale=0.5, **options), leaves)


@pytest.mark.parametrize("form", ["all", "sinks", "everything"])
@pytest.mark.parametrize("masked", [False, True])
def test_compiles_and_exports(form, masked):
    inputs = sequences.generated(make, 2, 20, torch.float32)
    keep = torch.rand(2, 20, generator=torch.Generator().manual_seed(0)) > 0.3 if masked else None
    slopes = torch.tensor([0.5, 0.1, 0.0, 1.0]) if "slopes" in FORMS[form] else None

    class Mixer(torch.nn.Module):
        def forward(self, inputs, keep):
            return causal_attention(**inputs, scale=0.4, keep=keep, **{**FORMS[form], "slopes": slopes})

    expected = Mixer()(inputs, keep)
    torch.compiler.reset()
    compiled = torch.compile(Mixer(), fullgraph=True, backend="eager", dynamic=False)
    exported = torch.export.export(Mixer(), (inputs, keep)).module()
    for function in (compiled, exported):
        sequences.close(function(inputs, keep), expected, 1e-6)


@pytest.mark.parametrize("form", ["window", "sinks", "everything"])
def test_no_tensor_is_longer_than_a_few_windows_or_the_inputs(form):
    """Neither forwards nor backwards; a mask of tokens * tokens would be."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            for x in result if isinstance(result, tuple | list) else (result,):
                if isinstance(x, torch.Tensor):
                    self.numbers = max(self.numbers, x.numel())
            return result

    inputs = sequences.generated(make, 1, 2000, torch.float32)
    leaves = [x.requires_grad_() for x in inputs.values()]
    with Largest() as largest:
        torch.autograd.grad(both(form)[0](**inputs)[0].sum(), leaves)
    assert largest.numbers <= max(x.numel() for x in leaves)


def test_by_hand():
    """Two tokens of equal keys: the second sees their mean, with a window of one itself, with a slope less of the first."""
    one, v = torch.ones(1, 1, 2, 1), torch.tensor([[[[2.0], [6.0]]]])
    for function in (causal_attention, reference_causal_attention):
        assert function(one, one, v, scale=1.0).flatten().tolist() == [2.0, 4.0]
        assert function(one, one, v, scale=1.0, window=1).flatten().tolist() == [2.0, 6.0]
        assert function(one, one, v, scale=1.0, window=1, sinks=1).flatten().tolist() == [2.0, 4.0]
        sloped = function(one, one, v, scale=1.0, slopes=torch.tensor([3.0]).log())
        torch.testing.assert_close(sloped.flatten(), torch.tensor([2.0, 5.0]))
