"""The public entry: drive a study on a cluster until its budget is spent."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import json
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna

from storage import Database, HeldStudy, Lease, StudyRecord, reads, studies
from storage.writes import SetStudyRow
from tuner import credentials, notebook, provenance, samplers, store
from tuner import objective as objectives
from tuner.alerts import Alerts, Webhook, webhook
from tuner.assignment import ObjectiveRef
from tuner.dispatch import ahead
from tuner.dispatch.base import Executor
from tuner.driver import Driver
from tuner.errors import BadInput
from tuner.exporters.live_export import Live
from tuner.job import Callback, Job
from tuner.recipe import Recipe
from tuner.resources import Resources, ResourcesSpec
from tuner.retry import Retry
from tuner.runtime_env import checked, importable, keeping_out
from tuner.settings import Settings
from tuner.snapshot import Progress
from tuner.studies import PrunerSpec, SamplerSpec, database_of, new_seed, unknown
from tuner.study import DrivenStudy, Space, check_space

if TYPE_CHECKING:
    from tuner.metrics import Endpoint

__all__ = ["optimize", "resume"]

log = logging.getLogger(__name__)

Objective = Callable[[Any], Any] | Recipe


def optimize(
    study: optuna.Study,
    objective: Objective | str,
    n_trials: int | None = None,
    timeout: float | None = None,
    n_jobs: int | None = None,
    catch: Iterable[type[Exception]] | type[Exception] = (),
    callbacks: Sequence[Callback] | None = None,
    gc_after_trial: bool = False,
    show_progress_bar: bool | None = None,
    *,
    space: Space = None,
    resources: ResourcesSpec | None = None,
    max_concurrent: int | None = None,
    retry: Retry | None = None,
    trial_timeout: float | None = None,
    stall_timeout: float | None = None,
    resource_timeout: float | None = 3600.0,
    checkpoints: str | os.PathLike[str] | None = None,
    address: str | None = None,
    executor: str = "ray",
    isolation: str = "attempt",
    env: Sequence[str] = (),
    runtime_env: Mapping[str, Any] | None = None,
    progress: bool | Progress | None = None,
    alerts: Sequence[str] = (),
    metrics_port: int | Endpoint | None = None,
    metrics_host: str = "127.0.0.1",
) -> optuna.Study:
    """Run trials of ``study`` on a Ray cluster until its budget is spent, and return the study.

    Args:
        study: of :func:`tuner.create_study`, or a plain ``optuna.Study`` on SQLite or PostgreSQL.
        objective: an Optuna objective, unchanged; or ``"FILE.py:NAME"``, ``"package.module:NAME"``, or a
            :class:`tuner.Recipe`.
        n_trials: finished trials of the study as a whole, so that running a script again resumes
            it. None: until ``timeout`` or ``stop()``.
        timeout: seconds; then nothing new starts and running trials finish.
        n_jobs: alias of ``max_concurrent``; -1 means the default, as many as the cluster holds.
        catch, gc_after_trial: accepted for Optuna's sake; an exception fails its trial and never
            the study (unless ``retry.stop_after`` identical ones follow each other), and each
            attempt is a process of its own.
        callbacks: called in the driver with (study, trial) after the commit of a terminal state; one of
            :func:`tuner.exporters.live` takes the study to another program while it runs.
        space: distributions by name, or a function of the trial; evaluated in the driver. Default: the
            objective's own ``space``, where it has such distributions.
        resources: per rank; see :class:`tuner.Resources`. A list of them, in order of preference: a
            trial is given the first that is free (``[Resources(gpus=1), Resources(cpus=4, gpus=0)]``).
            Or a function of the trial's parameters (a dict) that returns either: it knows those that
            are drawn before the trial starts, which with ``space`` are all.
        retry: see :class:`tuner.Retry`.
        trial_timeout: seconds of wall clock that an attempt may take.
        stall_timeout: seconds that an attempt may be silent (no report, no question).
        resource_timeout: seconds that trials may wait for their resources while none of ours runs:
            then the run ends, and says for what; None waits for ever.
        checkpoints: fsspec URI or folder; default: beside a SQLite file. Several nodes need a shared one.
        address: of a Ray cluster; default ``$RAY_ADDRESS``, else a local one, started and ended here.
        executor: ``"ray"``, or ``"inline"``: one trial at a time in this process, for debugging.
        isolation: ``"attempt"``: a fresh process for each. ``"shared"``: one that ended well is kept for
            the next trial, and put back to what it was; see :mod:`tuner.slate`.
        env: names or patterns of environment variables that workers get; values are never stored.
        runtime_env: what goes to nodes that do not have it: ``working_dir``, ``py_modules``, ``pip``,
            ``excludes``, as in Ray; see :func:`tuner.runtime_env.checked`. Default: nothing; nodes then find
            the objective under the same path, on a disk that they share or in an image.
        progress: True, False, a display of your own, or None: on when the output is a terminal or a
            notebook.
        alerts: addresses of webhooks, which are not stored; see :mod:`tuner.alerts`.
        metrics_port: serve Prometheus metrics of this run there; 0: at a port that is free; or a
            :class:`tuner.metrics.Endpoint` that listens already, and stays open. Not stored.
        metrics_host: address to serve them on.

    Raises:
        BadInput, BadObjective, Infeasible: found before anything was written.
        StudyHeld: another live driver holds the study.
        StudyStopped: the study stopped on repeated failures.
        KeyboardInterrupt: SIGINT, SIGTERM or SIGHUP; call again to resume.

    Example:
        >>> def objective(trial):
        ...     return (trial.suggest_float("x", -10, 10) - 2) ** 2
        >>> study = tuner.create_study("square", storage="sqlite:///tuner.db", seed=1)
        >>> study = tuner.optimize(study, objective, n_trials=3, executor="inline")  # "ray" is the default
        >>> len(study.trials)
        3
    """
    del catch, gc_after_trial
    objectives.refuse_while_importing()
    if n_jobs is not None and n_jobs != -1 and max_concurrent is None:
        max_concurrent = n_jobs
    runtime_env = checked(runtime_env)
    importable(runtime_env)
    reference = objectives.refer(objective)
    space = check_space(space) or objectives.space_of(objective, reference)
    _check_direction(objective, reference, study)
    settings = Settings(
        n_trials=n_trials,
        timeout=timeout,
        space=None if callable(space) else space,
        space_is_function=callable(space),
        resources=resources or Resources(),
        max_concurrent=max_concurrent,
        retry=retry or Retry(),
        trial_timeout=trial_timeout,
        stall_timeout=stall_timeout,
        resource_timeout=resource_timeout,
        checkpoints=None if checkpoints is None else os.fspath(checkpoints),
        address=address,
        executor=executor,
        isolation=isolation,
        env=tuple(env),
        runtime_env=runtime_env,
    )
    request = _Request(
        objective=objective,
        reference=reference,
        settings=settings,
        space=space,
        callbacks=tuple(callbacks or ()),
        progress=progress if progress is not None else show_progress_bar,
        webhooks=_webhooks(alerts),
    )
    database = database_of(study)
    with _serving(metrics_host, metrics_port) as endpoint:
        with store.errors():
            record = studies.register(
                database,
                study.study_name,
                seed=new_seed(study.sampler),
                sampler=samplers.text_of(study.sampler),
                pruner=samplers.text_of(study.pruner),
            )
        _drive(database, record, study, request, endpoint)
    return study


def resume(
    study_name: str,
    *,
    storage: str | None = None,
    objective: Objective | str | None = None,
    sampler: SamplerSpec = None,
    pruner: PrunerSpec = None,
    space: Space = None,
    callbacks: Sequence[Callback] = (),
    progress: bool | Progress | None = None,
    alerts: Sequence[str] = (),
    metrics_port: int | Endpoint | None = None,
    metrics_host: str = "127.0.0.1",
    **changes: Any,
) -> optuna.Study:
    """Go on with a study; its settings come from the store.

    Args:
        study_name: of a study that ``optimize`` or ``tuner run`` has driven before.
        storage: database URL; default ``$TUNER_STORAGE``, else that of ``tuner.toml`` (:mod:`tuner.config`),
            else ``sqlite:///tuner.db``.
        objective, sampler, pruner, space: asked for by name where they could not be kept as plain
            data (a lambda, an object of Optuna's, a function); otherwise they replace what is kept.
        callbacks, progress, alerts, metrics_port, metrics_host: as for :func:`tuner.optimize`.
        changes: any other keyword of :func:`tuner.optimize`, such as ``n_trials=200``.

    Raises:
        StudyNotFound: there is none of that name.
        BadInput: something that could not be kept is missing: the message names it.

    Example:
        >>> def objective(trial):
        ...     return trial.suggest_float("x", 0, 1)
        >>> study = tuner.create_study("more", storage="sqlite:///tuner.db")
        >>> study = tuner.optimize(study, objective, n_trials=2, executor="inline")
        >>> study = tuner.resume("more", storage="sqlite:///tuner.db", objective=objective, n_trials=5)
        >>> len(study.trials)
        5
    """
    database = store.open_database(storage)
    with store.errors():
        record = studies.find(database, study_name)
    if record is None:
        raise unknown(database, study_name)
    if record.seed is None or not record.settings:
        raise BadInput(
            f"study {study_name!r} was never run by Tuner; start it with 'tuner run' or tuner.optimize"
        )
    settings = Settings.from_mapping({**record.settings, **_checked(changes)})
    if objective is None and record.objective is None:
        raise BadInput(
            f"the objective of study {study_name!r} came from a notebook, a lambda or a closure, and is not "
            "stored: define it again (run its cell) and pass objective=..., or write it to a file and run "
            f"'tuner resume {study_name} --objective FILE.py:NAME'"
        )
    for given, kept, kind in ((sampler, record.sampler, "sampler"), (pruner, record.pruner, "pruner")):
        if given is None and kept is None:
            raise BadInput(
                f"the {kind} of study {study_name!r} was an object and is not stored; pass {kind}=..."
            )
    if space is None and settings.space_is_function:
        raise BadInput(f"the space of study {study_name!r} was a function and is not stored; pass space=...")
    importable(settings.runtime_env)
    reference = (
        objectives.refer(objective)
        if objective is not None
        else objectives.from_json(json.dumps(record.objective))
    )
    own = objectives.space_of(objective, reference) if objective is not None and space is None else None
    if own is not None:
        settings = dataclasses.replace(settings, space=own, space_is_function=False)
    study = optuna.load_study(
        study_name=study_name,
        storage=database.optuna_storage(),
        sampler=samplers.sampler(sampler or record.sampler, record.seed, len(record.directions)),
        pruner=samplers.pruner(pruner or record.pruner),
    )
    request = _Request(
        objective=objective,
        reference=reference,
        settings=settings,
        space=check_space(space) if space is not None else settings.space,
        callbacks=tuple(callbacks),
        progress=progress,
        webhooks=_webhooks(alerts),
    )
    with _serving(metrics_host, metrics_port) as endpoint:
        _drive(database, record, study, request, endpoint)
    return study


@dataclass(frozen=True, kw_only=True)
class _Request:
    """What is asked of a run, checked; ``objective`` as it was given, for the inline executor."""

    objective: Objective | str | None
    reference: ObjectiveRef
    settings: Settings
    space: Space
    callbacks: tuple[Callback, ...]
    progress: bool | Progress | None
    webhooks: tuple[Webhook, ...] = ()


def _check_direction(objective: Objective | str, reference: ObjectiveRef, study: optuna.Study) -> None:
    """A study that goes the other way than its objective would look for the worst."""
    own = objectives.direction_of(objective, reference)
    ways = [way.name.lower() for way in study.directions]
    if own is not None and ways != [own]:
        raise BadInput(
            f"the objective is to {own}, but study {study.study_name!r} is to {' and to '.join(ways)}; "
            f"create it with direction={own!r}"
        )


def _webhooks(alerts: Sequence[str] | str) -> tuple[Webhook, ...]:
    return tuple(webhook(url) for url in ([alerts] if isinstance(alerts, str) else alerts))


@contextlib.contextmanager
def _serving(host: str, port: int | Endpoint | None) -> Iterator[Endpoint | None]:
    """Metrics for the length of a run; an endpoint that was given is its owner's to close.

    Raises:
        BadInput: the port is taken.
    """
    if port is None:
        yield None
        return
    from tuner.metrics import Endpoint

    endpoint = port if isinstance(port, Endpoint) else Endpoint(host, port)
    log.info("metrics at %s", endpoint.url, extra={"event": "metrics", "detail": {"url": endpoint.url}})
    try:
        yield endpoint
    finally:
        if endpoint is not port:
            endpoint.close()


def _checked(changes: Mapping[str, Any]) -> dict[str, Any]:
    known = set(Settings.__dataclass_fields__) - {"space", "space_is_function"}
    for name in changes:
        if name not in known:
            raise BadInput(f"resume has no setting {name!r}; it has: {', '.join(sorted(known))}")
    plain = dict(changes)
    if isinstance(plain.get("retry"), Retry):
        plain["retry"] = json.loads(plain["retry"].to_json())
    return plain


def _drive(
    database: Database,
    record: StudyRecord,
    study: optuna.Study,
    request: _Request,
    endpoint: Endpoint | None = None,
) -> None:
    """Take the lease, drive, and let go."""
    run = ahead.mark()
    settings = request.settings
    root = store.checkpoint_root(database.text, settings.checkpoints)
    store.check_kept(root, "checkpoints in", "name a folder or URI elsewhere with checkpoints=...")
    executor = make_executor(
        settings,
        request.objective,
        preload=request.reference.preload,
        ours=[os.path.realpath(path) for path in (*store.files(database), root)],
    )
    exports = [callback for callback in request.callbacks if isinstance(callback, Live)]
    with store.errors():
        lease = Lease(database, record.uid, study_name=record.name, run=run)
        lease.acquire()
        held = None
        try:
            held = HeldStudy(lease, record, patience=0.0)
            samplers.settle(study.pruner, record.pruner)
            driven = DrivenStudy(held, study.sampler, study.pruner)
            _keep(driven, record, request)
            job = Job(
                run=run,
                objective=request.reference,
                settings=settings,
                space=request.space,
                environment=environment(settings.env),
                checkpoints=root,
                provenance=provenance.collect(request.reference, sys.argv, driven.seed),
                callbacks=request.callbacks,
                alerts=Alerts(request.webhooks, record.name),
                publish=None if endpoint is None else endpoint.publish,
            )
            for export in exports:
                export.begin(database.text, record.name)
            # a stop() on the user's own study object counts too, from callbacks that close over it
            study._thread_local.in_optimize_loop = True
            study._stop_flag = False
            display = make_progress(request.progress)
            if display is not None and settings.executor == "ray":
                from tuner.progress import TerminalProgress

                if isinstance(display, TerminalProgress):  # nothing else comes for some seconds
                    display.wait(f"{record.name}: waiting for Ray")
            Driver(driven, executor, job, display, lambda: bool(study._stop_flag)).run()
        finally:
            study._thread_local.in_optimize_loop = False
            if held is not None:
                held.end()
            lease.release()
            for export in exports:
                export.close()
            database.dispose()


def _keep(driven: DrivenStudy, record: StudyRecord, request: _Request) -> None:
    """Queue what ``resume`` needs; committed once the executor is open, so that nothing is
    written for a run that cannot begin.
    """
    reference = request.reference
    kept = None if reference.pickled else objectives.to_json(reference)
    before = _digest_before(driven, record)
    if before and reference.digest and before != reference.digest:
        driven.event("objective_changed", {"was": before, "is": reference.digest})
        if reference.file:  # the digest is of the whole file: another n_trials in a script changes it too
            log.warning("%s has changed since study %r last ran", reference.file, record.name)
        else:
            log.warning("the objective of study %r has changed since it last ran", record.name)
    columns = {
        "objective": kept,
        "settings": request.settings.to_json(),
        "sampler": samplers.text_of(driven.sampler),
        "pruner": samplers.text_of(driven.pruner),
    }
    driven.held.queue(SetStudyRow(study_uid=record.uid, columns=columns))


def _digest_before(driven: DrivenStudy, record: StudyRecord) -> str | None:
    """Digest of the objective that last ran; of one that was sent by value its newest attempt has it."""
    if record.objective is not None or not record.settings:
        return (record.objective or {}).get("digest")
    found = reads.study(driven.held.lease.database.engine, record.name)
    return str(found.provenance.get("objective_digest") or "") if found is not None else None


def make_executor(
    settings: Settings,
    objective: Objective | str | None = None,
    *,
    preload: Sequence[str] = (),
    ours: Sequence[str] = (),
) -> Executor:
    """The executor that the settings name; Ray is imported only when it is used.

    Args:
        objective: the function itself, which the inline executor calls.
        preload: of the objective.
        ours: files and folders that a run writes itself, and does not send to workers.
    """
    if settings.executor == "inline":
        from tuner.dispatch.inline import InlineExecutor

        return InlineExecutor(objective if callable(objective) else None)
    from tuner.dispatch.ray_cluster import RayExecutor

    sent = keeping_out(settings.runtime_env, ours)
    return RayExecutor(address=settings.address, runtime_env=sent, preload=preload, at_once=settings.at_once)


def make_progress(given: bool | Progress | None) -> Progress | None:
    """The display: on for None when the output is a terminal or a notebook."""
    if given is None:
        given = sys.stderr.isatty() or notebook.is_here()
    if isinstance(given, bool):
        if not given:
            return None
        if notebook.is_here():
            return notebook.NotebookProgress()
        from tuner.progress import TerminalProgress

        return TerminalProgress()
    return given


def environment(patterns: Sequence[str]) -> dict[str, str]:
    """The variables of this process whose names match, for the ranks; never the driver's own passwords."""
    return {
        name: value
        for name, value in credentials.without(os.environ).items()
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }
