"""A fit to a text: what comes out, that it goes on from where it was stopped, and what it refuses."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from anyformer.app.generating import run_generate
from anyformer.core import registry
from anyformer.core.errors import AnyformerError, UsageError
from anyformer.data.corpus import read_text
from anyformer.data.text import EncodedArray
from anyformer.fit.budget import parse_budget
from anyformer.fit.decoding import TIMED, multiply_adds, state_bytes, time_token
from anyformer.fit.language_material import LanguageMaterial, spread, windows
from anyformer.fit.report import write_language_report
from anyformer.fit.run import Fitted, dry_run, fit
from anyformer.fit.study import Study
from anyformer.measure.cost import cost

from .small_text_fit import BUDGET, NAMES, hurry, write_costs, write_texts

TIMES = dict.fromkeys(NAMES, 0.5)


@pytest.fixture(scope="module", autouse=True)
def hurried() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        hurry(patch)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("data") / "texts")


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    out = tmp_path_factory.mktemp("whole") / "run"
    write_costs(out, data, TIMES)
    return fit(data, budget=BUDGET, minutes=5, out=out, trials=2)


def test_the_folder_stands_alone_and_goes_on_from_a_prompt(whole: Fitted, capfdbinary) -> None:
    names = {path.name for path in whole.folder.iterdir()}
    assert {"config.json", "model.safetensors", "report.json", "report.html", "front.png", "costs.json"} <= names
    assert "work" not in names
    run_generate(whole.folder, "the cat", max_new_tokens=20)
    said = capfdbinary.readouterr().out
    assert said.startswith(b"the cat")
    assert len(said) == len("the cat") + 20 + 1
    config = whole.model.data_config
    assert (config["tokenizer"], config["vocabulary"], config["trained_context"]) == ("bytes", 256, 32)
    assert config["context"] is None


def test_a_candidate_that_diverges_does_not_end_the_fit(data: Path, tmp_path: Path, monkeypatch) -> None:
    given = LanguageMaterial.learning_rate
    monkeypatch.setattr(
        LanguageMaterial,
        "learning_rate",
        lambda self, name, model: 1e30 if name == NAMES[0] else given(self, name, model),
    )
    out = tmp_path / "run"
    write_costs(out, data, TIMES)
    fitted = fit(data, budget=BUDGET, minutes=5, out=out, trials=2)
    status = {row["name"]: row["status"] for row in fitted.report["candidates"]}
    assert status[NAMES[0]] == "diverged"
    assert set(status.values()) == {"winner", "diverged"}


def test_the_report_says_what_was_found(whole: Fitted, data: Path) -> None:
    report = json.loads((whole.folder / "report.json").read_bytes())
    assert report == json.loads(json.dumps(whole.report))
    assert (report["kind"], report["metric"], report["runtime"]) == ("language", "bits per byte", "torch")
    assert {row["name"] for row in report["candidates"]} == set(NAMES)
    best = min(row["score"] for row in report["candidates"])
    (winner,) = (row for row in report["candidates"] if row["status"] == "winner")
    assert winner["score"] == best == report["validation"]["score"]
    assert winner["on_front"]
    low, high = report["test"]["interval"]
    assert low <= report["test"]["score"] <= high < 8
    assert report["test"]["n"] == report["baseline"]["n"] == 1024
    assert report["baseline"]["score"] < 2
    assert report["split"]["train"] + report["split"]["validation"] + report["split"]["test"] == read_text(data).size
    assert [len(sample["prompt"]) for sample in report["samples"]] == [16] * 3
    assert report["budget"]["limits"][0] == {"quantity": "tokens_per_second", "least": 100.0, "unit": ""}
    assert any("dealt out" in note for note in report["data"]["notes"])


def test_the_test_score_is_the_models(whole: Fitted, data: Path) -> None:
    material = LanguageMaterial.of(read_text(data), 0, 32)
    assert material.bits(whole.model, material.test).mean().item() == pytest.approx(whole.report["test"]["score"])


def test_interrupted_and_resumed_the_weights_are_the_same(whole: Fitted, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    write_costs(out, data, TIMES)

    def interrupt(what: str, share: float) -> None:
        if what.startswith(f"Training {NAMES[1]}") and what.endswith("step 10"):
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        fit(data, budget=BUDGET, minutes=5, out=out, trials=2, notify=interrupt)
    report = json.loads((out / "report.json").read_bytes())
    assert report["interrupted"]
    assert (report["test"], report["baseline"]) == (None, None)
    assert report["model"] == NAMES[0]
    resumed = fit(data, budget=BUDGET, minutes=5, out=out, trials=2)
    assert resumed.report["test"] == whole.report["test"]
    ours, theirs = (load_file(fitted.folder / "model.safetensors") for fitted in (resumed, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_budget_that_nobody_meets_names_the_nearest(data: Path, tmp_path: Path) -> None:
    write_costs(tmp_path / "run", data, {NAMES[0]: 0.5, NAMES[1]: 0.4})
    with pytest.raises(UsageError, match=f"nearest, {NAMES[1]}, would be with tokens_per_second>=2.27k"):
        fit(data, budget="tokens_per_second>=5000, context>=32", minutes=5, out=tmp_path / "run", trials=2)


def test_candidates_are_measured_until_enough_keep_the_budget(data: Path, tmp_path: Path) -> None:
    write_costs(tmp_path / "run", data, {NAMES[0]: 50.0, NAMES[1]: 0.4})
    found = dry_run(data, budget="tokens_per_second>=100, context>=32", out=tmp_path / "run", trials=1)
    assert [(row["name"], row["within"]) for row in found.rows] == [(NAMES[0], False), (NAMES[1], True)]
    found = dry_run(data, budget="context>=32", out=tmp_path / "run", trials=1)
    assert [row["name"] for row in found.rows] == [NAMES[0]]


def test_costs_are_those_of_a_token(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyformer.fit.language_material.LATENCY_SECONDS", 0.01)
    material = LanguageMaterial.of(read_text(data), 0, 32)
    material.choose(2)
    costs = material.measure("llama_micro", tmp_path, "eager")
    model = material.create("llama_micro", 0)
    assert costs.params == sum(parameter.numel() for parameter in model.parameters())
    linear = sum(p.numel() for p in model.parameters() if p.ndim == 2)  # each weight once a token, the tied table, too
    assert linear <= costs.macs <= 1.2 * linear
    assert 4 * costs.params < costs.size_bytes < 4 * costs.params + 10_000
    kept = [part.config for part in model.modules() if hasattr(part, "config") and hasattr(part.config, "kv_heads")]
    assert costs.state_bytes == sum(2 * 4 * 32 * part.kv_heads * part.head_dim for part in kept)
    assert costs.of("tokens_per_second") == 1000 / costs.latency_ms["median"]
    assert costs.of("context") > 10**9
    assert not list(tmp_path.iterdir())


def test_a_stream_is_timed_behind_its_context_whatever_the_model_forgets(data: Path) -> None:
    material = LanguageMaterial.of(read_text(data), 0, 32)
    material.choose(2)
    model = material.create("llama_micro", 0).eval()
    seen = []
    stream = model.stream
    model.stream = lambda raw, state, last=False: seen.append(state.seen) or stream(raw, state, last)
    timed = time_token(model, material.validation[:1, :-1], 0.0)
    assert seen == [0, *range(32, 32 + TIMED)]
    assert timed["p10"] <= timed["median"] <= timed["p90"]
    assert state_bytes(model, material.validation[:1, :8]) * 4 == state_bytes(model, material.validation[:1, :32])


def test_windows_lie_evenly_and_do_not_overlap(data: Path) -> None:
    train = LanguageMaterial.of(read_text(data), 0, 32).train
    assert len(windows(train, 32, 10**9)) == (train.count - 1) // 32
    some = windows(train, 32, 320)
    assert some.shape == (10, 33)
    last = (train.count - 1) // 32 * 9 // 10 * 32
    assert some[9].tolist() == train.read(last, 33).tolist()


def test_a_long_text_is_counted_in_pieces_of_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anyformer.fit.language_material.PIECE", 100)
    tokens = np.arange(205, dtype=np.uint8)
    text = EncodedArray(tokens, len(tokens))
    assert np.array_equal(spread(text, 205), tokens)
    assert spread(text, 30).tolist() == [*range(10), *range(100, 110), *range(200, 205)]


def test_models_of_a_longest_context_take_windows_up_to_it(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    material = LanguageMaterial.of(read_text(data), 0, 64)
    system = registry.system_of("llama_micro")
    limited = replace(system, data_config=lambda name: {**system.data_config("llama_micro"), "context": 70})
    monkeypatch.setattr(registry, "system_of", lambda name: limited)
    material.choose(2)
    assert set(material.candidates) == set(NAMES)
    model = material.create("llama_micro", 0)
    assert model.data_config["context"] == 70
    assert material.before(model).shape == (1, 70 - TIMED)
    material.context = 71
    material.choose(2)
    assert not material.candidates


class Routed(torch.nn.Module):
    """How much it multiplies depends on how many tokens are not zero."""

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return torch.ones(int((ids > 0).sum()), 4) @ torch.ones(4, 2)


def test_what_routes_its_tokens_is_counted_by_running_it() -> None:
    with pytest.raises(AnyformerError, match="cannot be counted"):
        cost(Routed(), torch.zeros(1, 8, dtype=torch.int64))
    assert multiply_adds(Routed(), torch.arange(9)[None]) == 8 * 4 * 2


@pytest.mark.parametrize(("steps", "looks"), [(10_000, 8), (250, 1), (300, 1), (440, 2), (1000, 4)])
def test_a_text_is_looked_at_often_where_that_takes_little_time(data: Path, steps: int, looks: int) -> None:
    material = LanguageMaterial.of(read_text(data), 0, 32)
    study = object.__new__(Study)
    study.data = material
    material.validation = torch.zeros(256, 33)  # of which a look takes as long as 10.7 steps of 8 windows
    assert study._looks(steps) == looks


def test_a_short_text_has_short_windows_unless_the_budget_asks_for_more(tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("one line of text\n" * 100)
    found = LanguageMaterial.of(read_text(path), 0, None)
    assert 16 <= found.context < 256
    with pytest.raises(UsageError, match=r"short.txt has 1,700 bytes, of which .* less context"):
        fit(path, budget="context>=1024", out=tmp_path / "run")
    path.write_text("no\n" * 20)
    with pytest.raises(UsageError, match=r"60 bytes, of which .* takes 17; give more text$"):
        fit(path, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"budget": "latency<=1ms"}, "latency means nothing for language models; their limits are tokens_per_second"),
        ({"size": 8}, "--size means nothing for language models; leave it out"),
        ({"runtime": "onnx"}, "--runtime means nothing"),
        ({"distill": True}, "--distill means nothing"),
        ({"weights": "."}, "--weights means nothing"),
        ({"target": ["a"]}, "--target means nothing"),
    ],
)
def test_what_means_nothing_for_text_is_refused(data: Path, tmp_path: Path, options: dict, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        fit(data, out=tmp_path / "run", **options)


def test_words_for_text_mean_nothing_for_pictures(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="tokens_per_second means nothing for models of pictures; their limits are lat"
    ):
        fit("digits", budget="tokens_per_second>=100", out=tmp_path / "run")


HOSTILE = "<script>alert(1)</script> & \"'"


def test_the_page_stands_alone_and_foreign_text_stays_text(whole: Fitted, tmp_path: Path) -> None:
    report = json.loads(json.dumps(whole.report))
    report["samples"][0] = {"prompt": HOSTILE, "continuation": HOSTILE}
    report["data"]["source"] = HOSTILE
    write_language_report(report, tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 3
    assert "default-src 'none'" in page
    for told in ("bits</b> a byte of test text", "least tokens per second", "Witten-Bell", "&#xfffd;"):
        assert told in page
    report["test"] = report["baseline"] = None
    report["interrupted"], report["budget"] = True, {**report["budget"], "limits": [], "met": True}
    write_language_report(report, tmp_path)
    page = (tmp_path / "report.html").read_text()
    for told in ("was interrupted", "has not been read", "no baseline was counted", "there was no budget"):
        assert told in page


def test_a_budget_of_context_asks_for_windows_of_it(data: Path, tmp_path: Path) -> None:
    budget = parse_budget("context>=64")
    write_costs(tmp_path / "run", data, TIMES, context=64)
    assert json.loads((tmp_path / "run" / "costs.json").read_bytes())["setting"]["context"] == budget.bound("context")
    found = dry_run(data, budget=budget.text, out=tmp_path / "run", trials=2)
    assert all(row["within"] for row in found.rows)
    with pytest.raises(UsageError, match="under another batch, context"):
        dry_run(data, budget="context>=32", out=tmp_path / "run", trials=2)
    shutil.rmtree(tmp_path / "run")
