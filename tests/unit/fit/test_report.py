"""The page says what the report holds, escapes every name, and takes nothing from elsewhere."""

import base64
import copy
import io
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from anyformer.core.errors import UsageError
from anyformer.fit import report as report_module
from anyformer.fit.report import MOST_CLASSES, Mistake, confusion, digits, percent, wilson, write_report

from .example_report import example

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}&amp;"
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)


class Page(HTMLParser):
    """What a browser makes of a page: its elements, its attributes, its text with single spaces."""

    def __init__(self, source: str):
        super().__init__()
        self.source, self.elements, self.words = source, [], []
        self.feed(source)
        self.text = " ".join(" ".join(self.words).split())
        self.heading = re.sub(
            r" (?=[.,;:)])|(?<=\() ", "", " ".join(re.sub("<[^>]*>", "", self._between("h1")).split())
        )

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def _between(self, tag: str) -> str:
        return (
            self.source.split(f"<{tag}>")[1]
            .split(f"</{tag}>")[0]
            .replace("&nbsp;", " ")
            .replace("&#39;", "'")
            .replace("&lt;", "<")
        )


@pytest.fixture
def no_front(monkeypatch):
    """The picture of the front has tests of its own."""
    monkeypatch.setattr(report_module, "front_png", lambda report, theme: b"front")


def mistake(image=PIXELS, **changes) -> Mistake:
    return Mistake(
        **{"file": "birds/1.png", "label": "wren", "predicted": "finch", "score": 0.97, "image": image, **changes}
    )


def written(folder, report, mistakes=()) -> Page:
    write_report(report, list(mistakes), folder)
    return Page((folder / "report.html").read_text(encoding="utf-8"))


@pytest.mark.usefixtures("no_front")
def test_heading_tells_the_result_in_one_sentence(tmp_path):
    assert written(tmp_path, example()).heading == (
        "edgenext_mini gets 99.6 % of 270 test pictures right (95 % interval 97.9 % to 99.9 %) at 0.410 ms a picture in "
        "onnxruntime (90th percentile 0.463 ms): within the budget latency<=2ms, 9.6 points above the baseline "
        "SVC(gamma='scale') on the same pixels (90.0 % of 270)."
    )


@pytest.mark.usefixtures("no_front")
def test_heading_tells_what_is_missing_or_missed(tmp_path):
    report = example()
    report["budget"]["met"] = False
    report["baseline"]["score"] = 1.0
    heading = written(tmp_path, report).heading
    assert "over the budget latency<=2ms" in heading
    assert "0.4 points below the baseline" in heading

    report = example(limit=None)
    report.update(test=None, baseline=None, finished=False, interrupted=True)
    page = written(tmp_path, report)
    assert "gets 98.9 % of 359 validation pictures right" in page.heading
    assert page.heading.endswith("there was no budget; no baseline was trained.")
    assert "The run was interrupted" in page.text
    assert "test pictures have not been read" in page.text
    assert "of the test pictures" not in page.text.lower()


@pytest.mark.usefixtures("no_front")
def test_every_candidate_has_a_row_with_its_numbers_best_first(tmp_path):
    page = written(tmp_path, example())
    names = ["edgenext_mini", "swin_mini", "convnext_micro", "vit_micro", "convnext_tiny"]
    places = [page.source.index(f'class="free">{name}</th>') for name in names]
    assert places == sorted(places)
    row = page.source[places[0] : places[1]]
    cells = ["98.9\N{NO-BREAK SPACE}%", "0.410", "0.385 to 0.463", "118k", "4.72M", "502kB", "900", "yes", "winner"]
    ends = [row.index(cell) for cell in cells]
    assert ends == sorted(ends)
    assert "over budget: latency 8.7 ms" in page.source[places[-1] :]
    assert "yes" not in page.source[places[-1] :].split("</tr>")[0]


@pytest.mark.usefixtures("no_front")
def test_environment_split_export_and_command_are_told(tmp_path):
    text = written(tmp_path, example()).text
    for told in (
        "anyformer fit digits --budget 'latency<=2ms' --minutes 3",
        "torch 2.13.0+cpu",
        "train 1,168 validation 359 test 270",
        "unseen pictures compared 20",
        "1.3e-06",
        "3f" * 32,
        "170 s of 3 min",
    ):
        assert told in text


