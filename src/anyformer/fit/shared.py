"""A fit whose training is shared by several processes: an Optuna study holds what is to do, what is done and by whom.

A trial is one candidate in one rung. Which trials there are follows from the results of the rung before, and a trial's
result from its seed and steps, so that it does not matter who runs it: the outcome is that of one process alone. A process
that dies stops its heartbeat; its trial is then failed and put back into the queue by whoever looks next, and goes on from
the last checkpoint where the processes share the folder of the run, else from the start.
"""

import json
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Self

from anyformer.core.errors import AnyformerError, UsageError
from anyformer.fit.clock import Clock
from anyformer.fit.costs import Costs
from anyformer.fit.study import Study

if TYPE_CHECKING:
    import optuna

HEARTBEAT = 10  # seconds between two signs of life
GRACE = 45  # seconds without one until a trial is given to somebody else
POLL = 1.0  # seconds between two looks at the queue
LOCKED = 60.0  # seconds that SQLite waits for another writer
PLAN, STOPPED = "plan", "stopped"  # what a study holds beside its trials

Job = tuple[str, int]


class Shared:
    """The study of one fit in a database, by a name that no fit of other data, budget, minutes or seed has.

    Args:
        url: of the database, as SQLAlchemy writes it; ``sqlite`` alone is a file ``study.db`` in the folder of the run.
        folder: of the run.
        name: of the study.

    Raises:
        UsageError: Optuna or the database's driver is not installed, or the URL cannot be read.
        AnyformerError: the database cannot be reached.
    """

    def __init__(self, url: str, folder: Path, name: str) -> None:
        try:
            import optuna
            from sqlalchemy.exc import ArgumentError
        except ImportError:
            raise UsageError('shared fits need Optuna: pip install "anyformer[storage]"') from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        folder.mkdir(parents=True, exist_ok=True)
        address = f"sqlite:///{folder.resolve() / 'study.db'}" if url == "sqlite" else url
        if address.startswith("postgresql://"):
            address = address.replace("postgresql://", "postgresql+psycopg://", 1)
        waiting = {"connect_args": {"timeout": LOCKED}} if address.startswith("sqlite") else {}
        with warnings.catch_warnings():  # heartbeats are called experimental
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            try:
                self._storage = optuna.storages.RDBStorage(
                    address,
                    engine_kwargs=waiting,
                    heartbeat_interval=HEARTBEAT,
                    grace_period=GRACE,
                    heartbeat_stale_trial_callback=optuna.storages.RetryHeartbeatStaleTrialCallback(),
                )
                self.study = optuna.create_study(
                    storage=self._storage, study_name=name, direction="maximize", load_if_exists=True
                )
            except (ImportError, ValueError, ArgumentError) as error:
                raise UsageError(f"--storage {shown_url(url)}: {_first_line(error)}") from None
            except Exception as error:  # every driver raises its own kinds
                raise AnyformerError(
                    f"the study at {shown_url(url)} cannot be opened ({_first_line(error)})"
                ) from error

    def close(self) -> None:
        """Let go of the database."""
        self._storage.remove_session()
        self._storage.engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def announce(self, costs: dict[str, Costs], within: list[str], deadline: float) -> None:
        """Say what is to be trained and until when, so that workers may begin."""
        plan = {
            "costs": {name: asdict(cost) for name, cost in costs.items()},
            "within": within,
            "deadline": deadline,
        }
        self.study.set_user_attr(STOPPED, False)
        self.study.set_user_attr(PLAN, json.dumps(plan))

    def plan(self, patience: float) -> tuple[dict[str, Costs], list[str], float]:
        """What ``announce`` said, waited for. Raises UsageError when nobody says anything for that many seconds."""
        ends = time.monotonic() + patience
        while True:
            text = self.study.user_attrs.get(PLAN)
            if text is not None:
                plan = json.loads(text)
                return {name: Costs(**cost) for name, cost in plan["costs"].items()}, plan["within"], plan["deadline"]
            if time.monotonic() > ends:
                raise UsageError(
                    f"nobody has begun this fit within {patience:g} s; start the same command without --worker first"
                )
            time.sleep(POLL)

    def work(self, study: Study, clock: Clock, deadline: float) -> int:
        """Take trials until there are none left, or until the deadline; gives how many were finished here.

        Args:
            study: of this process; ``study.memory.rungs`` is brought up to date.
            clock: told what is going on.
            deadline: in seconds since the epoch.
        """
        import optuna

        done = 0
        while not self.study.user_attrs.get(STOPPED, False):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                optuna.storages.fail_stale_trials(self.study)
            trials = self.study.get_trials(deepcopy=False)
            study.memory.rungs = self._rungs(trials, len(study.ladder))
            missing = study.missing()
            if not missing:
                break
            queued = {_job(trial) for trial in trials if trial.state.name in ("WAITING", "RUNNING")}
            for name, rung in missing:
                if (name, rung) not in queued:
                    self.study.enqueue_trial({"candidate": name, "rung": rung})
            if any(trial.state.name == "WAITING" for trial in self.study.get_trials(deepcopy=False)):
                done += self._take(study, deadline)
            else:
                clock.say("Waiting for other workers")
                if time.time() > deadline:
                    break
                time.sleep(POLL)
        return done

    def settle(self) -> None:
        """Wait until nobody trains any more, so that every folder can be read; not for those that are silent."""
        ends = time.monotonic() + GRACE
        while time.monotonic() < ends and any(x.state.name == "RUNNING" for x in self.study.get_trials(deepcopy=False)):
            time.sleep(POLL)

    def _take(self, study: Study, deadline: float) -> int:
        """Run one trial of the queue; 1 where it was finished."""
        import optuna

        finished = [0]

        def objective(trial: "optuna.Trial") -> float:
            trials = self.study.get_trials(deepcopy=False)
            job = _job(trials[trial.number])
            earlier = [_job(other) for other in trials[: trial.number] if other.state.name in ("RUNNING", "COMPLETE")]
            if job is None or job in earlier:
                raise optuna.TrialPruned  # somebody was quicker
            trial.suggest_categorical("candidate", list(study.costs))
            trial.suggest_int("rung", 0, len(study.ladder) - 1)
            try:
                score = study.train(*job, should_stop=lambda: time.time() > deadline)
            except UsageError as error:
                if "another run is writing" in str(error):
                    raise optuna.TrialPruned from None
                raise
            finally:
                study.release(job[0])
            if score is None:
                self.study.set_user_attr(STOPPED, True)
                raise optuna.TrialPruned
            finished[0] = 1
            return score

        self.study.optimize(objective, n_trials=1)
        return finished[0]

    @staticmethod
    def _rungs(trials: "list[optuna.trial.FrozenTrial]", count: int) -> list[dict[str, float]]:
        rungs: list[dict[str, float]] = [{} for _ in range(count)]
        for trial in trials:
            job = _job(trial)
            if job is not None and trial.state.name == "COMPLETE":
                assert trial.value is not None
                rungs[job[1]][job[0]] = trial.value
        return rungs


def _job(trial: "optuna.trial.FrozenTrial") -> Job | None:
    """The candidate and rung of a trial; None for one that somebody asked for when the queue was empty."""
    given = trial.params or trial.system_attrs.get("fixed_params") or {}
    return (given["candidate"], given["rung"]) if {"candidate", "rung"} <= given.keys() else None


def shown_url(url: str) -> str:
    """A URL without the password that it may hold."""
    before, at, after = url.rpartition("@")
    scheme, slashes, user = before.partition("://")
    return f"{scheme}{slashes}{user.partition(':')[0]}{at}{after}" if at else url


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
