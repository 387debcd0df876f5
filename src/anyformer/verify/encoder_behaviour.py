"""What must hold of every model that reads a whole text at once when it runs: scores of every token, or of the text."""

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
from anyformer.train.schedule import adamw

TOKENS = 24
LENGTHS = (9, 24, 1)  # of rows that are padded
ROUNDING = 1e-10  # in float64, of the largest value
LEAST = 1e-9  # of the largest score, by which another token changes it at least
LEARNT, STEPS, ROWS = 0.1, 200, 8  # the loss that shows that rows are known by heart, steps to it at most, and rows

Make = Callable[..., Any]
"""Makes the model."""


def scores(make: Make) -> list[str]:
    """Scores have a number a class, or a token and an identifier, and are finite; no tokens and no rows give none."""
    model = _exact(make)
    failures: list[str] = []
    for rows, tokens in ((3, TOKENS), (1, 1), (0, 5), (2, 0)):
        given = model(_ids(model, rows, tokens))
        wanted = (rows, _classes(model)) if _classes(model) else (rows, tokens, model.spec.vocabulary)
        if given.shape != wanted or not given.isfinite().all():
            failures.append(f"scores of {rows} rows of {tokens} tokens are {tuple(given.shape)}, or not finite")
    return failures


def gradients(make: Make) -> list[str]:
    """Every parameter gets a gradient, finite and not all zero; one that is declared inert may have any."""
    torch.manual_seed(0)
    model = make().train()
    _loss(model).backward()
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
    together = model(ids)
    failures = [] if torch.equal(together, model(ids)) else ["two passes over one batch differ"]
    alone = torch.cat([model(row) for row in ids.split(1)])
    return failures if _close(alone, together) else [*failures, "a row alone differs from the row in a batch"]


def reach(make: Make) -> list[str]:
    """Every token reaches all scores."""
    model = _exact(make)
    ids, failures = _ids(model, 2), list[str]()
    before = model(ids)
    for token in range(TOKENS):
        other = ids.clone()
        other[:, token] = (other[:, token] + 1) % model.spec.vocabulary
        if not ((model(other) - before).abs().amax(-1) > LEAST * before.abs().max()).all():
            failures.append(f"token {token} does not reach all scores")
    return failures


def padding(make: Make) -> list[str]:
    """Rows with pads at their left or right, whatever these hold, give what they give alone."""
    model, failures = _exact(make), list[str]()
    texts = [_ids(model, 1, length, seed=length) for length in LENGTHS]
    for left in (True, False):
        ids = _ids(model, len(texts), seed=5)
        keep = torch.zeros(len(texts), TOKENS, dtype=torch.bool)
        for i, text in enumerate(texts):
            place = slice(TOKENS - text.shape[1], TOKENS) if left else slice(0, text.shape[1])
            ids[i, place], keep[i, place] = text[0], True
        given = model(Tokens(ids, keep))
        found = list(given) if _classes(model) else [row[kept] for row, kept in zip(given, keep, strict=True)]
        if not all(_close(row, model(text)[0]) for row, text in zip(found, texts, strict=True)):
            failures.append(f"pads at the {'left' if left else 'right'} change the scores of what counts")
    return failures


def saving(make: Make) -> list[str]:
    """A saved and loaded model has the same spec and gives the same bits."""
    model = make().eval()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        again: Any = from_pretrained(folder)
    ids = _ids(model, 2)
    with torch.no_grad():
        same = again.spec == model.spec and torch.equal(again(ids), model(ids))
    return [] if same else ["what is loaded is not what was saved"]


def learning(make: Make) -> list[str]:
    """Eight rows are learnt by heart: their classes, or what followed their first token before it was taken away."""
    torch.manual_seed(0)
    model, loss = make().train(), math.inf
    optimizer = adamw(model, learning_rate=3e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        error = _loss(model)
        loss = error.item()
        if loss < LEARNT:
            return []
        error.backward()
        optimizer.step()
    return [f"after {STEPS} steps on eight rows the loss is {loss:.3g}"]


def classifier(make: Make) -> list[str]:
    """A model that gives classes gives others when asked, and its body stays as it was."""
    model = _exact(make)
    if not _classes(model):
        return []
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if not name.startswith("head.")}
    model.reset_classifier(3)
    after, failures = model.state_dict(), list[str]()
    if model(_ids(model, 2)).shape != (2, 3):
        failures.append("reset_classifier(3) does not give three scores")
    if not all(torch.equal(tensor, after[name]) for name, tensor in before.items()):
        failures.append("reset_classifier changes the body")
    return failures


def _loss(model: Any) -> Tensor:
    ids = _ids(model, ROWS, 9)
    ids[:, 0] = torch.arange(ROWS)
    if _classes(model):
        return F.cross_entropy(model(ids), torch.arange(ROWS) % _classes(model))
    hidden = ids.clone()
    hidden[:, 1:] = 0
    return F.cross_entropy(model(hidden)[:, 1:].flatten(0, 1), ids[:, 1:].flatten())


def _classes(model: Any) -> int:
    """How many classes a model scores; 0 where it scores tokens."""
    return getattr(model.spec.head, "num_classes", 0)


def _exact(make: Make) -> Any:
    torch.manual_seed(0)
    return make().double().eval().requires_grad_(False)


def _close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and bool((a - b).abs().max() <= ROUNDING * b.abs().max())


def _ids(model: Any, rows: int, tokens: int = TOKENS, seed: int = 0) -> Tensor:
    return torch.randint(model.spec.vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(seed))


CHECKS: dict[str, Callable[[Make], list[str]]] = {
    check.__name__: check for check in (scores, gradients, rows, reach, padding, saving, learning, classifier)
}
"""By name; each takes what makes the model and gives what does not hold, in words."""
