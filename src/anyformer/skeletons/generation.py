"""Generating tokens from a decoder: a prompt is read at once, then one token a row and step is chosen and fed back."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from anyformer.core.errors import AnyformerError, UsageError, shown
from anyformer.parts.embeds.token_table import Tokens
from anyformer.skeletons.sampling import check_choice, draw, greedy, ranked

Rows = Sequence[Sequence[int]]
Choose = Callable[[Tensor, Sequence[int]], Tensor]
"""From scores ``(running, vocabulary)`` and the numbers of their rows to tokens ``(running,)``."""


class Decodes(Protocol):
    """What stop strings need of a tokenizer."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of tokens."""
        ...


class Ending:
    """Whether a continuation is over: it ends in a stop token, or its text holds a stop string.

    Args:
        stop: Tokens and strings.
        tokenizer: Gives the text that strings are looked for in.

    Raises:
        UsageError: There is a string and no tokenizer, or an empty string.
    """

    def __init__(self, stop: Sequence[int | str] | int | str, tokenizer: Decodes | None):
        stops = [stop] if isinstance(stop, int | str) else list(stop)
        self.tokens = {item for item in stops if not isinstance(item, str)}
        self.texts = [item for item in stops if isinstance(item, str)]
        self.tokenizer = tokenizer
        if "" in self.texts:
            raise UsageError("a stop string is empty, so that nothing could be said; leave it out")
        if self.texts and tokenizer is None:
            raise UsageError(f"the stop string {shown(self.texts[0])} needs a tokenizer; give tokenizer=, or token ids")
        # A token is a byte at least, so a string lies within so many; a few more, as decoders strip blanks at the front.
        self.reach = max((len(text.encode(errors="replace")) for text in self.texts), default=0) + 4

    def __call__(self, continuation: Sequence[int]) -> bool:
        """Whether these tokens, of which the last is new, are the last."""
        if continuation[-1] in self.tokens:
            return True
        if not self.texts or self.tokenizer is None:
            return False
        tail = self.tokenizer.decode(continuation[-self.reach :])
        return any(text in tail for text in self.texts)


class _Request(NamedTuple):
    """What is generated from, checked."""

    rows: list[list[int]]
    state: Any
    limit: int
    ending: Ending


def generate(
    model: Any,
    ids: Tensor | Rows,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    beams: int = 1,
    stop: Sequence[int | str] | int | str = (),
    seed: int | torch.Generator | None = None,
    keep: Tensor | None = None,
    notify: Callable[[int, int], None] | None = None,
    tokenizer: Decodes | None = None,
    state: Any = None,
    pad: int = 0,
) -> Any:
    """Prompts and their continuations. The model stays in its mode, so put it into ``eval()`` first.

    Every row stops for itself; what stopped it is part of the continuation. With a seed, a row draws the same whatever the
    other rows are. Cost: one forward of the prompts, then one token a row and step from the stream states of the mixers.

    Args:
        model: A decoder: ``stream``, ``init_state``, ``config.vocabulary`` and ``data_config``.
        ids: ``(batch, tokens)``, or rows of different lengths.
        max_new_tokens: Longest continuation.
        temperature: 0 for the likeliest token; otherwise tokens are drawn, the higher the wilder.
        top_k: Draw from the so many likeliest tokens only.
        top_p: Draw from the likeliest tokens that have this share of the probability only.
        beams: Continuations of each row that are followed at once, in search of the one with the largest sum of
            log-probabilities; 1 for none.
        stop: Token identifiers, and strings.
        seed: Of what is drawn; from torch's random state when absent.
        keep: ``(batch, tokens)``, False where ``ids`` has pads, wherever these stand.
        notify: Told each new token, as ``notify(row, token)``, when it is chosen.
        tokenizer: Gives the text that strings are looked for in.
        state: What the model's stream gave for the tokens before ``ids``; it is copied.
        pad: Fills what stopped early up to the longest row.

    Returns:
        ``(batch, longest)`` int64 where ``ids`` is a tensor: prompt, continuation and pads. A list of lists where it has
        rows.

    Raises:
        UsageError: For an empty prompt, tokens outside of the vocabulary, more tokens than the model's context has, a
            state of another model, or an option that is out of range.
        AnyformerError: The scores are not finite.
    """
    if beams < 1:
        raise UsageError(f"beams={beams}: give the number of continuations to follow, 1 or more")
    if beams > 1 and (temperature or notify):
        raise UsageError("beam search looks for the likeliest whole: leave temperature at 0, and notify out")
    request = _request(model, ids, max_new_tokens, stop, keep, tokenizer, state)
    made: list[list[int]] = [[] for _ in request.rows]
    if beams > 1:
        made = _search(model, request, beams)
    else:
        for step in _steps(model, request, _chooser(temperature, top_k, top_p, seed, len(made))):
            for row, token in step.items():
                made[row].append(token)
                if notify is not None:
                    notify(row, token)
    whole = [prompt + new for prompt, new in zip(request.rows, made, strict=True)]
    return _rectangle(whole, pad).to(ids.device) if isinstance(ids, Tensor) else whole


