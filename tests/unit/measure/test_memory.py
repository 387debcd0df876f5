"""Peak memory: one real child, and children that fail in every way."""

import sys

import pytest
import torch
from torch import nn

from anyformer.core.errors import AnyformerError
from anyformer.measure import memory
from anyformer.measure.memory import OUT_OF_MEMORY, Peak, peak

ASKED = {
    "source": "vit_micro",
    "runtime": "eager",
    "precision": "float32",
    "batch": 64,
    "size": [32, 32],
    "threads": 1,
    "training": True,
}


def child(code):
    return [sys.executable, "-c", code]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets the mark be set back")
def test_a_training_step_needs_more_than_a_forward_pass():
    found = peak(ASKED)
    assert found.note == ""
    assert 1 < found.forward_mb < found.training_mb < 1000


@pytest.fixture
def passes(monkeypatch):
    """What is done in the process itself, with a growth that is counted instead of measured."""
    done = []
    monkeypatch.setattr(memory, "form", lambda model, runtime, example, *_: lambda batch: done.append("run"))
    monkeypatch.setattr(memory, "growth", lambda call: (done.append("mark"), call(), float(len(done)))[2])
    monkeypatch.setattr(memory.torch, "set_num_threads", lambda count: done.append(count))
    return done


@pytest.mark.parametrize(
    ("runtime", "done"),
    [("eager", [3, "run", "mark", "run"]), ("compiled", [3, "run", "mark", "run"]), ("onnx", [3, "mark", "run"])],
)
def test_a_runtime_that_keeps_its_memory_is_not_run_before(passes, runtime, done):
    found = memory.measured("vit_micro", runtime, "float32", 2, [8, 12], threads=3, training=False)
    assert passes == done
    assert found == Peak(forward_mb=float(len(done)))


def test_a_training_step_that_is_refused_leaves_the_forward_pass(passes, monkeypatch):
    trained = []

    def refuse(model, example):
        trained.append((type(model).__name__, tuple(example.shape)))
        if len(trained) == 2:
            raise ValueError("Expected more than 1 value per channel when training")

    monkeypatch.setattr(memory, "_train", refuse)
    found = memory.measured("vit_micro", "eager", "float32", 2, None, threads=3, training=True)
    assert found == Peak(forward_mb=4.0, note="training step: Expected more than 1 value per channel when training")
    assert trained == [("Linear", (1, 1)), ("Isotropic", (2, 3, 32, 32))]


def test_a_training_step_moves_every_weight():
    model = nn.Linear(2, 1)
    before = [parameter.clone() for parameter in model.parameters()]
    memory._train(model.eval(), torch.ones(3, 2))
    assert model.training
    assert all((old != new).all() for old, new in zip(before, model.parameters(), strict=True))


def test_a_child_that_the_system_ended_ran_out_of_memory():
    found = peak({}, command=child("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    assert found == Peak(note=f"memory: {OUT_OF_MEMORY}")


def test_a_child_that_fails_gives_its_last_words():
    assert peak({}, command=child("raise SystemExit('no space')")).note == "memory: no space"
    assert peak({}, command=child("raise SystemExit(3)")).note == "memory: the child ended with 3"
    assert peak({}, command=child("print('chatter')")).note == "memory: the child ended with 0"
    assert peak({}, command=child("import time; time.sleep(60)"), seconds=0.1).note == "memory: no result within 0.1 s"


def test_the_child_says_in_one_sentence_what_went_wrong():
    found = peak({**ASKED, "source": "vit_micr"})
    assert found.forward_mb is None
    assert found.note.startswith("memory: no model is named 'vit_micr'; did you mean vit_micro")


def test_sentences():
    assert memory.sentence(MemoryError()) == OUT_OF_MEMORY
    assert memory.sentence(RuntimeError("DefaultCPUAllocator: can't allocate memory: 9")) == OUT_OF_MEMORY
    assert memory.sentence(ValueError("one\ntwo")) == "one"
    assert memory.sentence(KeyError()) == "KeyError"


def test_the_growth_is_that_of_the_call(monkeypatch, tmp_path):
    """The mark after the call, less what was resident before and the code that the call loaded."""
    monkeypatch.setattr(memory, "PROCESS", tmp_path)

    def state(mark, resident, code):
        lines = f"Name:\tx\nVmHWM:\t{mark} kB\nVmRSS:\t{resident} kB\nRssFile:\t{code} kB\nThreads:\t1\n"
        (tmp_path / "status").write_text(lines)

    state(900, 1000, 200)
    assert memory.growth(lambda: state(4000, 1500, 700)) == (4000 - 1000 - 500) * 1024 / 1e6
    assert (tmp_path / "clear_refs").read_text() == "5"


def test_a_system_without_such_a_mark_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "PROCESS", tmp_path / "nowhere")
    with pytest.raises(AnyformerError, match="does not report the peak memory"):
        memory.growth(int)
