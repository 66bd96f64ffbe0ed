"""``tuner run --dry-run``: all is checked as for a run, a first trial is rehearsed, nothing is written.

The rehearsal is a real trial on its ranks, on the cluster that the run would use: the objective is imported
there, trains with the parameters that the sampler draws first, and is ended after a few reports. What it
left, checkpoints and files, is removed again.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tuner.cli.options import UNSTORED, checked_directions
from tuner.cli.source import existing, reading
from tuner.errors import BadInput, BadObjective, StoreUnavailable, StudyStopped

if TYPE_CHECKING:
    import optuna

    from storage.views import StudyDetail
    from tuner.assignment import Assignment, ObjectiveRef
    from tuner.dispatch.base import Cluster
    from tuner.outcome import Outcome
    from tuner.recipe import Recipe
    from tuner.rehearsal import Rehearsal
    from tuner.resources import ResourcesSpec
    from tuner.settings import Settings

__all__ = ["print_plan"]

_REPORTS = (10, 100)  # of a trial, for which the time is predicted


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is known before anything runs."""

    target: str | Recipe
    name: str
    url: str
    directions: tuple[str, ...]
    sampler: str
    pruner: str
    seed: int
    settings: Settings
    study: StudyDetail | None

    @property
    def left(self) -> int | None:
        """Trials that are still to run."""
        budget = self.settings.n_trials
        return None if budget is None else max(0, budget - self.done)

    @property
    def done(self) -> int:
        """Trials of the budget that have finished already."""
        return self.study.finished if self.study else 0


