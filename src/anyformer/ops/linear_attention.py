"""Linear attention: a matrix of key-value products is the memory of all past tokens; decays make it forget.

Source: Katharopoulos et al. 2020, "Transformers are RNNs", section 3.4; chunks and a decay for each head: Sun et al.
2023, "Retentive network", section 2.3; decays for each key: Yang et al. 2024, "Gated linear attention transformers",
section 4.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer.ops.segments import Restarts, carry, first_state, in_segments, without_autocast


def linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    decay: Tensor | None = None,
    state: Tensor | None = None,
    offsets: Tensor | None = None,
    chunk: int = 64,
    segment: int = 1024,
) -> tuple[Tensor, Tensor]:
    """``state = exp(decay) * state + k.T @ v``, then ``q @ state``, token by token; computed chunk by chunk.

    There is no normaliser and no scale of its own. Every factor is a product of at most one, so that no decay is too
    strong, zero (log decay minus infinity) included. Costs heads * tokens * (2 key * value + chunk * (key + value))
    multiply-adds, with a decay for each key log2(chunk) products more with all queries and keys, and little memory beyond
    inputs and output. Halves of precision are computed, and have their state, in float32.

    Args:
        q: (batch, heads, tokens, key).
        k: (batch, heads, tokens, key).
        v: (batch, heads, tokens, value).
        decay: The logarithm, at most 0, of what each token leaves of the state before it: (batch, heads, tokens), or
            (batch, heads, tokens, key) for each key. None leaves all of it.
        state: (batch, heads, key, value), before the first token; None is zeros. With offsets (sequences, heads, key, value).
        offsets: (sequences + 1,), int64, the starts of sequences packed along the tokens of a batch of 1.
        chunk: Tokens within which products of queries and keys are formed: a power of two.
        segment: Tokens worked on at a time, a multiple of the chunk.

    Returns:
        (batch, heads, tokens, value) in the dtype of q and v, and the state after the last token.
    """
    state = first_state(q, v, state, offsets)
    tokens = q.shape[2]
    if tokens == 0:
        return v.clone(), state
    with without_autocast(q):
        if tokens == 1 and offsets is None:
            return _one_token(q, k, v, decay, state)
        tensors = (q, k, v) if decay is None else (q, k, v, decay)
        step = _undecayed if decay is None else _decayed if decay.ndim == 3 else _decayed_by_key
        return in_segments(step, tensors, state, chunk=chunk, segment=segment, offsets=offsets)


def _one_token(q: Tensor, k: Tensor, v: Tensor, decay: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    dtype = v.dtype
    q, k, v = (x.to(state.dtype) for x in (q, k, v))
    if decay is not None:
        kept = decay.to(state.dtype).exp()
        state = state * (kept[..., None] if decay.ndim == 3 else kept.mT)
    state = state + k.mT * v
    return (q @ state).to(dtype), state


def _undecayed(q: Tensor, k: Tensor, v: Tensor, state: Tensor, restarts: Restarts | None) -> tuple[Tensor, Tensor]:
    scores = (q @ k.mT).tril_()
    added = (k.mT @ v).unbind(2)
    before, after = carry(lambda n, s: s + added[n], len(added), state, restarts)
    return (scores @ v).add_(q @ before), after


def _decayed(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor, restarts: Restarts | None
) -> tuple[Tensor, Tensor]:
    kept = pairwise_decays(decay)
    scores = ((k @ q.mT) * kept).triu_()
    since_start = decay.cumsum(-1).exp()[..., None]
    added = ((k * kept[..., -1:]).mT @ v).unbind(2)
    whole = since_start[..., -1:, :].unbind(2)
    before, after = carry(lambda n, s: torch.addcmul(added[n], s, whole[n]), len(added), state, restarts)
    return (scores.mT @ v).addcmul_(q @ before, since_start), after


def pairwise_decays(decay: Tensor) -> Tensor:
    """What is left of a token at a later one: ``exp(sum(decay[key + 1 : query + 1]))``.

    Sums of equal signs are formed for each pair, since differences of running sums lose a weak decay beside a strong one.

    Args:
        decay: (..., tokens), logarithms.

    Returns:
        (..., keys, queries), ones where a key is not before the query: queries last, since sums are faster there.
    """
    tokens = decay.shape[-1]
    rows = decay[..., None, :].expand(*decay.shape, tokens)
    return rows.clone(memory_format=torch.contiguous_format).triu_(1).cumsum(-1).exp_()


def _decayed_by_key(
    q: Tensor, k: Tensor, v: Tensor, decay: Tensor, state: Tensor, restarts: Restarts | None
) -> tuple[Tensor, Tensor]:
    scores, q, k, whole = _scores_by_key(q, k, decay.exp())
    added = (k.mT @ v).unbind(2)
    kept = whole[..., None].unbind(2)
    before, after = carry(lambda n, s: torch.addcmul(added[n], s, kept[n]), len(added), state, restarts)
    return (scores @ v).add_(q @ before), after


def _scores_by_key(q: Tensor, k: Tensor, kept: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Products of queries and earlier keys, each feature times all that was kept of it in between.

    Blocks, at first of one token, are joined by two until one is left. The queries of the later block see the keys of the
    earlier one across the border between them: a query holds what is kept from the start of its block on, a key what is
    kept until the end of its own.

    Args:
        q: (..., tokens, key), the tokens a power of two.
        k: (..., tokens, key).
        kept: (..., tokens, key), from 0 to 1.

    Returns:
        The scores, (..., tokens, tokens), zeros where a key is later; the queries times what is kept from the first token
        on; the keys times what is kept until the last; what is kept of all, (..., key).
    """
    scores = (q * k).sum(-1)[..., None, None]
    q = (q * kept)[..., None, :]  # (..., blocks, width, key), as k is; of each block, whole is (..., blocks, key)
    k, whole = k.clone()[..., None, :], kept
    for _ in range(q.shape[-3].bit_length() - 1):
        q, k, whole, scores = (x.unflatten(dim, (-1, 2)) for x, dim in ((q, -3), (k, -3), (whole, -2), (scores, -3)))
        across = q.select(-3, 1) @ k.select(-3, 0).mT
        earlier, later = scores.unbind(-3)
        width = across.shape[-1]
        scores = torch.cat([F.pad(earlier, (0, width)), torch.cat([across, later], -1)], -2)
        q = _times(q, 1, whole[..., 0, None, :]).flatten(-3, -2)
        k = _times(k, 0, whole[..., 1, None, :]).flatten(-3, -2)
        whole = whole[..., 0, :] * whole[..., 1, :]
    return scores.squeeze(-3), q.squeeze(-3), k.squeeze(-3), whole.squeeze(-2)


def _times(pairs: Tensor, place: int, factor: Tensor) -> Tensor:
    """Multiply one block of each pair, (..., 2, width, key); where nothing is kept for gradients, in its memory."""
    if not torch.is_grad_enabled():
        pairs.select(-3, place).mul_(factor)
        return pairs
    blocks = list(pairs.unbind(-3))
    blocks[place] = blocks[place] * factor
    return torch.stack(blocks, -3)


def reference_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    decay: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """``linear_attention`` token by token, in the dtype of its inputs."""
    if state is None:
        state = torch.zeros(q.shape[0], q.shape[1], q.shape[3], v.shape[3], dtype=v.dtype)
    out = []
    for t in range(q.shape[2]):
        if decay is not None:
            kept = torch.exp(decay[:, :, t])
            state = state * (kept[:, :, None, None] if decay.ndim == 3 else kept[:, :, :, None])
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, :, t], v[:, :, t])
        out.append(torch.einsum("bhk,bhkv->bhv", q[:, :, t], state))
    return (torch.stack(out, 2) if out else torch.zeros_like(v)), state
