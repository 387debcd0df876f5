"""What must hold of every model of text when it runs: shown on its small models, on identifiers that need no data.

Of an encoder-decoder the identifiers are the target. Each row has a source of its own, padded where rows stand together.
"""

import math
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from anyformer.core import registry
from anyformer.core.store import from_pretrained
from anyformer.parts.embeds.token_table import Tokens
from anyformer.skeletons.encoder_decoder import EncoderDecoder, Texts
from anyformer.train.schedule import adamw

TOKENS = 40
CUTS = ((1,) * TOKENS, (7, 1, 20, 12), (TOKENS - 1, 1), (33, 7))  # lengths of the chunks of a stream
LENGTHS = (11, 40, 1)  # of rows that are padded
SOURCES = (9, 23, 1, 17)  # lengths of the sources of an encoder-decoder, row after row
ROUNDING = 1e-10  # in float64, of the largest value
LEARNT, STEPS = 0.1, 200  # the loss that shows that a row is known by heart, and steps to it at most

Make = Callable[..., Any]
"""Makes the model."""


def scores(make: Make) -> list[str]:
    """Scores have a place a token and a number an identifier, and are finite; no tokens and no rows give none."""
    model = _exact(make)
    failures: list[str] = []
    for rows, tokens in ((3, TOKENS), (1, 1), (0, 5), (2, 0)):
        given = model(_raw(model, _ids(model, rows, tokens)))
        if given.shape != (rows, tokens, model.spec.vocabulary) or not given.isfinite().all():
            failures.append(f"scores of {rows} rows of {tokens} tokens are {tuple(given.shape)}, or not finite")
    return failures


def gradients(make: Make) -> list[str]:
    """Every parameter gets a gradient, finite and not all zero; one that is declared inert may have any."""
    torch.manual_seed(0)
    model = make().train()
    _loss(model, _ids(model, 4)).backward()
    is_inert = registry.system_of(model.model_name).is_inert
    return [
        f"{name} gets no gradient, or one that is zero or not finite"
        for name, parameter in model.named_parameters()
        if not is_inert(name)
        and (parameter.grad is None or not parameter.grad.any() or not parameter.grad.isfinite().all())
    ]


def rows(make: Make) -> list[str]:
    """What a row gives does not depend on the others in its batch, and twice gives the same bits."""
    model = _exact(make)
    ids = _ids(model, 4)
    together = model(_raw(model, ids))
    failures = [] if torch.equal(together, model(_raw(model, ids))) else ["two passes over one batch differ"]
    alone = torch.cat([model(_raw(model, row, first=i)) for i, row in enumerate(ids.split(1))])
    return failures if _close(alone, together) else [*failures, "a row alone differs from the row in a batch"]


def causality(make: Make) -> list[str]:
    """Later tokens do not reach earlier scores, but by rounding: which tokens an expert gets decides its products' sizes."""
    model = _exact(make)
    ids = _ids(model, 2)
    before, failures = model(_raw(model, ids)), list[str]()
    for token in range(TOKENS - 1):
        later = ids.clone()
        later[:, token + 1 :] = (later[:, token + 1 :] + 1 + token) % model.spec.vocabulary
        if not _close(model(_raw(model, later))[:, : token + 1], before[:, : token + 1]):
            failures.append(f"tokens after {token} reach its scores")
    return failures


def streams(make: Make) -> list[str]:
    """Any cutting of the tokens gives what the whole gives, and a cloned state is a branch."""
    model, failures = _exact(make), list[str]()
    ids = _ids(model, 2)
    whole = model(_raw(model, ids))
    for cut in CUTS:
        state, given = _state(model, 2, TOKENS), []
        for piece in ids.split(cut, dim=1):
            scores, state = model.stream(piece, state)
            given.append(scores)
        if not _close(torch.cat(given, dim=1), whole):
            failures.append(f"a stream in chunks of {cut[:4]}... differs from the whole")
    _, state = model.stream(ids[:, :9], _state(model, 2, TOKENS))
    branch = state.clone()
    model.stream((ids[:, 9:12] + 1) % model.spec.vocabulary, state)
    if not _close(model.stream(ids[:, 9:], branch)[0], whole[:, 9:]):
        failures.append("what follows in one branch of a stream reaches another")
    return failures


