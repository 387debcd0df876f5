"""``fit``: from a user's data and a budget to a trained, exported, checked model in one folder."""

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.core.model import Model
from anyformer.core.store import from_pretrained
from anyformer.fit import measuring
from anyformer.fit.budget import Budget, parse_budget
from anyformer.fit.clock import Clock, Notify
from anyformer.fit.material import Material
from anyformer.fit.memory import RunMemory
from anyformer.fit.plan import lessons, reserve, rungs
from anyformer.fit.pretrained import Weights
from anyformer.fit.runtimes import check_runtime
from anyformer.fit.shared import Shared
from anyformer.fit.study import Study
from anyformer.fit.subjects import Subject, subject_of
from anyformer.fit.teaching import pick_teacher
from anyformer.ops import kernels
from anyformer.train.files import locked
from anyformer.train.processes import pick_device


def _silent(what: str, share: float) -> None:
    """The caller who did not ask to be told."""


@dataclass(frozen=True)
class Fitted:
    """The outcome of :func:`fit`: its folder and what ``report.json`` says."""

    folder: Path
    report: dict[str, Any]

    @property
    def model(self) -> Model:
        """The trained model, read from the folder."""
        return from_pretrained(self.folder)


@dataclass(frozen=True)
class Request:
    """What is asked of a fit, checked; see :func:`fit`."""

    data: str
    subject: Subject
    folder: Path
    budget: Budget
    minutes: float
    seed: int
    trials: int
    size: int | None
    bf16: bool
    runtime: str
    weights: Weights | None
    distill: bool
    device: str | None
    kind: str | None
    files: str | None
    target: tuple[str, ...]

    def read(self) -> tuple[Material, dict[str, Any]]:
        """The data with its candidates, and all that must be equal for a run to go on, as JSON values."""
        data, digest = self.subject.read(self)
        data.choose(self.trials)
        asked = {
            "data": digest,
            "budget": [str(limit) for limit in self.budget.limits],
            "minutes": self.minutes,
            "seed": self.seed,
            "trials": self.trials,
            "bf16": self.bf16,
            "runtime": self.runtime,
            "weights": self.weights.source if self.weights else None,
            "distill": self.distill,
            "device": self.device,
            **self.subject.also_asked,
        }
        return data, asked


def request(
    data: str | Path,
    *,
    budget: str = "",
    minutes: float = 10.0,
    out: str | Path | None = None,
    seed: int = 0,
    trials: int = 6,
    size: int | None = None,
    bf16: bool = False,
    runtime: str | None = None,
    weights: str | Path | None = None,
    distill: bool = False,
    device: str | None = None,
    kind: str | None = None,
    files: str | None = None,
    target: Sequence[str] = (),
) -> Request:
    """The arguments of :func:`fit`, checked before anything is read or written. Raises UsageError."""
    limits = parse_budget(budget)
    if minutes <= 0 or trials < 1:
        raise UsageError(f"minutes and trials must be positive, got minutes={minutes:g} and trials={trials}")
    if device is not None:
        pick_device(device)
    if runtime is not None:
        check_runtime(runtime)
    subject = subject_of(str(data), kind)
    limits.check(subject.quantities, subject.what)
    given = {
        "--size": size is not None,
        "--runtime": runtime is not None and runtime != subject.runtime,
        "--weights": weights is not None,
        "--distill": distill,
        "--files": files is not None,
        "--target": bool(target),
    }
    subject.check([name for name, there in given.items() if there])
    return Request(
        data=str(data),
        subject=subject,
        folder=Path(out) if out is not None else Path(f"anyformer-{Path(data).name}"),
        budget=limits,
        minutes=minutes,
        seed=seed,
        trials=trials,
        size=size,
        bf16=bf16,
        runtime=check_runtime(runtime or subject.runtime),
        weights=None if weights is None else Weights(str(weights)),
        distill=distill,
        device=device,
        kind=kind,
        files=files,
        target=tuple(target),
    )


