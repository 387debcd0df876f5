"""A program for ``torchrun``: the same run alone, over the processes, and with its weights cut over them.

``torchrun --standalone --nproc-per-node 2 many_processes.py FOLDER`` writes what it found to ``FOLDER/report.json``.
"""

import json
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional as F

import anyformer as af
from anyformer.core.errors import AnyformerError
from anyformer.data.batches import Batches, data_config
from anyformer.train import processes
from anyformer.train.checkpoint import Checkpoints, CheckpointWarning
from anyformer.train.classification import Classification, predict_logits
from anyformer.train.loop import Role, Trainer
from anyformer.train.schedule import WarmupCosine, adamw
from anyformer.train.sharding import is_cut, shard

STEPS = 8
LABELS = torch.arange(48) % 3
CHANCE = torch.Generator().manual_seed(0)
IMAGES = (torch.randint(0, 128, (48, 1, 8, 8), generator=CHANCE) + 60 * LABELS[:, None, None, None]).to(torch.uint8)
CLIP = 1.85  # amid the norms that come, so that a wrong norm shows, and a wrong scale


class Imitation:
    """The student learns the labels and, by a third role that has its own optimizer, what the teacher says."""

    def losses(self, role: str, models: Any, batch: Any, step: int) -> Tensor:
        features = models["student"](batch.images)
        if role == "student":
            return F.cross_entropy(models["probe"](features), batch.labels)
        with torch.no_grad():
            told = models["teacher"](batch.images)
        return F.mse_loss(models["probe"](features), told)


def small_model(seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return af.create_model("vit_micro", num_classes=3, in_chans=1, img_size=8, patch_size=4)


def trainer(model: nn.Module, store: Checkpoints | None = None, **options: Any) -> Trainer:
    config = data_config(IMAGES)
    batches = Batches(IMAGES, LABELS, config, size=13, seed=0)  # an odd number: shares of 7 and 6
    role = Role(model, adamw(model, 1e-3), WarmupCosine(steps=STEPS, warmup=2))

    def score(models: Any) -> float:
        return -F.cross_entropy(predict_logits(models["student"], IMAGES, config), LABELS).item()

    options = {"every": 2, "evaluate": score, **options}
    return Trainer({"student": role}, Classification(), batches, clip=CLIP, ema=0.9, store=store, **options)


def tied(seed: int) -> nn.Module:
    """Two blocks have one channel mixer, which can be cut with neither."""
    model: Any = small_model(seed)
    model.blocks[1].channel_mixer = model.blocks[0].channel_mixer
    return model


def losses_of(run: Trainer, steps: int = STEPS) -> list[list[float]]:
    losses: list[list[float]] = []
    run.run(steps, progress=lambda step, values: losses.append(list(values.values())))
    return losses


def three_roles() -> Trainer:
    torch.manual_seed(5)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 8))
    roles = {
        "student": Role(wide, torch.optim.SGD(wide.parameters(), 0.1)),
        "teacher": Role(nn.Sequential(nn.Flatten(), nn.Linear(64, 3))),
        "probe": Role(probe := nn.Linear(8, 3), torch.optim.SGD(probe.parameters(), 0.1)),
    }
    return Trainer(roles, Imitation(), Batches(IMAGES, LABELS, data_config(IMAGES), size=12, seed=0), clip=CLIP)


def alone() -> dict[str, Any]:
    """What one process finds with the same global batches."""
    run = trainer(small_model(1))
    return {
        "losses": losses_of(run),
        "accumulated": losses_of(trainer(small_model(1), accumulate=3)),
        "three": losses_of(three_roles()),
        "tied": losses_of(trainer(tied(1)), 3),
        "best": run.best and [run.best.score, run.best.step],
        "weights": run.weights("student"),
    }


