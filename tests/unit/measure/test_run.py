"""From a plan to a table, with forms that move the clock instead of computing."""

import math

import pytest
import torch
from torch import nn

import anyformer
from anyformer.core import serial
from anyformer.core.errors import AnyformerError, UsageError
from anyformer.core.store import build_hybrid, create_model
from anyformer.measure import forms, run
from anyformer.measure.memory import OUT_OF_MEMORY, Peak
from anyformer.measure.run import Plan, compare, measure
from anyformer.measure.subject import AtHand, Subject, images, size_of

SECONDS = {"eager": 0.04, "compiled": 0.03, "onnx": 0.02, "openvino": 0.01}


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """Time passes only while a stand-in for a form runs; children and the machine's limit are stood in for, too."""
    clock = Clock()
    clock.asked, clock.made, clock.off = [], [], {}

    def form(model, runtime, example, precision, threads):
        clock.made.append((model.model_name, runtime, precision, tuple(example.shape), threads))
        if isinstance(clock.off.get(runtime), BaseException):
            raise clock.off[runtime]
        with torch.no_grad():
            scores = model(example) * (1 + clock.off.get(runtime, 0.0))
        seconds = SECONDS[runtime] * len(example) * (2 if model.model_name == "swin_micro" else 1)

        def call(batch):
            clock.now += seconds
            return scores

        return call

    def peak(asked):
        clock.asked.append(asked)
        return Peak(forward_mb=2.0, training_mb=5.0 if asked["training"] else None)

    monkeypatch.setattr(run, "form", form)
    monkeypatch.setattr(run, "peak", peak)
    monkeypatch.setattr(run, "matrix_rate", lambda: 12.34)
    return clock


def test_a_models_forms_take_turns_and_are_compared_with_the_first(clock):
    table = measure("vit_micro", runtimes=("eager", "onnx"), precisions=("float32", "bfloat16"), clock=clock)
    rows = table.rows
    assert [(r.runtime, r.precision, r.again) for r in rows] == [
        ("eager", "float32", False),
        ("eager", "bfloat16", False),
        ("onnx", "float32", False),
        ("onnx", "bfloat16", False),
        ("eager", "float32", True),
    ]
    assert [r.ratio for r in rows] == pytest.approx([1, 1, 0.5, 0.5, 1])
    assert [r.median_ms for r in rows] == pytest.approx([40, 40, 20, 20, 40])
    assert all(r.measured and r.against == "vit_micro eager float32" for r in rows)
    assert (rows[0].ratio_low, rows[0].ratio_high) == (1, 1)
    assert all(r.error == 0 and r.macs == rows[0].macs > 0 and r.params == rows[0].params > 0 for r in rows)
    assert [r.forward_mb for r in rows] == [2, 2, 2, 2, None]
    assert [r.training_mb for r in rows] == [5, None, None, None, None]
    assert table.about["limit_gflops"] == 12.3
    assert table.about["torch"] == torch.__version__


def test_compare_lets_models_take_turns_at_every_setting(clock):
    table = compare(["vit_micro", "swin_micro"], batches=(1, 4), runtimes=("onnx",), clock=clock)
    assert [(r.name, r.batch, r.again) for r in table.rows] == [
        (name, batch, again)
        for batch in (1, 4)
        for name, again in (("vit_micro", False), ("swin_micro", False), ("vit_micro", True))
    ]
    assert [r.ratio for r in table.rows] == pytest.approx([1, 2, 1] * 2)
    assert table.rows[3].median_ms == pytest.approx(80)
    assert {r.against for r in table.rows} == {"vit_micro onnx float32"}


def test_sizes_are_swept_and_counted_for_each(clock):
    table = measure("vit_micro", sizes=((32, 32), (64, 32)), memory=False, clock=clock)
    first, second = (row for row in table.rows if not row.again)
    assert [shape for *_, shape, _ in clock.made] == [(1, 3, 32, 32), (1, 3, 64, 32)]
    assert (second.height, second.width) == (64, 32)
    assert second.macs > 1.9 * first.macs
    assert first.forward_mb is None
    assert not clock.asked


def test_threads_are_set_and_given_back(clock):
    before = torch.get_num_threads()
    table = measure("vit_micro", threads=1, clock=clock)
    assert table.about["threads"] == clock.asked[0]["threads"] == clock.made[0][-1] == 1
    assert torch.get_num_threads() == before


def test_what_one_form_cannot_do_is_noted_and_the_others_are_measured(clock):
    clock.off = {"eager": UsageError("not here"), "openvino": MemoryError(), "compiled": 0.01}
    table = measure("vit_micro", runtimes=("eager", "openvino", "compiled", "onnx"), clock=clock)
    notes = {row.runtime: row.note for row in table.rows if row.note}
    assert notes["eager"] == "not here"
    assert notes["openvino"] == OUT_OF_MEMORY
    assert notes["compiled"] == "its scores differ from the model's by 1.0e-02 of the largest; not timed"
    assert [(r.runtime, r.again) for r in table.rows if r.median_ms] == [("onnx", False), ("onnx", True)]
    assert table.rows[-1].against == "vit_micro onnx float32"
    assert [asked["runtime"] for asked in clock.asked] == ["onnx"]


def test_lower_precision_may_differ_and_says_by_how_much(clock):
    clock.off = {"onnx": 0.01}
    row = measure("vit_micro", runtimes=("onnx",), precisions=("int8",), clock=clock).rows[0]
    assert row.error == pytest.approx(0.01, rel=1e-3)
    assert row.median_ms is not None
    assert row.note == forms.RANDOM_SCALES


def test_scores_that_are_no_numbers_are_not_timed(clock):
    clock.off = {"onnx": math.nan}
    table = measure("vit_micro", runtimes=("eager", "onnx"), clock=clock)
    assert table.rows[1].median_ms is None
    assert "nan" in table.rows[1].note


def test_few_blocks_have_no_interval(clock):
    rows = measure("vit_micro", runtimes=("eager", "onnx"), seconds=0.1, memory=False, clock=clock).rows
    assert (rows[1].ratio_low, rows[1].ratio_high, rows[1].measured) == (None, None, False)
    assert (rows[0].ratio_low, rows[0].ratio_high) == (1, 1)


def test_rows_are_handed_over_as_they_come(clock):
    clock.off = {"onnx": KeyboardInterrupt()}
    seen, told = [], []
    with pytest.raises(KeyboardInterrupt):
        compare(
            ["vit_micro", "swin_micro"],
            runtimes=("eager", "onnx"),
            clock=clock,
            after=lambda table: seen.append(len(table.rows)),
            notify=lambda what, share: told.append((what, share)),
        )
    assert seen == [3]
    assert ("2 taking turns", 0.0) in told
    assert told[-1] == ("vit_micro in onnx, float32", 0.5)


def test_a_model_at_hand_and_an_example(clock, tmp_path):
    model = create_model("vit_micro", num_classes=3)
    table = anyformer.measure(model, torch.zeros(2, 3, 32, 32), clock=clock)
    assert (table.rows[0].name, table.rows[0].batch, table.rows[0].height) == ("vit_micro", 2, 32)
    assert clock.made[0] == ("vit_micro", "eager", "float32", (2, 3, 32, 32), torch.get_num_threads())
    assert model.training
    model.save_pretrained(tmp_path / "mine")
    row = measure(tmp_path / "mine", sizes=((64, 64),), clock=clock).rows[0]
    assert (row.name, row.height) == (str(tmp_path / "mine"), 64)
    assert clock.asked[-1]["source"] == str(tmp_path / "mine")


def test_a_hybrid_is_measured_at_the_size_it_is_given(clock):
    hybrid = build_hybrid(serial.to_data(create_model("vit_micro", num_classes=3).spec))
    row = measure(hybrid, torch.zeros(1, 3, 32, 32), clock=clock).rows[0]
    assert (row.name, row.height, row.error) == ("Isotropic", 32, 0)
    with pytest.raises(AnyformerError, match="nothing was measured: Isotropic: Isotropic does not say which images"):
        measure(hybrid, clock=clock)