@pytest.mark.usefixtures("no_front")
def test_weights_precision_teacher_and_uneven_classes_are_told(tmp_path):
    report = example()
    report["candidates"][0]["start"] = "fresh: dir has no vit_micro/"
    report["candidates"][2]["precision"] = report["budget"]["measured"]["precision"] = "int8"
    report["export"]["int8"] = {"before": 0.98, "after": 0.975, "inputs": 359}
    report["distillation"] = {"teacher": "swin_tiny", "score": 0.99, "n": 359}
    report["test"]["balanced"] = 0.9
    text = written(tmp_path, report).text
    for told in (
        "fresh: dir has no vit_micro/",
        "winner, int8",
        "taught by swin_tiny, accuracy 99.0 % on validation",
        "float32 to int8 98.0 % to 97.5 %",
        "mean of the classes' accuracies, test 90.0 %",
        "column 'kind' is read as classes",
    ):
        assert told in text
    report["distillation"] = {"teacher": None, "reason": "nobody could"}
    assert "taught by nobody: nobody could" in written(tmp_path, report).text


@pytest.mark.usefixtures("no_front")
def test_labels_and_numbers_have_a_table_instead_of_a_confusion(tmp_path):
    report = example()
    report.update(kind="multilabel", metric="mean average precision", confusion=None)
    report["columns"] = [
        {"name": HOSTILE, "pictures": 1200, "precision": None, "recall": 0.5},
        {"name": "b", "pictures": 3, "precision": 0.25, "recall": 1.0},
    ]
    page = written(tmp_path, report, [mistake()])
    assert page.heading.startswith("edgenext_mini has mean average precision 0.996 on 270 test pictures")
    for told in (
        "Labels Of the test pictures; a label is given",
        "1,200 \N{EN DASH} 0.5",
        "b 3 0.25 1",
        "The 1 worst of",
    ):
        assert told in page.text
    assert "Confusion" not in page.text
    assert HOSTILE in page.words


@pytest.mark.usefixtures("no_front")
def test_hostile_names_stay_text(tmp_path):
    classes = [HOSTILE, "javascript:alert(3)", "مرحبا"]
    report = example(classes=classes)
    report["data"]["source"] = report["command"] = report["environment"]["machine"] = HOSTILE
    page = written(tmp_path, report, [mistake(file=HOSTILE, label=classes[2], predicted=HOSTILE)])
    plain = written(tmp_path, example(classes=["aaaa", "b", "c"]), [mistake()])
    assert [tag for tag, _ in page.elements] == [tag for tag, _ in plain.elements]
    assert [sorted(attributes) for _, attributes in page.elements] == [sorted(given) for _, given in plain.elements]
    assert page.words.count(HOSTILE) >= 6
    assert HOSTILE in {attributes.get("title") for attributes in page.all("th")}


def test_page_stands_alone(tmp_path):
    page = written(tmp_path, example(), [mistake()])
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "iframe", "object", "embed", "form", "base", "svg"}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "srcset", "href"):
            assert attributes.get(name, "data:").startswith("data:"), (tag, name)
    assert "url(" not in page.source
    assert "@import" not in page.source
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'unsafe-inline';")
    front = [page.all("source")[0]["srcset"], page.all("img")[0]["src"]]
    assert len(set(front)) == 2
    for uri in front:
        assert Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).width > 1000


@pytest.mark.usefixtures("no_front")
def test_mistakes_are_shown_to_the_pixel_surest_first_at_most_24(tmp_path):
    grey = PIXELS[:1]
    many = [mistake(score=index / 100, file=f"{index}.png") for index in range(30)]
    page = written(tmp_path, example(), [*many, mistake(image=grey, score=1.0, file="grey.png")])
    pictures = page.all("img")[1:]
    assert len(pictures) == 24
    assert {picture["class"] for picture in pictures} == {"small"}
    shown = [
        np.asarray(Image.open(io.BytesIO(base64.b64decode(each["src"].partition(",")[2])))) for each in pictures[:2]
    ]
    assert (shown[0] == grey[0]).all()
    assert (shown[1] == PIXELS.transpose(1, 2, 0)).all()
    files = re.findall(r"\b(\w+\.png)</bdi>", page.source)
    assert files == ["grey.png", *(f"{index}.png" for index in range(29, 6, -1))]


@pytest.mark.usefixtures("no_front")
def test_large_pictures_are_reduced_and_not_pixelated(tmp_path):
    large = np.repeat(np.repeat(PIXELS, 100, axis=1), 100, axis=2)
    (picture,) = written(tmp_path, example(), [mistake(image=large)]).all("img")[1:]
    assert "class" not in picture
    assert Image.open(io.BytesIO(base64.b64decode(picture["src"].partition(",")[2]))).size == (256, 256)


