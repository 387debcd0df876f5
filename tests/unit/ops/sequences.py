"""What every operation on sequences is held to, as plain functions of the fast form, its reference and its inputs.

``make(generator, batch, tokens, dtype)`` gives the inputs by name: those whose dimension 2 is the tokens, and perhaps
``state``. ``fast(**inputs)`` and ``reference(**inputs)`` return outputs, tokens along dimension 2, and the final state.
Inputs that are not floating point or None are passed on unread.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Inputs = dict[str, Tensor | None]
Operation = Callable[..., tuple[Tensor, Tensor]]
Make = Callable[[torch.Generator, int, int, torch.dtype], Inputs]

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}


def generated(make: Make, batch: int, tokens: int, dtype=torch.float64, seed=0) -> Inputs:
    return make(torch.Generator().manual_seed(seed), batch, tokens, dtype)


def error(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference over the largest value of the reference; infinite where something is not a number."""
    assert ours.shape == theirs.shape
    if not ours.numel():
        return 0.0
    worst = (ours.double() - theirs.double()).abs().max() / theirs.double().abs().max().clamp(min=1e-30)
    return worst.nan_to_num(nan=torch.inf).item()


def close(ours: Tensor, theirs: Tensor, tolerance: float) -> None:
    assert ours.dtype == theirs.dtype
    assert error(ours, theirs) <= tolerance


def over_tokens(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    """The inputs with what stands along the tokens changed, the state as it is."""
    return {name: x if x is None or name in ("state", "offsets") else change(x) for name, x in inputs.items()}


def floating(inputs: Inputs) -> dict[str, Tensor]:
    return {name: x for name, x in inputs.items() if x is not None and x.is_floating_point()}


def equal(fast: Operation, reference: Operation, inputs: Inputs, tolerance: float | None = None) -> None:
    """N2, N4: outputs, final state, and the gradients of every input."""
    wanted = floating(inputs)
    tolerance = tolerance or TOLERANCES[next(iter(wanted.values())).dtype]
    leaves = {name: x.detach().clone().requires_grad_() for name, x in wanted.items()}
    ours, theirs = fast(**{**inputs, **leaves}), reference(**{**inputs, **leaves})
    generator = torch.Generator().manual_seed(1)
    directions = [torch.randn(y.shape, generator=generator, dtype=y.dtype) for y in theirs]
    for mine, expected in zip(ours, theirs, strict=True):
        close(mine, expected, tolerance)
    gradients = []
    for results in (ours, theirs):
        # of no tokens, outputs need not depend on anything
        pairs = [(y, direction) for y, direction in zip(results, directions, strict=True) if y.requires_grad]
        gradients.append(_gradients(pairs, list(leaves.values())))
    for name, mine, expected in zip(leaves, *gradients, strict=True):
        assert error(mine, expected) <= tolerance, f"gradient of {name}: {error(mine, expected)}"


def _gradients(pairs: list[tuple[Tensor, Tensor]], leaves: list[Tensor]) -> tuple[Tensor, ...]:
    outputs, directions = zip(*pairs, strict=True)
    return torch.autograd.grad(outputs, leaves, directions, materialize_grads=True)


def halves_of_precision(
    fast: Operation, reference: Operation, make: Make, dtype: torch.dtype, tokens: int = 130
) -> None:
    """N3: the error is at most twice that of the reference computed in the same dtype."""
    inputs = generated(make, 2, tokens, dtype)
    exact = reference(**{name: x.double() if name in floating(inputs) else x for name, x in inputs.items()})
    for ours, naive, right in zip(fast(**inputs), reference(**inputs), exact, strict=True):
        assert error(ours, right) <= 2 * error(naive, right)


def any_split(fast: Operation, make: Make, tokens: int = 65, tolerance: float = 1e-12) -> None:
    """N5: two parts of a stream, whatever the cut, equal the whole; and so do single tokens."""
    inputs = generated(make, 2, tokens)
    whole, final = fast(**inputs)
    for cut in range(tokens + 1):
        head, state = fast(**over_tokens(inputs, lambda x, c=cut: x[:, :, :c]))
        tail, state = fast(**{**over_tokens(inputs, lambda x, c=cut: x[:, :, c:]), "state": state})
        close(torch.cat([head, tail], 2), whole, tolerance)
        close(state, final, tolerance)
    state, outs = inputs.get("state"), []
    for t in range(tokens):
        out, state = fast(**{**over_tokens(inputs, lambda x, t=t: x[:, :, t : t + 1]), "state": state})
        outs.append(out)
    close(torch.cat(outs, 2), whole, tolerance)
    close(state, final, tolerance)


def causal(
    fast: Operation,
    make: Make,
    tokens: int,
    dtype: torch.dtype = torch.float32,
    every: int = 1,
    bounded: tuple[str, ...] = (),
) -> None:
    """N6: noise a thousand times as large in all later tokens changes no bit, and no gradient passes to them.

    Inputs named as ``bounded``, with which the recurrence would overflow if they grew, are only replaced.
    """
    inputs = generated(make, 1, tokens, dtype)
    noise = generated(make, 1, tokens, dtype, seed=1)
    noise = {name: x if x is None or name in bounded else 1e3 * x for name, x in noise.items()}
    before, _ = fast(**inputs)
    for t in range(0, tokens - 1, every):
        changed = {
            name: x if name == "state" or x is None else torch.cat([x[:, :, : t + 1], noise[name][:, :, t + 1 :]], 2)
            for name, x in inputs.items()
        }
        after, _ = fast(**changed)
        assert torch.equal(after[:, :, : t + 1], before[:, :, : t + 1]), t
    t = tokens // 2
    leaves = {name: x.clone().requires_grad_() for name, x in floating(inputs).items() if name != "state"}
    out, _ = fast(**{**inputs, **leaves})
    for name, gradient in zip(leaves, torch.autograd.grad(out[:, :, t].sum(), list(leaves.values())), strict=True):
        assert not gradient[:, :, t + 1 :].any(), name
        assert gradient[:, :, : t + 1].any(), name


def rows_are_independent(fast: Operation, make: Make, tokens: int = 70) -> None:
    """N8: a row of a batch is what it is alone, and something that is not a number stays in its row."""
    inputs = generated(make, 3, tokens, torch.float32)
    out, final = fast(**inputs)
    for row in range(3):
        alone = fast(**{name: None if x is None else x[row : row + 1] for name, x in inputs.items()})
        close(alone[0], out[row : row + 1], 2e-6)
        close(alone[1], final[row : row + 1], 2e-6)
    for name in floating(inputs):
        spoilt = {key: x if x is None else x.clone() for key, x in inputs.items()}
        spoilt[name][0].select(-1, 0).fill_(torch.nan)
        changed = fast(**spoilt)
        for mine, before in zip(changed, (out, final), strict=True):
            assert torch.equal(mine[1:], before[1:]), name
        assert changed[0][0].isnan().any(), f"{name}: silently finite"


def lengths(fast: Operation, reference: Operation, make: Make, chunk: int, dtype=torch.float64) -> None:
    """N9: empty, single and odd lengths, no rows at all, and lengths beside the edges of chunks."""
    for tokens in (0, 1, 2, 3, 7, 8, 9, chunk - 1, chunk, chunk + 1, 2 * chunk + 1):
        for batch in (1, 3) if tokens < chunk else (1,):
            equal(fast, reference, generated(make, batch, tokens, dtype))
    equal(fast, reference, generated(make, 0, 5, dtype))
    long = generated(make, 1, 1000, dtype)
    with torch.no_grad():
        for ours, theirs in zip(fast(**long), reference(**long), strict=True):
            close(ours, theirs, TOLERANCES[dtype])


def layouts(fast: Operation, make: Make, tokens: int = 65) -> None:
    """N11: strided and expanded inputs give the same, and no input is written to."""
    inputs = generated(make, 2, tokens)
    expected = fast(**inputs)

    def strided(x: Tensor) -> Tensor:
        wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1] + 1), torch.nan)
        wide[..., 1::2] = x
        return wide[..., 1::2]

    def tokens_first(x: Tensor) -> Tensor:
        return x.transpose(1, 2).contiguous().transpose(1, 2)

    for change in (strided, tokens_first):
        changed = {name: change(x) if name in floating(inputs) else x for name, x in inputs.items()}
        versions = {name: x._version for name, x in changed.items() if x is not None}
        for ours, theirs in zip(fast(**changed), expected, strict=True):
            close(ours, theirs, 1e-14)
        assert versions == {name: x._version for name, x in changed.items() if x is not None}
    with torch.no_grad():  # where intermediate results may be overwritten, and whole chunks need no copy
        whole = generated(make, 2, 32)
        before = {name: x.clone() for name, x in floating(whole).items()}
        fast(**whole)
        for name, x in before.items():
            assert torch.equal(whole[name], x), name
    for name, x in floating(inputs).items():
        one = x[:1].expand_as(x)
        for ours, theirs in zip(fast(**{**inputs, name: one}), fast(**{**inputs, name: one.clone()}), strict=True):
            assert torch.equal(ours, theirs)