def print_plan(
    target: str | Recipe,
    name: str,
    storage: str | None,
    given: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> int:
    """Say what ``tuner run`` would do, and how long and in how much memory.

    Returns:
        The exit code: 0 where everything holds, 1 where the rehearsed trial failed.

    Raises:
        TunerError: what the run itself would raise before its first trial.
    """
    from tuner import samplers, store
    from tuner.settings import Settings

    plan = _Plan(
        target=target,
        name=name,
        url=storage or store.default_url(),
        directions=checked_directions(given["direction"], target),
        sampler=given["sampler"] or "tpe",
        pruner=given["pruner"] or "median",
        seed=given["seed"] or 0,
        settings=Settings(**{key: value for key, value in settings.items() if key not in UNSTORED}),
        study=existing(name, storage, given["load_if_exists"]),
    )
    samplers.sampler(plan.sampler, 0, len(plan.directions))
    samplers.pruner(plan.pruner)
    database = _database(plan)
    return _rehearse(plan, database, as_json=given["as_json"])


def _rehearse(plan: _Plan, database: str, *, as_json: bool) -> int:
    from tuner import objective
    from tuner.cli.plan_table import print_found
    from tuner.cli.printing import print_json
    from tuner.optimization import make_executor
    from tuner.rehearsal import Rehearsal
    from tuner.resources import alternatives
    from tuner.solo import Solo

    run = uuid.uuid4().hex[:16]
    name = f"dry-run-{run}"
    reference = objective.refer(plan.target)
    rehearsal = Rehearsal(study=_in_memory(plan), seed=plan.seed)
    wanted = alternatives(plan.settings.resources)
    grace = 0.0 if plan.settings.executor == "inline" else 10.0
    with (
        _folder(plan, name) as folder,
        Solo(make_executor(plan.settings), rehearsal, grace=grace) as solo,
    ):
        cluster = solo.open(run, wanted)
        wrong = _checked(plan, solo.probe(folder))
        outcome = solo.run(_assignment(plan, run, name, folder, rehearsal, reference))
    if outcome.exception == "KeyboardInterrupt":
        raise KeyboardInterrupt
    if rehearsal.has_no_objective(outcome):
        raise BadObjective(f"on a worker: {outcome.message.partition(': ')[2]}")
    found = _found(plan, cluster, rehearsal, outcome)
    found["objective"], found["database"] = objective.describe(reference), database
    found["checkpoints"] = {"folder": _root(plan), "wrong": wrong, "bytes": rehearsal.checkpoint}
    if as_json:
        print_json(found)
    else:
        print_found(found)
    from tuner.outcome import Reason

    if outcome.reason in (Reason.COMPLETE, Reason.PRUNED, Reason.STOPPED):
        if not as_json:
            click.echo("all checks passed; nothing was written")
        return 0
    if outcome.traceback:
        click.echo(outcome.traceback.rstrip(), err=True)
    raise StudyStopped(f"the rehearsed trial failed: {outcome.reason}: {outcome.message}")


def _in_memory(plan: _Plan) -> optuna.Study:
    import optuna

    from tuner import samplers
    from tuner.logs import quiet_optuna

    sampler = samplers.sampler(plan.sampler, plan.seed, len(plan.directions))
    with quiet_optuna():
        return optuna.create_study(directions=list(plan.directions), sampler=sampler)  # type: ignore[arg-type]


def _database(plan: _Plan) -> str:
    """That the driver can write to the database; in words.

    Raises:
        StoreUnavailable: it cannot.
    """
    from storage import mask_url
    from tuner import store

    file = store.sqlite_file(plan.url)
    if file is not None and not file.exists():
        if not os.access(file.parent, os.W_OK):
            raise StoreUnavailable(
                f"the folder {file.parent} of the database {file.name} cannot be written to"
            )
        return f"{mask_url(plan.url)}: to be made here"
    with reading(plan.url) as database:
        why = database.refusal()
    if why:
        raise StoreUnavailable(why)
    return f"{mask_url(plan.url)}: this process can write to it"


def _root(plan: _Plan) -> str:
    from tuner import store

    return store.checkpoint_root(plan.url, plan.settings.checkpoints)


@contextlib.contextmanager
def _folder(plan: _Plan, name: str) -> Iterator[str]:
    """Where the rehearsed trial's checkpoints go; it, and the files that the trial left, go at the end."""
    from tuner import checkpoint
    from tuner.dispatch.working_folder import FILES

    root = _root(plan)
    made = [Path(root)] if "://" not in root and not Path(root).exists() else []
    files = Path.cwd() / FILES
    try:
        yield f"{root}/{name}"
    finally:
        checkpoint.sweep(f"{root}/{name}", ())
        shutil.rmtree(files / name, ignore_errors=True)
        for folder in (*made, files):
            with contextlib.suppress(OSError):  # not empty: it has others' files
                folder.rmdir()


def _checked(plan: _Plan, wrong: Mapping[str, str]) -> Mapping[str, str]:
    """As a run has it: what the user named must be right on every node."""
    if wrong and plan.settings.checkpoints is not None:
        where = "; ".join(f"{host}: {why}" for host, why in sorted(wrong.items()))
        raise BadInput(
            f"--checkpoints {plan.settings.checkpoints}: cannot be used on every node ({where}); "
            "name a folder or URI that all nodes share and may write to"
        )
    return wrong


def _assignment(
    plan: _Plan, run: str, name: str, folder: str, rehearsal: Rehearsal, reference: ObjectiveRef
) -> Assignment:
    import optuna

    from tuner import samplers
    from tuner.assignment import Assignment
    from tuner.optimization import environment
    from tuner.rehearsal import metered
    from tuner.resources import alternatives
    from tuner.seeds import trial_seed

    wanted = alternatives(plan.settings.resources)
    return Assignment(
        run=run,
        epoch=0,
        study=name,
        directions=plan.directions,
        number=0,
        attempt=1,
        seed=trial_seed(plan.seed, 0),
        started=dt.datetime.now().isoformat(),
        objective=metered(reference),
        resources=wanted[0],
        alternatives=wanted,
        relative=rehearsal.draw,
        checkpoints=folder,
        env=environment(plan.settings.env),
        folder=os.getcwd(),
        can_prune=not isinstance(samplers.pruner(plan.pruner), optuna.pruners.NopPruner),
    )


# ---------------------------------------------------------------------- what was found


def _found(plan: _Plan, cluster: Cluster, rehearsal: Rehearsal, outcome: Outcome) -> dict[str, Any]:
    """Everything as plain data, for ``--json``."""
    from storage import mask_url
    from tuner.dispatch import memory
    from tuner.forecast import Forecast, pace

    first = rehearsal.measured.get(0)
    whole = first.seconds if first is not None and rehearsal.came_to_its_end(outcome) else None
    most = plan.settings.max_concurrent
    slots = cluster.slots if most is None else min(cluster.slots, most)
    at_once = slots if plan.left is None else max(1, min(slots, plan.left))
    forecast = Forecast(pace=pace(first.reports if first else (), whole), trials=plan.left, slots=slots)
    hosts = {one.rank: one.host for one in rehearsal.ranks}
    ranks = [
        {
            "rank": rank,
            "host": hosts.get(rank, ""),
            "memory": one.memory,
            "peak_rss": one.resident,
            "gpu_memory": one.gpu,
        }
        for rank, one in sorted(rehearsal.measured.items())
    ]
    return {
        "study": plan.name,
        "new": plan.study is None,
        "storage": mask_url(plan.url),
        "directions": plan.directions,
        "sampler": plan.sampler,
        "pruner": plan.pruner,
        "n_trials": plan.settings.n_trials,
        "finished": plan.done,
        "timeout": plan.settings.timeout,
        "resources": _described(plan.settings.resources),
        "cluster": cluster.description,
        "slots": slots,
        "rehearsal": {
            "params": rehearsal.params,
            "reason": outcome.reason,
            "message": outcome.message,
            "first_report": forecast.pace.first,
            "between_reports": forecast.pace.between,
            "whole_trial": whole,
            "ranks": ranks,
        },
        "forecast": {
            "trials": plan.left,
            "seconds": forecast.whole(),
            "seconds_by_reports": {count: forecast.seconds(count) for count in (1, *_REPORTS)},
            "memory": at_once * sum(one.memory for one in rehearsal.measured.values()),
            "at_once": at_once,
            # of several nodes each has its own, and which rank goes where is not known before
            "node_memory": memory.node().total if cluster.home.startswith("local/") else None,
        },
    }


def _described(resources: ResourcesSpec) -> str:
    from tuner.resources import Resources, described

    if callable(resources):
        return "as the function says"
    return " or ".join(map(described, [resources] if isinstance(resources, Resources) else resources))
