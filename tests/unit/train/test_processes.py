"""Two processes learn what one does, also with their weights cut over them; alone, nothing of it is in the way."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import anyformer as af
from anyformer.core.errors import UsageError
from anyformer.data.batches import Batch
from anyformer.train import processes, sharding
from anyformer.train.processes import pick_device, shares
from anyformer.train.sharding import shard


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    program = Path(__file__).with_name("many_processes.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launch, program, folder], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def report(folder):
    return json.loads((folder / "report.json").read_text())


@pytest.mark.parametrize("kind", ["losses", "accumulated", "three"])
def test_two_processes_have_the_losses_of_one(report, kind):
    """Odd batches, clipped gradients, accumulation, roles without an optimizer or with an objective in common."""
    ours, theirs = torch.tensor(report[kind]), torch.tensor(report["alone"][kind])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert (theirs[0] - theirs[-1]).abs().min() > 0.05


def test_cut_weights_learn_the_same(report):
    torch.testing.assert_close(
        torch.tensor(report["cut"]), torch.tensor(report["alone"]["losses"]), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        torch.tensor(report["tied"]), torch.tensor(report["alone"]["tied"]), rtol=1e-5, atol=1e-5
    )
    assert report["best"] == pytest.approx(report["alone"]["best"], rel=1e-5)
    assert report["best_whole"]
    assert report["all_cut"]
    assert report["cut_blocks"] == 5  # four and the model
    assert report["cut_share"] == pytest.approx(0.5, abs=0.02)
    assert report["cut_weights"] < 1e-4


def test_cut_weights_resume_to_the_same_bits_and_load_whole_in_one_process(report, folder):
    assert report["resumed_same_bits"]
    assert report["resumed"] == report["cut"]
    assert report["whole_step"] == 8
    assert report["whole_weights"] == 0  # the checkpoint and the exported folder
    (warning,) = report["warned"]
    assert "made with processes 2, this is 1: the run goes on, but not to the same bits" in warning
    model = af.from_pretrained(folder / "model")
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 3)


def test_what_the_first_meets_and_the_second_wants_holds_for_both(report):
    first, second = report["refused"]
    assert "Not a directory" in first
    assert first == second
    assert report["stopped"] == [2, 2]


def test_statistics_are_the_same_everywhere_and_draws_are_not(report):
    first, second = report["statistics"]
    assert first == second
    assert first[0] != [0.0] * 3
    assert not set(report["draws"][0]) & set(report["draws"][1])


def test_shares_are_weighted_so_that_means_add_up():
    batch = Batch(torch.arange(26.0).reshape(13, 2), torch.arange(13))
    parts = shares(batch, 4, None)
    assert torch.equal(torch.cat([part.images for _, part in parts]), batch.images)
    assert sum(share * part.images.mean() for share, part in parts).item() == pytest.approx(batch.images.mean().item())
    ((share, whole),) = shares({"a": [batch.images, "told"]}, 1, torch.device("cpu"))
    assert share == 1
    assert torch.equal(whole["a"][0], batch.images)
    assert shares({"a": [batch.images, "told"]}, 2, None)[1][1]["a"][1] == "told"


@pytest.mark.parametrize(
    "batch", ["text", torch.tensor(3.0), torch.zeros(1, 5), (torch.zeros(4), torch.zeros(5)), Batch(*torch.zeros(2, 1))]
)
def test_batch_that_cannot_be_cut_is_refused(batch):
    with pytest.raises(UsageError, match="cannot be cut into 2 parts"):
        shares(batch, 2, None)


def test_devices_are_found_by_name():
    assert pick_device("cpu") == torch.device("cpu")
    with pytest.raises(UsageError, match=r"no device 'tpuu' here; this torch sees cpu.* or 'auto'"):
        pick_device("tpuu")
    with pytest.raises(UsageError, match=r"no device 'meta' here"):
        pick_device("meta")


def test_accelerators_are_taken_in_turn(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert pick_device("auto") == pick_device("cuda") == torch.device("cuda", 1)
    assert pick_device("cuda:0") == torch.device("cuda", 0)
    assert pick_device("cpu") == torch.device("cpu")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(UsageError, match="no device cuda:2 here, the machine has 2; start fewer"):
        pick_device("auto")


def test_a_process_alone_joins_nothing_and_cuts_nothing():
    with processes.joined("cpu") as device:
        assert device == torch.device("cpu")
        assert (processes.count(), processes.rank()) == (1, 0)
    model = nn.Linear(2, 2)
    assert shard(model) is model


def test_scalar_parameters_cannot_be_cut(monkeypatch):
    model = nn.Module()
    model.register_parameter("scale", nn.Parameter(torch.tensor(1.0)))
    monkeypatch.setattr(sharding.processes, "count", lambda: 2)
    with pytest.raises(UsageError, match="scalar parameters cannot be sharded: scale; train without"):
        shard(model)
