"""The delta rule: before a value is written under a key, what the memory holds under that key is taken away.

Source: Schlag et al. 2021, "Linear transformers are secretly fast weight programmers", equation 24; chunks: Yang et al.
2024, "Parallelizing linear transformers with the delta rule", section 3; with decay: Yang et al. 2025, "Gated delta
networks", section 3.
"""

import torch
from torch import Tensor

from anyformer.ops.linear_attention import pairwise_decays
from anyformer.ops.segments import Restarts, carry, first_state, in_segments, without_autocast


def delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    *,
    decay: Tensor | None = None,
    state: Tensor | None = None,
    offsets: Tensor | None = None,
    chunk: int | None = None,
    segment: int = 1024,
) -> tuple[Tensor, Tensor]:
    """``old = exp(decay) * state``, ``state = old + beta * k.T @ (v - k @ old)``, then ``q @ state``, token by token.

    Computed chunk by chunk: what the tokens of a chunk write depends on what earlier ones wrote, a triangular system of
    equations. There is no scale of its own, and keys are taken as they are: the state stays bounded where
    beta * sum(k ** 2) is at most 2. Costs heads * tokens * (3 key * value + chunk * (3 key + 2 value) + chunk ** 2 / 3)
    multiply-adds and little memory beyond inputs and output. Halves of precision are computed, and have their state, in
    float32.

    Args:
        q: (batch, heads, tokens, key).
        k: (batch, heads, tokens, key), usually of unit length.
        v: (batch, heads, tokens, value).
        beta: (batch, heads, tokens), the share that is replaced, usually from 0 to 1.
        decay: (batch, heads, tokens), the logarithm, at most 0, of what each token leaves of the state before it. None
            leaves all of it.
        state: (batch, heads, key, value), before the first token; None is zeros. With offsets (sequences, heads, key, value).
        offsets: (sequences + 1,), int64, the starts of sequences packed along the tokens of a batch of 1.
        chunk: Tokens in a system of equations: a power of two. None takes 32, and 64 where keys have over 64 features, the
            faster ones by measurement.
        segment: Tokens worked on at a time, a multiple of the chunk.

    Returns:
        (batch, heads, tokens, value) in the dtype of q and v, and the state after the last token.
    """
    state = first_state(q, v, state, offsets)
    tokens = q.shape[2]
    if tokens == 0:
        return v.clone(), state
    if chunk is None:
        chunk = 32 if q.shape[3] <= 64 else 64
    with without_autocast(q):
        if tokens == 1 and offsets is None:
            return _one_token(q, k, v, beta, decay, state)
        tensors = (q, k, v, beta) if decay is None else (q, k, v, beta, decay)
        step = _undecayed if decay is None else _decayed
        return in_segments(step, tensors, state, chunk=chunk, segment=segment, offsets=offsets)


def _one_token(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor | None, state: Tensor
) -> tuple[Tensor, Tensor]:
    dtype = v.dtype
    q, k, v, beta = (x.to(state.dtype) for x in (q, k, v, beta))
    if decay is not None:
        state = state * decay.to(state.dtype).exp()[..., None]
    state = state + k.mT @ (beta[..., None] * (v - k @ state))
    return (q @ state).to(dtype), state


def _undecayed(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, state: Tensor, restarts: Restarts | None
) -> tuple[Tensor, Tensor]:
    replaced = _replaced((k @ k.mT) * beta[..., None], beta)
    written, forgot = (replaced @ v).unbind(2), (replaced @ k).unbind(2)
    keys = k.mT.unbind(2)
    fresh = []

    def advance(n: int, s: Tensor) -> Tensor:
        fresh.append(written[n] - forgot[n] @ s)
        return s + keys[n] @ fresh[n]

    before, after = carry(advance, len(keys), state, restarts)
    scores = (q @ k.mT).tril_()
    return (scores @ torch.stack(fresh, 2)).add_(q @ before), after


def _decayed(
    q: Tensor, k: Tensor, v: Tensor, beta: Tensor, decay: Tensor, state: Tensor, restarts: Restarts | None
) -> tuple[Tensor, Tensor]:
    kept = pairwise_decays(decay)
    since_start = decay.cumsum(-1).exp()
    replaced = _replaced((k @ k.mT) * (kept.mT * beta[..., None]), beta)
    written, forgot = (replaced @ v).unbind(2), ((replaced * since_start[..., None, :]) @ k).unbind(2)
    keys = (k * kept[..., -1:]).mT.unbind(2)
    whole = since_start[..., -1:, None].unbind(2)
    fresh = []

    def advance(n: int, s: Tensor) -> Tensor:
        fresh.append(written[n] - forgot[n] @ s)
        return torch.addcmul(keys[n] @ fresh[n], s, whole[n])

    before, after = carry(advance, len(keys), state, restarts)
    scores = ((k @ q.mT) * kept).triu_().mT
    return (scores @ torch.stack(fresh, 2)).addcmul_(q @ before, since_start[..., None]), after


def _replaced(overlap: Tensor, beta: Tensor) -> Tensor:
    """The matrix that gives, from the values wanted under the keys of a chunk, what each token writes.

    Args:
        overlap: (..., tokens, tokens), beta times the products of keys with earlier ones; the other half is not read.
        beta: (..., tokens).

    Returns:
        ``inverse(1 + tril(overlap, -1)) @ diag(beta)``.
    """
    one = torch.eye(overlap.shape[-1], dtype=overlap.dtype, device=overlap.device)
    inverse = torch.linalg.solve_triangular(overlap, one.expand_as(overlap), upper=False, unitriangular=True)
    return inverse * beta[..., None, :]


def reference_delta_rule(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    beta: Tensor,
    *,
    decay: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``delta_rule`` token by token, in the dtype of its inputs."""
    if state is None:
        state = torch.zeros(q.shape[0], q.shape[1], q.shape[3], v.shape[3], dtype=v.dtype)
    out = []
    for t in range(q.shape[2]):
        if decay is not None:
            state = state * torch.exp(decay[:, :, t, None, None])
        held = torch.einsum("bhk,bhkv->bhv", k[:, :, t], state)
        change = beta[:, :, t, None] * (v[:, :, t] - held)
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, :, t], change)
        out.append(torch.einsum("bhk,bhkv->bhv", q[:, :, t], state))
    return (torch.stack(out, 2) if out else torch.zeros_like(v)), state