def apart(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The length of the difference over that of all weights."""
    assert ours.keys() == theirs.keys()
    difference, length = (
        torch.cat([state[key].double().flatten() for key in sorted(state)]).norm().item()
        for state in ({key: ours[key] - theirs[key] for key in ours}, theirs)
    )
    return difference / length


def together(folder: Path, reference: dict[str, Any]) -> dict[str, Any]:
    """The same over the processes; each starts from other weights, which the first one's replace."""
    seed = 1 + processes.rank()
    report: dict[str, Any] = {"losses": losses_of(trainer(small_model(seed)))}
    report["accumulated"] = losses_of(trainer(small_model(seed), accumulate=2))
    report["three"] = losses_of(three_roles())

    # Cut over the processes: stopped and resumed, against one that is not.
    peace = trainer(shard(small_model(seed)))
    report["cut"] = losses_of(peace)
    own = list(peace.models["student"].parameters())
    report["cut_share"] = sum(p.to_local().numel() for p in own) / sum(p.numel() for p in own)
    report["all_cut"] = all(map(is_cut, own))
    report["best"] = peace.best and [peace.best.score, peace.best.step]
    report["best_whole"] = peace.best is not None and not any(map(is_cut, peace.best.weights["student"].values()))
    report["cut_blocks"] = sum(isinstance(module, FSDPModule) for module in peace.models["student"].modules())
    report["tied"] = losses_of(trainer(shard(tied(seed))), 3)
    with Checkpoints(folder / "run", {}) as store:
        losses = losses_of(trainer(shard(small_model(seed)), store), 3)
    with Checkpoints(folder / "run", {}) as store:
        resumed = trainer(shard(small_model(seed + 7)), store)
        report["resumed"] = losses + losses_of(resumed)
    weights, expected = resumed.weights("student"), peace.weights("student")
    report["resumed_same_bits"] = all(torch.equal(weights[key], expected[key]) for key in expected)
    if reference:
        report["cut_weights"] = apart(weights, reference["weights"])

    plain = small_model(0)
    plain.load_state_dict(weights)
    processes.by_first(lambda: plain.save_pretrained(folder / "model"))

    try:  # a folder that cannot be made: the first process meets the error, all tell it
        Checkpoints(folder / "report.json" / "run", {})
    except AnyformerError as error:
        report["refused"] = processes.of_all(str(error))
    report["stopped"] = processes.of_all(stopped_by_the_second())
    return report | normalized_and_dropped(seed)


def normalized_and_dropped(seed: int) -> dict[str, Any]:
    """Running statistics, which must be the same everywhere, and random draws, which must not."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.BatchNorm1d(3))
    run, draws = trainer(model), []
    run.run(3, progress=lambda step, losses: draws.append(torch.rand(()).item()))
    statistics = [buffer.tolist() for buffer in model.buffers()]
    averages = [value.sum().item() for value in run.weights("student").values()]
    return {"statistics": processes.of_all(statistics + averages), "draws": processes.of_all(draws)}


def stopped_by_the_second() -> int:
    """The step at which all stop when the second process alone wants to."""
    run = trainer(small_model(1))
    run.run(STEPS, should_stop=lambda: processes.rank() == 1 and run.step == 2)
    return run.step


def main() -> None:
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rank = int(os.environ["RANK"])
    reference = alone() if rank == 0 else {}
    (folder / "report.json").touch()
    with processes.joined("cpu"):
        report = together(folder, reference)
        assert processes.count() == 2
        assert processes.rank() == rank
    if rank == 0:
        report["alone"] = {name: reference[name] for name in reference if name != "weights"}
        with warnings.catch_warnings(record=True) as caught, Checkpoints(folder / "run", {}) as store:
            warnings.simplefilter("always")
            run = trainer(small_model(9), store)  # the same checkpoint in one process, whole
        report["whole_step"] = run.step
        report["warned"] = [str(w.message) for w in caught if w.category is CheckpointWarning]
        report["whole_weights"] = apart(run.weights("student"), af.from_pretrained(folder / "model").state_dict())
        (folder / "report.json").write_text(json.dumps(report))


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
