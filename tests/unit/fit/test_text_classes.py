"""A fit to labelled texts, and what its folder says of new ones."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from anyformer.app.generating import run_generate
from anyformer.core.errors import UsageError
from anyformer.data.labelled_text import LabelledBatches, read_labelled_text
from anyformer.data.tokenizers import ByteTokenizer
from anyformer.fit import text_classes_material
from anyformer.fit.candidates import text_candidates
from anyformer.fit.predict import Prediction, predict
from anyformer.fit.run import Fitted, fit
from anyformer.fit.text_classes_material import TextClassesMaterial

NAME = "mamba_micro"


@pytest.fixture(scope="module", autouse=True)
def hurried() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        chosen = [next(c for c in text_candidates() if c.name == NAME)]
        patch.setattr(text_classes_material, "text_candidates", lambda: chosen)
        patch.setattr(text_classes_material, "LATENCY_SECONDS", 0.01)
        patch.setattr("anyformer.fit.text_classes_outcome.FINAL_LATENCY_SECONDS", 0.01)
        patch.setattr("anyformer.fit.plan.training_seconds", lambda minutes, costs: 40 * costs[NAME].step_seconds)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Words of two alphabets, and one text that is in the wrong class; bytes that are no text in each."""
    folder = tmp_path_factory.mktemp("data") / "texts"
    chance = np.random.default_rng(0)
    for name, letters in (("high", b"xyz <&"), ("low", b"abc <&")):
        (folder / name).mkdir(parents=True)
        for number in range(24):
            text = bytes(chance.choice(list(letters), int(chance.integers(5, 30))).tolist())
            (folder / name / f"{number}.txt").write_bytes(text + b"\xff")
    return folder


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return fit(data, budget="latency<=10s, params<=1M", minutes=5, out=tmp_path_factory.mktemp("out") / "run", trials=1)


def test_classes_are_learnt_and_told(whole: Fitted) -> None:
    report = json.loads((whole.folder / "report.json").read_bytes())
    assert (report["kind"], report["metric"], report["runtime"]) == ("classes", "accuracy", "torch")
    assert report["test"]["n"] == report["baseline"]["n"] == report["split"]["test"] == 8
    assert report["test"]["score"] > 0.7
    assert report["baseline"]["score"] == 1
    assert report["confusion"]["classes"] == ["high", "low"]
    assert "the sub-folders" in report["data"]["notes"][0]
    page = (whole.folder / "report.html").read_text()
    for told in ("48 texts of 2 classes", "test texts right", "median length of a text", "logistic regression"):
        assert told in page
    assert "picture" not in page.partition("<body>")[2].replace("<picture>", "").replace("</picture>", "")


def test_the_folder_says_the_class_of_new_texts(whole: Fitted, data: Path, tmp_path: Path) -> None:
    files = sorted(data.rglob("*.txt"))[::3]
    found = predict(whole.folder, files)
    assert all(isinstance(each, Prediction) and each.file == str(file) for each, file in zip(found, files, strict=True))
    right = [each.label == file.parent.name for each, file in zip(found, files, strict=True)]
    assert np.mean(right) > 0.7
    alone = [predict(whole.folder, [file])[0] for file in files[:3]]  # pads of longer ones beside it change nothing
    assert [each.score for each in alone] == pytest.approx([each.score for each in found[:3]], rel=1e-5)
    (tmp_path / "empty").touch()
    with pytest.raises(UsageError, match="empty is empty"):
        predict(whole.folder, [tmp_path / "empty"])
    with pytest.raises(UsageError, match="run in torch, not in onnx"):
        predict(whole.folder, files, "onnx")
    with pytest.raises(UsageError, match="no language model"):
        run_generate(whole.folder, "abc")


def test_a_language_model_predicts_no_classes(whole: Fitted, tmp_path: Path, data: Path) -> None:
    model = whole.model
    model.data_config = {"tokenizer": "bytes", "vocabulary": 256, "context": None}
    model.save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="holds a language model; go on from a prompt by `anyformer generate"):
        predict(tmp_path, [next(data.rglob("*.txt"))])


def test_mistakes_show_the_text_and_foreign_text_stays_text(data: Path, whole: Fitted, tmp_path: Path) -> None:
    from anyformer.fit.report import Mistake, write_report

    report = json.loads(json.dumps(whole.report))
    hostile = "<script>alert(1)</script>"
    write_report(report, [Mistake("a.txt", "high", "low", 0.9, text=hostile)], tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page
    assert "<pre><bdi>&lt;script&gt;alert(1)&lt;/script&gt;</bdi></pre>" in page


def test_batches_take_every_text_once_an_epoch(data: Path) -> None:
    texts = read_labelled_text(data, ByteTokenizer())
    positions = torch.arange(0, 48, 2)
    batches = LabelledBatches(texts, positions, size=5, seed=0)
    assert batches.epoch_steps == 4
    seen = torch.cat([batches(step).labels for step in range(4)])
    assert 5 <= int(seen.sum()) <= 12
    rows, labels = batches(9)
    again, _ = batches(9)
    assert torch.equal(rows.ids, again.ids)
    assert len(rows.ids) == len(labels) == 5
    whole_epoch = LabelledBatches(texts, positions, size=24, seed=0)(0).images
    lengths = sorted(whole_epoch.keep.sum(1).tolist())
    assert lengths == sorted(len(texts.text(place)) for place in positions.tolist())


def test_a_digest_knows_texts_labels_and_names(data: Path) -> None:
    texts = read_labelled_text(data, ByteTokenizer())
    from dataclasses import replace

    others = [
        replace(texts, labels=1 - texts.labels),
        replace(texts, tokens=texts.tokens + 1),
        replace(texts, names=texts.names[::-1]),
    ]
    assert len({texts.digest(), *(other.digest() for other in others)}) == 4


def test_the_median_text_is_measured(data: Path, tmp_path: Path) -> None:
    material = TextClassesMaterial.of(read_labelled_text(data, ByteTokenizer()), 0)
    material.choose(1)
    lengths = np.sort(np.diff(material.texts.starts))
    assert material.example().shape == (1, lengths[24])
    model = material.create(NAME, 0)
    assert model(material.example()).shape == (1, 2)


def test_other_targets_of_texts_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="texts in classes; regression needs a table"):
        fit(data, kind="regression", out=tmp_path / "run")
    with pytest.raises(UsageError, match="state means nothing for classifiers of text"):
        fit(data, budget="state<=1MB", out=tmp_path / "run")