def padding(make: Make) -> list[str]:
    """Rows with pads at their left or right give what they give alone, and so does the stream that goes on after them."""
    model, failures = _exact(make), list[str]()
    rows = [_ids(model, 1, length, seed=length) for length in LENGTHS]
    more = _ids(model, len(rows), 3, seed=77)
    alone = [model(_raw(model, torch.cat((row, more[i : i + 1]), 1), first=i)) for i, row in enumerate(rows)]
    for left in (True, False):
        ids = _ids(model, len(rows), TOKENS, seed=5)
        keep = torch.zeros(len(rows), TOKENS, dtype=torch.bool)
        for i, row in enumerate(rows):
            place = slice(TOKENS - row.shape[1], TOKENS) if left else slice(0, row.shape[1])
            ids[i, place], keep[i, place] = row[0], True
        given = model(_raw(model, ids, keep))
        side = "left" if left else "right"
        if not all(_close(given[i][keep[i]], alone[i][0, : row.shape[1]]) for i, row in enumerate(rows)):
            failures.append(f"pads at the {side} change the scores of what counts")
        last, state = model.stream(Tokens(ids, keep), _state(model, len(rows), TOKENS + 3), last=True)
        if not all(_close(last[i, 0], alone[i][0, row.shape[1] - 1]) for i, row in enumerate(rows)):
            failures.append(f"with pads at the {side} the last scores are not those of the last token that counts")
        if not all(_close(s, a[0, -3:]) for s, a in zip(model.stream(more, state)[0], alone, strict=True)):
            failures.append(f"a stream that goes on after pads at the {side} differs from that of the row alone")
    return failures


def packing(make: Make) -> list[str]:
    """Sequences packed one after the other give what they give alone."""
    model = _exact(make)
    rows = [_ids(model, 1, length, seed=length) for length in LENGTHS]
    offsets = torch.tensor([0, *LENGTHS]).cumsum(0)
    packed = model(Tokens(torch.cat(rows, 1), offsets=offsets))
    alone = torch.cat([model(row) for row in rows], 1)
    return [] if _close(packed, alone) else ["packed sequences reach one another"]


def saving(make: Make) -> list[str]:
    """A saved and loaded model has the same spec and gives the same bits."""
    model = make().eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again: Any = from_pretrained(folder)
    ids = _ids(model, 2)
    with torch.no_grad():
        same = again.spec == model.spec and torch.equal(again(_raw(again, ids)), model(_raw(model, ids)))
    return [] if same else ["what is loaded is not what was saved"]


def learning(make: Make) -> list[str]:
    """Eight rows are learnt by heart: after their first token, every next one."""
    torch.manual_seed(0)
    model = make().train()
    ids, loss = _ids(model, 8, 9), math.inf
    ids[:, 0] = torch.arange(8)
    optimizer = adamw(model, learning_rate=3e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        error = _loss(model, ids)
        loss = error.item()
        if loss < LEARNT:
            return []
        error.backward()
        optimizer.step()
    return [f"after {STEPS} steps on eight rows the loss is {loss:.3g}"]


def _loss(model: Any, ids: Tensor) -> Tensor:
    return F.cross_entropy(model(_raw(model, ids[:, :-1])).flatten(0, 1), ids[:, 1:].flatten())


def _exact(make: Make) -> Any:
    torch.manual_seed(0)
    return make().double().eval().requires_grad_(False)


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= ROUNDING * b.abs().max())


def _ids(model: Any, rows: int, tokens: int = TOKENS, seed: int = 0) -> Tensor:
    return torch.randint(model.spec.vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(seed))


def _raw(model: Any, ids: Tensor, keep: Tensor | None = None, first: int = 0) -> Tensor | Tokens | Texts:
    """What the model takes for these texts, the rows from the ``first`` on."""
    if isinstance(model, EncoderDecoder):
        source, source_keep, _ = _source(model, len(ids), first)
        return Texts(source, ids, source_keep, keep)
    return ids if keep is None else Tokens(ids, keep)


def _state(model: Any, rows: int, capacity: int) -> Any:
    """Where the stream of so many texts begins."""
    if isinstance(model, EncoderDecoder):
        return model.init_state(rows, capacity, model.encode(_source(model, rows, 0)))
    return model.init_state(rows, capacity)


def _source(model: Any, rows: int, first: int) -> Tokens:
    """The sources of rows, as long as the longest of these."""
    lengths = torch.tensor([SOURCES[row % len(SOURCES)] for row in range(first, first + rows)], dtype=torch.int64)
    longest = int(lengths.max()) if rows else 1
    ids = [_ids(model, 1, max(SOURCES), seed=1000 + row)[:, :longest] for row in range(first, first + rows)]
    whole = torch.cat(ids) if rows else _ids(model, 0, longest)
    return Tokens(whole, torch.arange(longest) < lengths[:, None])


CHECKS: dict[str, Callable[[Make], list[str]]] = {
    check.__name__: check for check in (scores, gradients, rows, causality, streams, padding, packing, saving, learning)
}
"""By name; each takes what makes the model and gives what does not hold, in words."""