def stream_tokens(
    model: Any,
    ids: Tensor | Rows,
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    stop: Sequence[int | str] | int | str = (),
    seed: int | torch.Generator | None = None,
    keep: Tensor | None = None,
    tokenizer: Decodes | None = None,
    state: Any = None,
) -> Iterator[dict[int, int]]:
    """The tokens of :func:`generate` as they are chosen: at each step the new token of every row that still runs."""
    request = _request(model, ids, max_new_tokens, stop, keep, tokenizer, state)
    return _steps(model, request, _chooser(temperature, top_k, top_p, seed, len(request.rows)))


def rows_of(state: Any, index: Tensor) -> Any:
    """A stream state with other rows: those at ``index`` ``(count,)``, in that order, each as often as it is named.

    Every tensor of a state has the batch as its first axis; numbers are those of all rows.
    """
    return pytree.tree_map_only(Tensor, lambda tensor: tensor[index], state)


def _request(
    model: Any,
    ids: Tensor | Rows,
    limit: int,
    stop: Sequence[int | str] | int | str,
    keep: Tensor | None,
    tokenizer: Decodes | None,
    state: Any,
) -> _Request:
    if not hasattr(model, "stream"):
        raise UsageError(f"a {type(model).__name__} does not generate; give a decoder")
    if limit < 0:
        raise UsageError(f"max_new_tokens={limit}: give 0 or more")
    rows = token_rows(ids, keep, model.config.vocabulary)
    seen = 0
    if state is not None:
        if any(len(tensor) != len(rows) for tensor in pytree.tree_leaves(state) if isinstance(tensor, Tensor)):
            raise UsageError(f"the state is not of {len(rows)} rows, as the prompts are; give the state of these rows")
        seen = int(torch.as_tensor(state.seen).max())
    longest, context = seen + max(map(len, rows), default=0), model.data_config.get("context")
    if context is not None and longest + limit > context:
        raise UsageError(
            f"a prompt of {longest} tokens and {limit} new ones do not fit into the model's context of {context}; shorten "
            f"the prompt, or ask for at most {max(0, context - longest)}"
        )
    return _Request(rows, state, limit, Ending(stop, tokenizer))


def token_rows(ids: Tensor | Rows, keep: Tensor | None, vocabulary: int, what: str = "prompt") -> list[list[int]]:
    """The tokens of each row that count. Raises UsageError where a row has none, or one outside of the vocabulary."""
    rows = _rows(ids, keep)
    for number, row in enumerate(rows):
        if not row:
            raise UsageError(f"the {what} of row {number} is empty; give at least one token, a line break for instance")
        wrong = next((token for token in row if not 0 <= token < vocabulary), None)
        if wrong is not None:
            raise UsageError(
                f"row {number} has the token {wrong}, the model knows 0 to {vocabulary - 1}; take the model's tokenizer"
            )
    return rows


def padded(rows: list[list[int]], device: torch.device) -> Tensor | Tokens:
    """What a model reads of rows: identifiers, with pads behind those that are shorter than others."""
    ids = _rectangle(rows, 0).to(device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    # Pads stand behind: whatever comes next then follows the row's own last token in every mixer's state.
    keep = torch.arange(ids.shape[1], device=device) < lengths[:, None]
    return ids if bool(keep.all()) else Tokens(ids, keep)


def _rows(ids: Tensor | Rows, keep: Tensor | None) -> list[list[int]]:
    """The tokens of each row that count."""
    if isinstance(ids, Tensor):
        if ids.ndim != 2 or ids.is_floating_point() or ids.dtype == torch.bool:
            raise UsageError(f"token identifiers are whole numbers (batch, tokens), not {ids.dtype} {tuple(ids.shape)}")
        if keep is None:
            return ids.tolist()
        if keep.shape != ids.shape or keep.dtype != torch.bool:
            raise UsageError(
                f"keep is bool of the shape of ids {tuple(ids.shape)}, not {keep.dtype} {tuple(keep.shape)}"
            )
        return [row[kept].tolist() for row, kept in zip(ids, keep, strict=True)]
    if keep is not None:
        raise UsageError("rows have their own lengths, so that nothing is left to keep; leave keep out")
    rows = [row.tolist() if isinstance(row, Tensor | np.ndarray) else row for row in ids]
    if not all(isinstance(row, list | tuple) and all(type(token) is int for token in row) for row in rows):
        raise UsageError("prompts are rows of whole numbers, such as [[1, 2, 3], [4, 5]]; encode text with a tokenizer")
    return [list(row) for row in rows]


def _rectangle(rows: list[list[int]], pad: int) -> Tensor:
    longest = max(map(len, rows), default=0)
    filled = [row + [pad] * (longest - len(row)) for row in rows]
    return torch.tensor(filled, dtype=torch.int64).view(len(rows), longest)


def _chooser(
    temperature: float, top_k: int | None, top_p: float | None, seed: int | torch.Generator | None, rows: int
) -> Choose:
    """How a step chooses. Each row has a random stream of its own, whose seed depends on the number of the row alone."""
    check_choice(temperature, top_k, top_p)
    if temperature == 0:
        return lambda scores, _: greedy(scores)
    source = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    streams = [torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=source))) for _ in range(rows)]

    def choose(scores: Tensor, numbers: Sequence[int]) -> Tensor:
        uniform = torch.stack([torch.rand((), generator=streams[row], dtype=torch.float64) for row in numbers])
        chances, tokens = ranked(scores, temperature=temperature, top_k=top_k, top_p=top_p)
        return draw(chances, tokens, uniform.to(scores.device))

    return choose