def fit(
    data: str | Path,
    *,
    budget: str = "",
    minutes: float = 10.0,
    out: str | Path | None = None,
    seed: int = 0,
    trials: int = 6,
    size: int | None = None,
    bf16: bool = False,
    runtime: str | None = None,
    weights: str | Path | None = None,
    distill: bool = False,
    device: str | None = None,
    kind: str | None = None,
    files: str | None = None,
    target: Sequence[str] = (),
    storage: str | None = None,
    notify: Notify = _silent,
) -> Fitted:
    """Train, choose, export and check a model of pictures or of text.

    The data are split once into training, validation and test parts. Candidates of several systems are measured here
    against the budget; those within it are trained by successive halving, compared on the validation part; the winner
    is exported, compared with the export, and alone reads the test part. A second call with the same arguments goes on
    where the first one stopped.

    Args:
        data: a folder with one sub-folder a class, or with folders train and test of such; a table of files and targets
            (.csv, .tsv, .parquet); a .npz archive; or a built-in set, "digits" or "glyphs". Or texts: a file, a folder of
            files, "stdlib", of which a language model learns what comes next; or a folder with one sub-folder of text
            files a class.
        budget: limits such as ``"latency<=2ms, params<=1M"``, of language models ``"tokens_per_second>=500, state<=2MB,
            context>=1024"``; none when empty.
        minutes: wall clock for everything.
        out: the folder to write, ``anyformer-<data>`` when absent.
        seed: of the split, the weights, the order of the pictures and their augmentation.
        trials: how many candidates are measured, of text: how many within the budget are looked for.
        size: side that pictures are brought to; chosen from the data when absent.
        bf16: train under bfloat16 autocast.
        runtime: what latency is measured in and predictions run in: "onnx", which is what models of pictures have when
            absent, "openvino", or "eager", the one of models of text.
        weights: pretrained weights to start from where there are some, a folder or ``hub:owner/repository``.
        distill: train the largest candidate beyond the budget first, and let it teach the finalists.
        device: where training computes: "cpu", "cuda", ..., or "auto"; the CPU when absent.
        kind: of target: "classes", "multilabel" or "regression", or "language" for what comes next in a text; found from
            the data when absent.
        files: of a table, the column of picture files; found from its name when absent.
        target: of a table, the columns of targets; found from their names when empty.
        storage: a database through which :func:`work` in other processes shares the training, as an SQLAlchemy URL;
            "sqlite" is a file in the folder. The outcome is the same as without.
        notify: told what is being done and which share of the time is used.

    Raises:
        UsageError: the data, the budget or another argument cannot be used, with what to do.
        AnyformerError: something failed on the way; the folder holds what was done.
        KeyboardInterrupt: after Ctrl-C; the best model so far is in the folder.
    """
    asking = request(
        data,
        budget=budget,
        minutes=minutes,
        out=out,
        seed=seed,
        trials=trials,
        size=size,
        bf16=bf16,
        runtime=runtime,
        weights=weights,
        distill=distill,
        device=device,
        kind=kind,
        files=files,
        target=target,
    )
    if storage is not None and distill:
        raise UsageError("a teacher is not shared between processes; leave out --distill or --storage")
    folder = asking.folder
    notify("Reading the data", 0.0)
    material, asked = asking.read()
    with ExitStack() as held:
        held.enter_context(locked(folder))
        held.enter_context(kernels.force("mkl"))  # a kernel chosen by the clock would move scores in the last digit
        memory = RunMemory(folder, asked)
        finished = memory.finished()
        if finished is not None:
            return Fitted(folder, finished)
        clock = Clock(memory.seconds, asking.minutes, notify)
        costs = measuring.measure(folder, material, asking.runtime, clock, asking.budget, asking.trials)
        costs = material.reduced(folder, asking.runtime, clock, costs, asking.budget)
        within = measuring.within(costs, asking.budget)
        teacher = pick_teacher(costs, asking.budget, asking.minutes) if asking.distill else None
        ladder = rungs(len(within), asking.minutes, costs, epoch=material.epoch, taught=teacher is not None)
        study = Study(
            folder,
            material,
            {name: costs[name] for name in within},
            ladder,
            memory,
            asking.seed,
            asking.bf16,
            clock,
            None if teacher is None else (teacher, costs[teacher], lessons(asking.minutes, costs, teacher)),
        )
        held.callback(study.close)
        finisher = asking.subject.finisher(folder, material, asking.budget, costs, study, memory, asking.data, clock)
        try:
            if storage is not None:
                deadline = time.time() + clock.total - reserve(costs) - clock.seconds
                shared = held.enter_context(Shared(storage, folder, study_name(asked)))
                shared.announce(costs, within, deadline)
                shared.work(study, clock, deadline)
                shared.settle()
                memory.save(clock.seconds)
            study.gather()
            study.run(reserve=reserve(costs))
        except KeyboardInterrupt:
            study.gather()
            if study.standing():
                finisher.write(interrupted=True)
            raise
        if not study.standing():
            raise AnyformerError(
                f"no candidate was trained far enough to be judged within {asking.minutes:g} minutes; give more --minutes"
            )
        report = finisher.write(interrupted=False)
        study.close()
        shutil.rmtree(folder / "work", ignore_errors=True)
    return Fitted(folder, report)


def work(data: str | Path, *, storage: str = "sqlite", notify: Notify = _silent, **options: Any) -> int:
    """Help a :func:`fit` that was started with a storage, until nothing is left to train; gives the trials finished here.

    Processes that share the folder of the run go on from each other's checkpoints; others train anew what they take.

    Args:
        data: as for the fit.
        storage: likewise.
        notify: told what is being done.
        options: those of the fit, which must be the same.

    Raises:
        UsageError: nobody has begun such a fit.
    """
    asking = request(data, **options)
    notify("Reading the data", 0.0)
    material, asked = asking.read()
    with kernels.force("mkl"), Shared(storage, asking.folder, study_name(asked)) as shared:
        memory = RunMemory(asking.folder, asked)
        clock = Clock(memory.seconds, asking.minutes, notify)
        costs, within, deadline = shared.plan(patience=60.0 * asking.minutes)
        chosen = {name: costs[name] for name in within}
        ladder = rungs(len(within), asking.minutes, costs, epoch=material.epoch)
        study = Study(asking.folder, material, chosen, ladder, memory, asking.seed, asking.bf16, clock)
        try:
            return shared.work(study, clock, deadline)
        finally:
            study.close()


def dry_run(data: str | Path, *, notify: Notify = _silent, **options: Any) -> measuring.DryRun:
    """The candidates of a fit with their costs, measured here; nothing is trained. The fit itself then need not measure.

    Args:
        data: as for :func:`fit`.
        notify: told what is being done.
        options: those of the fit.
    """
    asking = request(data, **options)
    notify("Reading the data", 0.0)
    material, _ = asking.read()
    with locked(asking.folder), kernels.force("mkl"):
        clock = Clock(0.0, asking.minutes, notify)
        costs = measuring.measure(asking.folder, material, asking.runtime, clock, asking.budget, asking.trials)
        costs = material.reduced(asking.folder, asking.runtime, clock, costs, asking.budget)
        shutil.rmtree(asking.folder / "work", ignore_errors=True)
    return measuring.DryRun(asking.folder, asking.runtime, measuring.rows(material, costs, asking.budget))


def study_name(asked: dict[str, Any]) -> str:
    """The name of a shared study: another one for whatever else is asked."""
    return f"anyformer-{hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:24]}"
