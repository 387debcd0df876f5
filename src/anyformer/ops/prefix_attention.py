"""Attention of one query to all tokens so far, for every token: softmax as a recurrence with a state of fixed size.

The state is a maximum of the scores and two sums in its scale, so that neither large scores nor long sequences overflow;
two states merge into that of both their tokens, in any order of merging. Source: Feng et al. 2024, "Attention as an RNN"
(arXiv:2405.13956), section 3, where a state is the tuple of maximum, normaliser and weighted sum.
"""

import torch
from torch import Tensor

from anyformer.ops.segments import Restarts, carry, in_segments, without_autocast


def prefix_attention(
    scores: Tensor,
    v: Tensor,
    *,
    state: Tensor | None = None,
    offsets: Tensor | None = None,
    chunk: int = 32,
    segment: int = 1024,
) -> tuple[Tensor, Tensor]:
    """``softmax(scores[: t + 1]) @ v[: t + 1]`` for every token ``t``, computed chunk by chunk.

    A score of minus infinity leaves a token out; where all so far are left out, the output is zeros. Every exponential is
    of a difference to the largest score so far, at most 0. Costs heads * tokens * chunk * value multiply-adds and heads *
    tokens * chunk exponentials, and little memory beyond inputs and output. Halves of precision are computed, and have
    their state, in float32.

    Args:
        scores: (batch, heads, tokens), products of keys with the query.
        v: (batch, heads, tokens, value).
        state: (batch, heads, 2 + value), before the first token: the largest score, the sum of the exponentials of all
            scores less that, and the sum of the values weighted by them. None is ``empty_state``. With offsets
            (sequences, heads, 2 + value).
        offsets: (sequences + 1,), int64, the starts of sequences packed along the tokens of a batch of 1.
        chunk: Tokens within which weights are formed: a power of two.
        segment: Tokens worked on at a time, a multiple of the chunk.

    Returns:
        (batch, heads, tokens, value) in the dtype of v, and the state after the last token.
    """
    if state is None:
        state = empty_state(v, v.shape[0] if offsets is None else len(offsets) - 1)
    state = state.to(torch.promote_types(v.dtype, torch.float32))
    if v.shape[2] == 0:
        return v.clone(), state
    with without_autocast(v):
        # Between chunks the maximum is a number in whose scale sums are kept, and passes no gradient; here it does.
        largest = state[..., :1]
        state = torch.cat((largest, state[..., 1:] * _less(largest, largest.detach())), -1)
        if v.shape[2] == 1 and offsets is None:
            out, state = _one_token(scores, v, state)
        else:
            present = torch.ones_like(scores)  # of what fills up the chunks, zero
            out, state = in_segments(_step, (v, scores, present), state, chunk=chunk, segment=segment, offsets=offsets)
        largest = state[..., :1]
        return out, torch.cat((largest, state[..., 1:] * _less(largest.detach(), largest)), -1)


def empty_state(v: Tensor, rows: int) -> Tensor:
    """The state of no tokens, in float32 at least: (rows, heads, 2 + value), for values (batch, heads, tokens, value)."""
    dtype = torch.promote_types(v.dtype, torch.float32)
    state = v.new_zeros(rows, v.shape[1], 2 + v.shape[3], dtype=dtype)
    state[..., 0] = -torch.inf
    return state


def _one_token(scores: Tensor, v: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    score, value = scores.to(state.dtype)[:, :, 0, None], v.to(state.dtype)[:, :, 0]
    weight = _less(score, score.detach())
    state = _merged(state, torch.cat((score, weight, value * weight), -1))
    return (state[..., 2:] / _not_zero(state[..., 1:2]))[:, :, None].to(v.dtype), state


def _step(
    v: Tensor, scores: Tensor, present: Tensor, state: Tensor, restarts: Restarts | None
) -> tuple[Tensor, Tensor]:
    """A few chunks: (batch, heads, chunks, chunk, ...); see ``in_segments``."""
    scores = scores.masked_fill(present == 0, -torch.inf)
    largest = scores.amax(-1, keepdim=True)
    entering = _less(scores, largest.detach())
    summed = (entering[..., None, :] @ v)[..., 0, :]
    wholes = torch.cat((largest, entering.sum(-1, keepdim=True), summed), -1).unbind(2)
    before, after = carry(lambda n, s: _merged(s, wholes[n]), len(wholes), state, restarts)
    earlier = before[..., :1].detach()
    top = torch.maximum(earlier, scores.detach().cummax(-1).values)  # so far, of each token
    later = torch.ones(2 * scores.shape[-1:], dtype=torch.bool, device=v.device).triu(1)
    weights = _less(scores[..., None, :].masked_fill(later, -torch.inf), top[..., None])
    kept = _less(earlier, top)
    total = _not_zero(weights.sum(-1) + kept * before[..., 1:2])[..., None]
    return torch.addcmul((weights / total) @ v, kept[..., None] / total, before[..., None, 2:]), after


def _merged(first: Tensor, second: Tensor) -> Tensor:
    """The state of the tokens of two: (..., 2 + value); sums are in the scale of the detached maximum."""
    largest = torch.maximum(first[..., :1], second[..., :1])
    sums = [x[..., 1:] * _less(x[..., :1].detach(), largest.detach()) for x in (first, second)]
    return torch.cat((largest, sums[0] + sums[1]), -1)


def _less(x: Tensor, largest: Tensor) -> Tensor:
    """``exp(x - largest)``, where nothing is larger; 0 of minus infinity, even less minus infinity."""
    return torch.exp(x - largest.masked_fill(largest == -torch.inf, 0.0))


def _not_zero(total: Tensor) -> Tensor:
    """The sum of weights; one where there are none, so that their mean is zeros."""
    return total.masked_fill(total == 0, 1.0)


def reference_prefix_attention(scores: Tensor, v: Tensor, *, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """``prefix_attention`` token by token, in the dtype of its inputs."""
    batch, heads, tokens, value = v.shape
    if state is None:
        state = torch.cat((torch.full((batch, heads, 1), -torch.inf), torch.zeros(batch, heads, 1 + value)), -1).to(v)
    largest, total, weighted = state[..., 0], state[..., 1], state[..., 2:]
    outs = []
    for t in range(tokens):
        score, before = scores[:, :, t], largest
        largest = torch.maximum(before, score)
        scale = torch.where(largest == -torch.inf, torch.zeros_like(largest), largest)
        kept, entering = torch.exp(before - scale), torch.exp(score - scale)
        total = total * kept + entering
        weighted = weighted * kept[..., None] + v[:, :, t] * entering[..., None]
        outs.append(torch.where(total[..., None] == 0, torch.zeros_like(weighted), weighted / total[..., None]))
    state = torch.cat((torch.stack((largest, total), -1), weighted), -1)
    return (torch.stack(outs, 2) if outs else torch.zeros_like(v)), state
