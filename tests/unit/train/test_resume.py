"""A stopped run goes on to the same bits as one that was never stopped."""

import random
import signal

import numpy as np
import pytest
import torch

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.train import loop
from anyformer.train.chance import capture
from anyformer.train.checkpoint import Checkpoints, CheckpointWarning
from anyformer.train.loop import Trainer
from anyformer.train.packing import pack

from .small_run import make_trainer, outcome

STEPS = 40


def bits(trainer):
    tree, tensors = pack(outcome(trainer))
    return tree, tensors


def close(trainer):
    trainer.store.close()


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    trainer = make_trainer(tmp_path_factory.mktemp("whole"))
    assert trainer.run(STEPS) == "steps"
    close(trainer)
    assert [record["step"] for record in outcome(trainer)["log"]] == [6, 12, 18, 24, 30, 36]
    return bits(trainer)


def disturb():
    """What another program in the process may have done to the global random states."""
    random.seed()
    np.random.seed()
    torch.seed()


@pytest.mark.parametrize("stops", [[1], [5], [6], [19], [39], [3, 4, 17, 31], [40]])
def test_resumed_run_has_the_same_bits(tmp_path, uninterrupted, stops):
    for number, stop in enumerate([*stops, STEPS]):
        disturb()
        trainer = make_trainer(tmp_path, model_seed=number + 1)
        trainer.run(stop)
        assert trainer.step == stop
        close(trainer)
    assert bits(trainer) == uninterrupted


def test_killed_between_checkpoints_repeats_the_lost_steps(tmp_path, uninterrupted):
    """The log's lines of lost steps are written once, not twice."""

    def die(step, losses):
        if step == 14:
            raise MemoryError

    trainer = make_trainer(tmp_path)
    with pytest.raises(MemoryError):
        trainer.run(STEPS, progress=die)
    close(trainer)
    trainer = make_trainer(tmp_path, model_seed=2)
    assert trainer.step == 10
    trainer.run(STEPS)
    close(trainer)
    assert bits(trainer) == uninterrupted


def test_damaged_newest_checkpoint_repeats_from_the_previous_one(tmp_path, uninterrupted):
    trainer = make_trainer(tmp_path)
    trainer.run(22)
    close(trainer)
    (tmp_path / "step-00000022" / "tensors.safetensors").write_bytes(b"")
    with pytest.warns(CheckpointWarning, match=r"step-00000022/tensors.safetensors .* going on from step 20"):
        trainer = make_trainer(tmp_path, model_seed=2)
    trainer.run(STEPS)
    close(trainer)
    assert bits(trainer) == uninterrupted


def test_runs_that_take_turns_do_not_disturb_each_other(tmp_path, uninterrupted):
    one, other = make_trainer(tmp_path / "one"), make_trainer(tmp_path / "other")
    before = torch.get_rng_state()
    for stop in (7, 20, STEPS):
        one.run(stop)
        other.run(stop - 1)
    close(one)
    close(other)
    assert bits(one) == uninterrupted
    assert torch.equal(torch.get_rng_state(), before)


def test_deadline_saves_and_tells(tmp_path, uninterrupted):
    asked = iter(range(100))
    trainer = make_trainer(tmp_path)
    assert trainer.run(STEPS, should_stop=lambda: next(asked) >= 13) == "stopped"
    assert trainer.step == 13
    close(trainer)
    trainer = make_trainer(tmp_path, model_seed=2)
    assert trainer.step == 13
    assert trainer.run(STEPS) == "steps"
    close(trainer)
    assert bits(trainer) == uninterrupted


@pytest.mark.parametrize(
    ("number", "error", "code"), [(signal.SIGINT, KeyboardInterrupt, None), (signal.SIGTERM, SystemExit, 143)]
)
def test_signal_finishes_the_step_saves_and_ends(tmp_path, uninterrupted, number, error, code):
    def send(step, losses):
        if step == 17:
            signal.raise_signal(number)

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    trainer = make_trainer(tmp_path)
    with pytest.raises(error) as caught:
        trainer.run(STEPS, progress=send)
    assert getattr(caught.value, "code", None) == code
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    close(trainer)
    trainer = make_trainer(tmp_path, model_seed=2)
    assert trainer.step == 17
    trainer.run(STEPS)
    close(trainer)
    assert bits(trainer) == uninterrupted


def test_second_ctrl_c_acts_at_once_and_harms_nothing(tmp_path, uninterrupted):
    reached = []

    def send(step, losses):
        if step == 8:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            reached.append(step)

    trainer = make_trainer(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        trainer.run(STEPS, progress=send)
    assert not reached
    close(trainer)
    trainer = make_trainer(tmp_path, model_seed=2)
    assert trainer.step == 5
    trainer.run(STEPS)
    close(trainer)
    assert bits(trainer) == uninterrupted


def test_full_disk_ends_the_run_and_the_previous_checkpoint_resumes(tmp_path, monkeypatch, uninterrupted):
    import anyformer.train.files as files

    def full(descriptor):
        raise OSError(28, "No space left on device")

    trainer = make_trainer(tmp_path)
    trainer.run(10)
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(AnyformerError, match=r"cannot write .*log.jsonl: No space left on device"):
            trainer.run(STEPS)
    close(trainer)
    trainer = make_trainer(tmp_path, model_seed=2)
    assert trainer.step == 10
    trainer.run(STEPS)
    close(trainer)
    assert bits(trainer) == uninterrupted


def test_model_that_the_configuration_did_not_tell_apart_is_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.run(3)
    trainer.store.save(4, {"roles": {}})
    close(trainer)
    with pytest.raises(UsageError, match="other roles, models or optimizers"):
        make_trainer(tmp_path)


def test_run_without_averages_does_not_go_on_from_one_with_them(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.run(3)
    close(trainer)
    with pytest.raises(UsageError, match=r"other roles.*: one of them has moving averages of weights and the other"):
        make_trainer(tmp_path, ema=None)


def test_other_device_is_told(tmp_path, monkeypatch):
    trainer = make_trainer(tmp_path)
    monkeypatch.setattr(Trainer, "_drawn_on", torch.device("meta"))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "capture", lambda device: capture())
        trainer._save()
    close(trainer)
    monkeypatch.undo()
    with pytest.warns(CheckpointWarning, match="made on meta, this is cpu: the run goes on, but not to the same bits"):
        make_trainer(tmp_path)


def test_accumulated_run_resumes_to_the_same_bits(tmp_path):
    whole = make_trainer(tmp_path / "whole", accumulate=3, bf16=True)
    whole.run(STEPS)
    close(whole)
    for stop in (11, STEPS):
        trainer = make_trainer(tmp_path / "parts", accumulate=3, bf16=True)
        trainer.run(stop)
        close(trainer)
    assert bits(trainer) == bits(whole)


def test_other_configuration_is_refused_before_anything_is_loaded(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.run(3)
    close(trainer)
    other = Checkpoints(tmp_path, {"model": "large", "seed": 4})
    with other, pytest.raises(UsageError, match="model: saved small, asked large; seed: saved 3, asked 4"):
        make_trainer(store=other)
