"""Labels and numbers go the whole way: trained, scored, told in their own words, and predicted."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anyformer.core.errors import UsageError
from anyformer.fit.predict import Labels, Numbers, predict
from anyformer.fit.run import Fitted, fit

from .small_fit import NAMES, write_costs, write_labels, write_numbers


def fitted(write, runtime: str, folder: Path) -> Fitted:
    data = write(folder / "data.npz")
    write_costs(folder / "run", data, {NAMES[0]: 0.5}, runtime=runtime, step_seconds=0.5)
    return fit(data, minutes=1, out=folder / "run", trials=1, runtime=runtime)


@pytest.fixture(scope="module")
def labels(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    return fitted(write_labels, "openvino", tmp_path_factory.mktemp("labels"))


@pytest.fixture(scope="module")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    return fitted(write_numbers, "eager", tmp_path_factory.mktemp("numbers"))


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    chance = np.random.default_rng(0)
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path in paths:
        Image.fromarray(chance.integers(0, 256, (8, 8), dtype=np.uint8)).save(path)
    return paths


def test_several_labels(labels: Fitted, pictures: list[Path]) -> None:
    report = labels.report
    assert (report["kind"], report["metric"], report["runtime"]) == ("multilabel", "mean average precision", "openvino")
    assert [row["name"] for row in report["columns"]] == ["one", "two", "four"]
    assert report["confusion"] is None
    low, high = report["test"]["interval"]
    assert low <= report["test"]["score"] <= high
    assert 0.3 < report["baseline"]["score"] <= 1
    page = (labels.folder / "report.html").read_text()
    assert "has mean average precision" in page
    assert "Average precision" in page
    found = predict(labels.folder, pictures)
    assert all(isinstance(each, Labels) for each in found)
    for each in found:
        assert each.labels == [name for name, score in each.scores.items() if score >= 0.5]
    again = predict(labels.folder, pictures, runtime="onnx")
    ours, theirs = ([score for each in rows for score in each.scores.values()] for rows in (found, again))
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert found != again  # another runtime, other last digits


def test_numbers(numbers: Fitted, pictures: list[Path]) -> None:
    report = numbers.report
    assert (report["kind"], report["metric"], report["runtime"]) == ("regression", "R\N{SUPERSCRIPT TWO}", "torch")
    assert len(report["columns"]) == 2
    page = (numbers.folder / "report.html").read_text()
    assert "deviations off" in page
    assert "with 2 numbers" in page
    found = predict(numbers.folder, pictures)
    assert all(isinstance(each, Numbers) for each in found)
    center, spread = numbers.model.data_config["center"], numbers.model.data_config["spread"]
    values = np.array([list(each.values.values()) for each in found])
    assert (abs(values - center) < 20 * np.array(spread)).all()
    again = predict(numbers.folder, pictures, runtime="onnx")
    assert list(again[0].values.values()) == pytest.approx(list(found[0].values.values()), rel=1e-3)


def test_a_teacher_teaches_classes_only(labels: Fitted, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="distillation teaches classes"):
        fit(labels.folder.parent / "data.npz", out=tmp_path / "run", distill=True)


def test_runtimes_are_known_by_name(labels: Fitted, pictures: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no runtime 'onx'; known: onnx, openvino, eager; did you mean onnx"):
        predict(labels.folder, pictures, runtime="onx")
    with pytest.raises(UsageError, match="there is no runtime"):
        fit("digits", runtime="tensorrt", out=tmp_path / "run")