def test_the_same_name_twice_is_numbered(clock):
    rows = compare(["vit_micro", "vit_micro", create_model("vit_micro")], memory=False, clock=clock).rows
    assert [row.name for row in rows] == ["vit_micro", "vit_micro (2)", "vit_micro (3)", "vit_micro"]


def test_subjects(tmp_path):
    with AtHand(create_model("swin_micro", in_chans=1)) as subject:
        model = subject.model()
        assert (subject.name, size_of(model), model.training) == ("swin_micro", (32, 32), False)
        assert images(model, 5, (32, 32)).shape == (5, 1, 32, 32)
        assert torch.equal(images(model, 5, (32, 32)), images(model, 5, (32, 32)))
    with pytest.raises(AnyformerError):
        Subject(subject.source, "gone").model()
    one, two = (Subject.of("vit_micro").model().state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    with pytest.raises(UsageError, match="takes a model of ours, a name or a folder, not 'Linear'"):
        AtHand(nn.Linear(1, 1))
    with pytest.raises(UsageError, match="Linear does not say which images it takes"):
        size_of(nn.Linear(1, 1))
    with pytest.raises(UsageError, match="did you mean vit_micro"):
        Subject.of("vit_micr")
    with pytest.raises(AnyformerError, match=r"manifest\.json"):
        Subject.of(tmp_path).model()


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        ({"runtimes": ["onx"]}, "there is no runtime 'onx'; known: eager, compiled, onnx, openvino; did you mean onnx"),
        ({"precisions": ["float23"]}, "there is no precision 'float23'; known: .*; did you mean float32"),
        ({"batches": [4, 0]}, "a batch must be at least 1, not 0"),
        ({"sizes": [None, (0, 32)]}, "a size must be at least 1, not 0"),
        ({"threads": -1}, "a number of threads must be at least 1, not -1"),
        ({"batches": []}, "nothing to measure: give at least one runtime, precision, batch and size"),
        ({"width": 0.0}, "the width of the interval must be positive, not 0"),
        ({"seconds": math.nan}, "the number of seconds must be positive, not nan"),
    ],
)
def test_plans_that_cannot_be(plan, says):
    with pytest.raises(UsageError, match=says):
        Plan(**plan).check()


def test_what_cannot_be_measured_is_refused_before_anything_runs(clock):
    with pytest.raises(UsageError, match="name at least one model"):
        measure([])
    with pytest.raises(UsageError, match="compare takes at least two models"):
        compare(["vit_micro"])
    with pytest.raises(UsageError, match="compare takes at least two models"):
        compare("vit_micro")
    with pytest.raises(UsageError, match="did you mean swin_micro"):
        compare(["vit_micro", "swn_micro"])
    with pytest.raises(
        UsageError, match=r"the example must be images \(batch, channels, height, width\), not \(3, 4\)"
    ):
        measure("vit_micro", torch.zeros(3, 4))
    assert not clock.made


def test_nothing_measured_is_an_error_with_its_reason(clock):
    clock.off = {"eager": MemoryError()}
    with pytest.raises(AnyformerError, match="nothing was measured: vit_micro: ran out of memory"):
        measure("vit_micro", clock=clock)


def test_forms():
    """What is asked of the runtimes themselves, whose own tests are elsewhere."""
    model = create_model("vit_micro").eval()
    example = images(model, 2, (32, 32))
    with torch.no_grad():
        expected = model(example)
    assert torch.equal(forms.form(model, "eager", example, "float32", 1)(example), expected)
    with pytest.raises(UsageError, match="torch runs no int8 here"):
        forms.form(model, "eager", example, "int8", 1)


@pytest.mark.slow
def test_int8_runs_in_both_runtimes():
    model = create_model("vit_micro").eval()
    example = images(model, 2, (32, 32))
    for runtime in ("onnx", "openvino"):
        assert forms.form(model, runtime, example, "int8", 1)(example).shape == (2, 1000)
    assert run._version("anyformer-that-nobody-made") is None