def _prefill(model: Any, request: _Request) -> tuple[Tensor, Any]:
    """The scores ``(rows, vocabulary)`` after the prompts, and the state there."""
    rows = request.rows
    raw = padded(rows, next(model.parameters()).device)
    if request.state is not None:
        return _next(model, raw, request.state.clone())
    return _next(model, raw, model.init_state(len(rows), max(map(len, rows)) + request.limit))


def _next(model: Any, raw: Tensor | Tokens, state: Any) -> tuple[Tensor, Any]:
    scores, state = model.stream(raw, state, last=True)
    scores = scores[:, -1]
    if not bool((scores < float("inf")).all()):  # NaN is not less either; minus infinity only forbids a token
        bad = [name for name, tensor in model.state_dict().items() if not bool(tensor.isfinite().all())]
        cause = (
            f"the weights hold NaN or infinity ({', '.join(bad[:3])}); load a good checkpoint"
            if bad
            else "the weights are finite; compute in float32, or begin with another state"
        )
        raise AnyformerError(f"the scores of the next token are not finite: {cause}")
    return scores, state


@torch.inference_mode()
def _steps(model: Any, request: _Request, choose: Choose) -> Iterator[dict[int, int]]:
    if not request.rows or not request.limit:
        return
    scores, state = _prefill(model, request)
    running = list(range(len(request.rows)))
    made: list[list[int]] = [[] for _ in running]
    for left in reversed(range(request.limit)):
        tokens = choose(scores, running)
        step = dict(zip(running, tokens.tolist(), strict=True))
        yield step
        for row, token in step.items():
            made[row].append(token)
        going = [place for place, row in enumerate(running) if not request.ending(made[row])]
        if not going or not left:
            return
        if len(going) < len(running):
            running = [running[place] for place in going]
            index = torch.tensor(going, device=tokens.device)
            tokens, state = tokens[index], rows_of(state, index)
        scores, state = _next(model, tokens[:, None], state)


class _Beam(NamedTuple):
    """A continuation that is followed: the sum of its log-probabilities, its tokens, and its row in the state."""

    total: float
    tokens: list[int]
    place: int


@torch.inference_mode()
def _search(model: Any, request: _Request, beams: int) -> list[list[int]]:
    """Of each row the continuation with the largest sum of log-probabilities that a search with so many beams finds."""
    live = [[_Beam(0.0, [], row)] for row in range(len(request.rows))]
    best: list[_Beam | None] = [None for _ in live]
    if not live or not request.limit:
        return [[] for _ in live]
    scores, state = _prefill(model, request)
    for left in reversed(range(request.limit)):
        logs = scores.double().log_softmax(-1)
        for row, group in enumerate(live):
            if not group:
                continue
            kept = []
            for rank, beam in enumerate(_extensions(logs, group, beams, len(request.ending.tokens))):
                if request.ending(beam.tokens) or not left:
                    leader = best[row]
                    if rank < beams and (leader is None or beam.total > leader.total):
                        best[row] = beam
                else:
                    kept.append(beam)
            leader = best[row]
            # Sums only fall, so that nothing which is behind the best whole continuation comes back.
            live[row] = [beam for beam in kept[:beams] if leader is None or beam.total > leader.total]
        beams_left = [beam for group in live for beam in group]
        if not beams_left:
            break
        index = torch.tensor([beam.place for beam in beams_left], device=scores.device)
        tokens = torch.tensor([[beam.tokens[-1]] for beam in beams_left], device=scores.device)
        places = iter(range(len(beams_left)))
        live = [[beam._replace(place=next(places)) for beam in group] for group in live]
        scores, state = _next(model, tokens, rows_of(state, index))
    return [beam.tokens if beam else [] for beam in best]


def _extensions(logs: Tensor, group: list[_Beam], beams: int, stops: int) -> Iterator[_Beam]:
    """The best continuations of a row by one token, best first: enough that ``beams`` of them do not end in a stop token."""
    totals = logs[[beam.place for beam in group]]
    totals = totals + torch.tensor([[beam.total] for beam in group], dtype=totals.dtype, device=totals.device)
    values, places = totals.flatten().topk(min(totals.numel(), beams * (1 + max(1, stops))))
    for value, place in zip(values.tolist(), places.tolist(), strict=True):
        if value == float("-inf"):
            return
        beam = group[place // logs.shape[1]]
        yield _Beam(value, [*beam.tokens, place % logs.shape[1]], beam.place)
