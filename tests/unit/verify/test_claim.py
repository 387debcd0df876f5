"""Claims: the words for effects, the rule that stands in the ledger before the run, and experiments that can run."""

import dataclasses
import importlib
from typing import Any

import pytest

from anyformer.core import registry
from anyformer.core.errors import UsageError
from anyformer.core.store import build_hybrid
from anyformer.verify import claim as module
from anyformer.verify import ledger
from anyformer.verify.claim import Claim, claimed, rule, verdict
from anyformer.verify.levels import verify

CLAIM = Claim(statement="it helps", measure="points", run=lambda seed: (2.0 + seed / 100, 1.0), paper=0.5)


@pytest.mark.parametrize(
    ("effects", "paper", "word"),
    [
        ([1.0, 1.1, 0.9, 1.0, 1.05], 1.5, "holds"),
        ([1.0, 1.1, 0.9, 1.0, 1.05], 3.0, "in direction"),
        ([1.0, 1.1, 0.9, 1.0, 1.05], None, "in direction"),
        ([1.0, -1.1, 0.9, -1.0, 1.05], 0.1, "undecided"),
        ([-1.0, -1.1, -0.9, -1.0, -1.05], 0.1, "against"),
    ],
)
def test_the_words(effects: list[float], paper: float | None, word: str) -> None:
    assert verdict(effects, [1.0] * 5, paper) == word


@pytest.mark.parametrize(("more", "reached"), [(True, True), (False, False)])
def test_the_rule_is_in_the_ledger_before_the_outcome(monkeypatch, tmp_path, more, reached):
    path, before = tmp_path / "ledger.jsonl", []

    def run(seed: int) -> tuple[float, float]:
        before.append([record.level for record in ledger.read(path)])
        return CLAIM.run(seed)

    monkeypatch.setattr(module, "claim_of", lambda slug: dataclasses.replace(CLAIM, run=run, more=more))
    (record,) = verify("mamba", ["claim"], path=path)
    assert before == [["rule"]] * 5
    fixed, measured = ledger.read(path)
    assert measured == record
    assert (record.reached, record.name) == (reached, "mamba_mini")
    assert record.figures["verdict"] == ("holds" if more else "against")
    assert fixed.figures["sha256"] == measured.figures["rule"]
    assert fixed.figures["statement"] == "it helps"


def test_a_system_without_an_experiment_says_so() -> None:
    with pytest.raises(
        UsageError, match=r"no experiment has been written for the claim of vit; there are some for .*mamba"
    ):
        verify("vit", ["claim"])


def test_another_code_is_another_rule(monkeypatch) -> None:
    first = rule("mamba")["sha256"]
    monkeypatch.setattr(module.inspect, "getsource", lambda module: "other")
    assert rule("mamba")["sha256"] != first


@pytest.mark.parametrize("slug", claimed())
def test_every_experiment_compares_what_can_be_built(slug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    registry.system(slug)
    experiment: Any = importlib.import_module(f"anyformer.verify.claim_of.{slug}")
    made: list[Any] = []
    for name in {"recalled", "bits"} & set(vars(experiment)):
        monkeypatch.setattr(experiment, name, lambda pattern, *_, **__: made.append(build_hybrid(pattern)) or 0.5)
    if hasattr(experiment, "trained"):
        monkeypatch.setattr(experiment, "trained", lambda pattern, *_: build_hybrid(pattern).eval())
    ours, theirs = experiment.CLAIM.run(0)
    assert len(made) in (0, 2)
    assert made or ours != theirs
