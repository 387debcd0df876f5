import dataclasses
import statistics

import pytest
import torch

from anyformer.core.errors import UsageError
from anyformer.data.corpus import read_text
from anyformer.data.images import ImageSet
from anyformer.data.list_operations import ListOperations
from anyformer.verify import learns as module
from anyformer.verify.learns import interval, learns
from anyformer.verify.tasks import DIGITS, LISTS, SOURCES, TASKS, logistic_regression

# Two classes, dark and bright, that a model learns in one epoch.
LABELS = torch.arange(60) % 2
IMAGES = (
    torch.randint(0, 60, (60, 1, 8, 8), generator=torch.Generator().manual_seed(0)) + 150 * LABELS[:, None, None, None]
)
EASY = dataclasses.replace(
    DIGITS,
    data=lambda: ImageSet(IMAGES.to(torch.uint8), LABELS, ("dark", "bright"), tuple(map(str, range(60)))),
    baseline=lambda images, labels, test: torch.zeros(len(test), dtype=torch.int64),
    margin=0.3,
    seeds=(0, 1),
    epochs=3,
)


def test_the_interval_of_a_paired_difference():
    scipy_stats = pytest.importorskip("scipy.stats")
    for differences in ([0.01, 0.03], [0.02, 0.01, 0.03, 0.02, 0.05], [0.1 * i for i in range(10)]):
        error = statistics.stdev(differences) / len(differences) ** 0.5
        expected = scipy_stats.t.interval(0.95, len(differences) - 1, statistics.fmean(differences), error)
        assert interval(differences) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("margin", "reached"), [(0.3, True), (0.6, False)])
def test_the_rule(monkeypatch, margin, reached):
    monkeypatch.setitem(TASKS, "vision", dataclasses.replace(EASY, margin=margin))
    evidence = learns("convnext_micro")
    assert evidence.seeds == (0, 1)
    assert evidence.figures["accuracy"] == [1.0, 1.0]
    assert evidence.figures["baseline"] == [0.5, 0.5]
    assert evidence.figures["mean_difference"] == 0.5
    assert (not evidence.failures) == reached


def test_a_run_depends_on_its_seed_alone(monkeypatch):
    task, data = dataclasses.replace(EASY, epochs=1), EASY.data()
    given = []
    predict = module.predict_logits
    monkeypatch.setattr(module, "predict_logits", lambda *_: given.append(predict(*_)) or given[-1])
    for seed, noise in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(noise)
        module.paired_run("convnext_micro", task, data, seed)
    assert torch.equal(given[0], given[1])
    assert not torch.equal(given[0], given[2])


def test_the_baseline_and_the_margin_of_digits():
    data = DIGITS.data()
    scores = []
    for seed in DIGITS.seeds:
        parts = module.split(data.labels, seed)
        predicted = logistic_regression(data.images[parts.train], data.labels[parts.train], data.images[parts.test])
        scores.append((predicted == data.labels[parts.test]).double().mean().item())
        assert len(parts.test) == 269
    assert statistics.fmean(scores) == pytest.approx(0.968, abs=0.002)
    assert DIGITS.margin > 1 / 269


def test_a_field_without_a_task_is_named(monkeypatch):
    monkeypatch.delitem(TASKS, "vision")
    with pytest.raises(UsageError, match="no task for the field 'vision'"):
        learns("vit_micro")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext_mini", "edgenext_mini"])
def test_small_models_learn_digits(name):
    assert learns(name).failures == ()


def test_a_model_that_learns_nothing_is_seen(monkeypatch):
    monkeypatch.setitem(TASKS, "vision", dataclasses.replace(EASY, learning_rate=0.0, epochs=1))
    (failure,) = learns("convnext_micro").failures
    assert "not by more than 0.3" in failure


@pytest.mark.parametrize(("margin", "reached"), [(0.5, True), (9.0, False)])
def test_the_rule_of_text(monkeypatch, tmp_path, margin, reached):
    (tmp_path / "text.txt").write_text("".join(f"{i % 7} sheep jump over {i % 3} fences\n" for i in range(2000)))
    easy = dataclasses.replace(
        SOURCES, text=lambda: read_text(tmp_path), order=0, margin=margin, seeds=(0, 1), context=32, steps=40
    )
    monkeypatch.setitem(TASKS, "language", easy)
    evidence = learns("mamba_micro")
    assert all(bits < 2 for bits in evidence.figures["bits_per_byte"])
    assert all(3 < bits < 5 for bits in evidence.figures["baseline"])
    assert (not evidence.failures) == reached


# Lists of one operator and two digits, which a few steps begin to read.
SHORT = dataclasses.replace(
    LISTS,
    data=ListOperations(size=16, depth=1, arguments=2, shortest=4, longest=4),
    counted=60,
    tested=40,
    seeds=(0, 1),
    steps=3,
    learning_rates=(0.0, 1e-3),
    swept=(100, 101),
)
MICRO = "long_range_arena_attention_micro"


@pytest.mark.parametrize(("margin", "reached"), [(-9.0, True), (0.9, False)])
def test_the_rule_of_sequences(monkeypatch, margin, reached):
    monkeypatch.setitem(TASKS, "survey", dataclasses.replace(SHORT, margin=margin))
    evidence = learns(MICRO)
    assert (not evidence.failures) == reached
    assert evidence.seeds == (0, 1)
    assert set(evidence.figures["swept"]) == {"0.0", "0.001"}
    for what in ("accuracy", "baseline", "most_frequent", "bag_and_first_token"):
        assert len(evidence.figures[what]) == 2
        assert all(0 <= accuracy <= 1 for accuracy in evidence.figures[what])


def test_the_rate_is_chosen_by_validation_sequences_of_other_seeds(monkeypatch):
    asked = []

    def run(name, task, seed, rate, part="test"):
        asked.append((seed, rate, part))
        return {0.0: 0.1, 1e-3: 0.3}[rate] + seed / 1000

    monkeypatch.setattr(module, "sequence_run", run)
    pairs, beside = module.sequence_runs(MICRO, SHORT)
    assert asked[:4] == [(seed, rate, "validation") for rate in (0.0, 1e-3) for seed in (100, 101)]
    assert asked[4:] == [(0, 1e-3, "test"), (1, 1e-3, "test")]
    assert beside["learning_rate"] == 1e-3
    assert beside["swept"] == pytest.approx({"0.0": 0.2005, "0.001": 0.4005})
    assert [ours for ours, _ in pairs] == [0.3, 0.301]


def test_a_run_on_sequences_depends_on_its_seed_alone_and_learns():
    found = []
    for seed, rate, noise in ((0, 3e-3, 1), (0, 3e-3, 2), (1, 3e-3, 1), (0, 0.0, 1)):
        torch.manual_seed(noise)
        found.append(module.sequence_run(MICRO, dataclasses.replace(SHORT, steps=40, tested=200), seed, rate))
    assert found[0] == found[1]
    assert min(found[0], found[2]) > found[3] + 0.05
