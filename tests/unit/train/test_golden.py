"""Checkpoints that earlier releases wrote still load; ``python test_golden.py`` writes that of this release."""

import json
import shutil
import tempfile
import warnings
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from anyformer.data.batches import data_config
from anyformer.train.checkpoint import CheckpointWarning
from anyformer.train.classification import predict_logits

GOLDEN = Path(__file__).with_name("golden")
STEP = 7


def logits(trainer):
    """Of the averaged weights, on a few of the run's pictures."""
    model, images = trainer.models["student"], trainer.batches.images
    own = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(trainer.weights("student"))
    found = predict_logits(model, images[:8], data_config(images))
    model.load_state_dict(own)
    return found


@pytest.mark.parametrize("release", ["0.1.0"])
def test_checkpoint_of_a_release_loads_and_goes_on(release, tmp_path):
    from .small_run import make_trainer

    run = tmp_path / "run"
    shutil.copytree(GOLDEN / release, run)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)  # it may have been made with another torch
        trainer = make_trainer(run, model_seed=9)
    assert (trainer.step, trainer.best.step) == (STEP, 6)
    expected = torch.tensor(json.loads((GOLDEN / release / "logits.json").read_text()))
    assert expected.std() > 0.1
    torch.testing.assert_close(logits(trainer), expected, rtol=1e-5, atol=1e-5)
    trainer.run(STEP + 1)
    trainer.store.close()
    assert (run / f"step-{STEP + 1:08d}").is_dir()


def main() -> None:
    from small_run import make_trainer

    folder = GOLDEN / version("anyformer")
    with tempfile.TemporaryDirectory() as name:
        trainer = make_trainer(Path(name))
        trainer.run(STEP)
        shutil.copytree(Path(name) / f"step-{STEP:08d}", folder / f"step-{STEP:08d}")
    (folder / "logits.json").write_text(json.dumps(logits(trainer).tolist()))


if __name__ == "__main__":
    main()