@pytest.mark.usefixtures("no_front")
def test_confusion_is_a_matrix_up_to_forty_classes_and_a_list_beyond(tmp_path):
    for count in (10, MOST_CLASSES, MOST_CLASSES + 1):
        classes = [f"class {index}" for index in range(count)]
        page = written(tmp_path, example(classes=classes))
        cells = [
            cell for cell in page.all("td") if cell.get("title", "").startswith(("1 of 27", "26 of 27", "27 of 27"))
        ]
        if count <= MOST_CLASSES:
            assert len(cells) == count + 1  # the diagonal and one mistake
            assert "1 of 27 class 1: class 0" in {cell["title"] for cell in cells}
            assert "26 of 27" in page.text
        else:
            assert not cells
            assert "class 1 class 0 1 27" in page.text


@pytest.mark.usefixtures("no_front")
def test_a_class_without_pictures_and_a_model_without_mistakes(tmp_path):
    report = example()
    report["confusion"]["matrix"] = [[5 * (row == column) for column in range(10)] for row in range(9)] + [[0] * 10]
    page = written(tmp_path, report)
    assert "0 of 0" in page.text
    assert "None on the test pictures." in page.text


def test_commonest_confusions_come_first():
    shown = confusion(["a", "b", "c"], [[5, 1, 3], [0, 7, 0], [2, 0, 6]])
    assert shown["pairs"] == [(3, "a", "c", 9), (2, "c", "a", 8), (1, "a", "b", 9)]
    assert shown["wrong"] == 6


def paths(node, prefix=()):
    """Where the keys of a report are; of a list, those of its first entry."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield (*prefix, key)
            yield from paths(value, (*prefix, key))
    elif isinstance(node, list) and node:
        yield from paths(node[0], (*prefix, 0))


@pytest.mark.usefixtures("no_front")
def test_whatever_is_missing_is_a_key_error(tmp_path):
    """But for what the page has no use for, and the environment, which is told as it is."""
    report = example()
    untold = {("format",), ("columns",), ("validation", "interval"), ("mistakes",), ("budget", "limits", 0, "unit")}
    for path in sorted(set(paths(report)) - untold, key=str):
        if path[0] in ("mistakes", "environment") and len(path) > 1:
            continue
        broken = copy.deepcopy(report)
        node = broken
        for key in path[:-1]:
            node = node[key]
        del node[path[-1]]
        with pytest.raises(KeyError, match=str(path[-1])):
            write_report(broken, [], tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("right", "n"), [(0, 10), (10, 10), (1, 2), (266, 270), (9_998, 10_000), (1, 1)])
def test_interval_is_wilsons(right, n):
    expected = scipy.stats.binomtest(right, n).proportion_ci(0.95, "wilson")
    assert wilson(right / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_numbers_are_written_with_as_many_digits_as_they_bear():
    space = "\N{NO-BREAK SPACE}"
    assert percent(0.98519, 270) == f"98.5{space}%"
    assert percent(0.98519, 27_000) == f"98.52{space}%"
    assert percent(1.0, 270) == f"100.0{space}%"
    assert percent(269.9 / 270, 270) == f"99.9{space}%"
    assert [digits(value) for value in (0.04123, 0.41, 2.0, 31.44, 512.3, 12_345.6)] == [
        *("0.0412", "0.410", "2.00", "31.4", "512", "12346")
    ]


@pytest.mark.usefixtures("no_front")
def test_an_argument_that_is_no_utf8_is_written_all_the_same(tmp_path):
    report = example()
    report["command"] = "anyformer fit caf\udce9"
    assert r"caf\udce9" in written(tmp_path, report).text


def test_missing_jinja_tells_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(UsageError, match=r"anyformer\[fit\]"):
        write_report(example(), [], tmp_path)


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on this machine")
def test_a_browser_shows_the_page_and_runs_nothing(tmp_path):
    report = example(classes=[HOSTILE, "b"])
    write_report(report, [mistake(file=HOSTILE)], tmp_path)
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    quiet = (
        "--disable-component-update --disable-sync --hide-scrollbars --window-size=1200,2400 --enable-logging=stderr"
    )
    done = subprocess.run(
        [
            CHROMIUM,
            *flags.split(),
            *quiet.split(),
            f"--user-data-dir={tmp_path / 'profile'}",
            f"--screenshot={tmp_path / 'page.png'}",
            (tmp_path / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "Content Security Policy" not in done.stderr  # what would be told of anything that the policy stopped
    picture = np.asarray(Image.open(tmp_path / "page.png").convert("L"))
    assert picture.shape == (2400, 1200)
    assert picture.std() > 10
