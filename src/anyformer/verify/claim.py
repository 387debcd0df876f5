"""Level "claim": a paper's central claim, measured at this machine's scale by a rule that is fixed before the run."""

import hashlib
import importlib
import inspect
import pkgutil
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from anyformer.core import registry
from anyformer.core.errors import UsageError
from anyformer.verify import claim_of as experiments_of
from anyformer.verify.evidence import Evidence
from anyformer.verify.learns import interval

Verdict = Literal["holds", "in direction", "undecided", "against"]
HALF = 0.5  # of the paper's relative effect is enough for a claim to hold
RULE = (
    "Over the seeds, the 95 % interval of the mean paired effect (Student's t; above 0 is what the paper says): holds where it "
    "excludes 0 and the mean reaches half of the paper's relative effect, in direction where it excludes 0 and less is reached "
    "or the paper gives no number, against where all of it lies below 0, undecided otherwise."
)


@dataclass(frozen=True, kw_only=True)
class Claim:
    """What a paper says, and how it is measured here.

    Attributes:
        statement: the claim, in a sentence.
        measure: what is compared, and in which unit.
        run: gives, for a seed, the value with the paper's mechanism and the value without it.
        more: whether more is better.
        paper: the paper's relative effect (0.1: a tenth better), None where it gives none for what is measured.
        source: where the paper says so.
        seeds: one paired run each.
    """

    statement: str
    measure: str
    run: Callable[[int], tuple[float, float]]
    more: bool = True
    paper: float | None = None
    source: str = "abstract"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)


def claimed() -> list[str]:
    """The slugs for whose claims an experiment has been written."""
    return [module.name for module in pkgutil.iter_modules(experiments_of.__path__)]


def claim_of(slug: str) -> Claim:
    """The claim of a system. Raises UsageError where no experiment has been written for it."""
    return _module_of(slug).CLAIM


def _module_of(slug: str) -> Any:
    if slug not in claimed():
        raise UsageError(
            f"no experiment has been written for the claim of {slug}; there are some for {', '.join(claimed())}"
        )
    return importlib.import_module(f"anyformer.verify.claim_of.{slug}")


def rule(slug: str) -> dict[str, Any]:
    """What is fixed before the run: words, settings, and the digest of them, of the experiment's code and of what it calls."""
    claim = claim_of(slug)
    experiments = importlib.import_module("anyformer.verify.experiments")
    code = inspect.getsource(importlib.import_module(f"anyformer.verify.claim_of.{slug}")) + inspect.getsource(
        experiments
    )
    words = {
        "statement": claim.statement,
        "measure": claim.measure,
        "more": claim.more,
        "paper": claim.paper,
        "source": claim.source,
        "seeds": list(claim.seeds),
        "rule": RULE,
    }
    return {**words, "sha256": hashlib.sha256(f"{sorted(words.items())}\n{code}".encode()).hexdigest()}


def verdict(effects: list[float], baselines: list[float], paper: float | None) -> Verdict:
    """The word for paired effects, above 0 where they are for the paper; see :data:`RULE`."""
    low, high = interval(effects)
    if high < 0:
        return "against"
    if low <= 0:
        return "undecided"
    relative = statistics.fmean(effects) / abs(statistics.fmean(baselines))
    return "holds" if paper is not None and relative >= HALF * paper else "in direction"


def claim(name: str) -> Evidence:
    """Run the experiment of a model's system, a pair a seed; reached where it holds, or holds in direction."""
    slug = registry.system_of(name).paper.slug
    fixed, asked = rule(slug), claim_of(slug)
    pairs = [asked.run(seed) for seed in asked.seeds]
    sign = 1 if asked.more else -1
    effects = [sign * (ours - theirs) for ours, theirs in pairs]
    word = verdict(effects, [theirs for _, theirs in pairs], asked.paper)
    figures = {
        "verdict": word,
        "with": [ours for ours, _ in pairs],
        "without": [theirs for _, theirs in pairs],
        "mean_difference": statistics.fmean(effects),
        "interval": list(interval(effects)),
        "rule": fixed["sha256"],
    }
    failures = () if word in ("holds", "in direction") else (f"the claim is {word}: {asked.statement}",)
    return Evidence(figures, failures, asked.seeds)