def packed(fast: Operation, reference: Operation, make: Make, sizes: tuple[int, ...], dtype=torch.float64) -> None:
    """Packed sequences equal the reference of each alone, and one that is not a number spoils no other.

    ``fast`` takes ``offsets``; ``make`` gives a state.
    """
    offsets = torch.tensor([0, *sizes]).cumsum(0)
    inputs = generated(make, 1, sum(sizes), dtype)
    inputs["state"] = generated(make, len(sizes), 1, dtype)["state"]

    def each_alone(**inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        pairs = []
        for i in range(len(sizes)):
            cut = over_tokens(inputs, lambda x, i=i: x[:, :, offsets[i] : offsets[i + 1]])
            pairs.append(reference(**{**cut, "state": inputs["state"][i : i + 1]}))
        outs, states = zip(*pairs, strict=True)
        return torch.cat(outs, 2), torch.cat(states)

    def together(**inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        return fast(**inputs, offsets=offsets)

    equal(together, each_alone, inputs)
    whole, final = together(**inputs)
    spoilt = over_tokens(inputs, torch.clone)
    for x in floating(spoilt).values():
        if x is not spoilt["state"]:
            x[:, :, : offsets[1]] = torch.nan
    out, state = together(**spoilt)
    assert torch.equal(out[:, :, offsets[1] :], whole[:, :, offsets[1] :])
    assert torch.equal(state[1:], final[1:])


def finite(fast: Operation, inputs: Inputs) -> None:
    """N10: finite inputs give finite outputs, states and gradients."""
    leaves = {name: x.clone().requires_grad_() for name, x in floating(inputs).items()}
    results = fast(**{**inputs, **leaves})
    gradients = torch.autograd.grad([y.sum() for y in results], list(leaves.values()), materialize_grads=True)
    for x in (*results, *gradients):
        assert x.isfinite().all()
