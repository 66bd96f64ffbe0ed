"""The promises to a training, checked over what its ranks and drivers said and the database that is left.

The numbers are those of the catalogue's checker. Records are those of :mod:`tests.chaos.training` and of
:mod:`tests.chaos.ray_driver` (``told``: a callback after the commit of a terminal state).
"""

from __future__ import annotations

import itertools
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.trial import FrozenTrial, TrialState

from storage import Database, reads
from tests.chaos.checker import check_rows, check_trials
from tests.chaos.history import Record

__all__ = ["check_run", "steps_run_again"]


def check_run(
    trained: Sequence[Record],
    told: Sequence[Record],
    url: str,
    *,
    n: int,
    steps: int,
    max_failures: int,
    pruner: optuna.pruners.BasePruner | None = None,
) -> list[str]:
    """The violated promises, one line each."""
    database = Database(url, create=False)
    try:
        details: list[Any] = [reads.trial(database.engine, "s", number) for number in range(n)]
        study = optuna.load_study(study_name="s", storage=database.optuna_storage())
        trials = study.get_trials(deepcopy=False)
        best = study.best_trial if any(trial.state is TrialState.COMPLETE for trial in trials) else None
        shown = {row.name: row.best for row in reads.studies(database.engine)}["s"]
    finally:
        database.dispose()
    return [
        *check_trials(url, "s", n=n),
        *check_rows(url, "s"),
        *_tellings(told, trials),
        *_attempts(trained, details, max_failures),
        *_lives(trained),
        *_resumes(trained),
        *_series(details, steps),
        *_best(trials, best, shown),
        *(_verdicts(url, trials, pruner) if pruner is not None else ()),
    ]


def steps_run_again(trained: Sequence[Record]) -> int:
    """Steps that rank 0 began although an earlier attempt had ended them."""
    seen: dict[tuple[int, int], int] = defaultdict(int)
    for one in trained:
        if one.name == "step" and one.given["rank"] == 0:
            seen[one.given["number"], one.given["step"]] += 1
    return sum(count - 1 for count in seen.values())


def _tellings(told: Sequence[Record], trials: Sequence[FrozenTrial]) -> Iterator[str]:
    """2, 3: what a callback saw committed is what the database has."""
    by_number = {trial.number: trial for trial in trials}
    for one in told:
        number = one.given["number"]
        trial = by_number.get(number)
        if trial is None:
            yield f"trial {number} was told and is not there"
            continue
        word = (trial.state.name, trial.values[0] if trial.values else None)
        if word != (one.given["state"], one.given["value"]):
            yield f"trial {number} was told as {one.given}, the database says {word}"


def _attempts(trained: Sequence[Record], details: Sequence[Any], max_failures: int) -> Iterator[str]:
    """4, 7, 11, 13: attempts increase, and few are charged; parameters stay; each end has a reason."""
    starts: dict[int, list[Record]] = defaultdict(list)
    for one in trained:
        if one.name == "start" and one.given["rank"] == 0:
            starts[one.given["number"]].append(one)
    for number, begun in starts.items():
        attempts = [one.given["attempt"] for one in begun]
        if attempts != sorted(set(attempts)):
            yield f"trial {number} began the attempts {attempts}"
        if len({one.given["x"] for one in begun}) > 1:
            yield f"trial {number} had other parameters in another attempt"
    for trial in details:
        if trial is None:
            yield "a trial is missing"
            continue
        charged = sum(bool(row.charged) for row in trial.attempt_rows)
        if charged > 1 + max_failures:
            yield f"trial {trial.number} has {charged} charged attempts"
        if sum(row.reason == "complete" for row in trial.attempt_rows) > 1:
            yield f"trial {trial.number} completed twice"
        for row in trial.attempt_rows:
            if not row.reason:
                yield f"attempt {row.attempt} of trial {trial.number} has no reason"


def _lives(trained: Sequence[Record]) -> Iterator[str]:
    """5: of one rank of a trial one process lives at a time."""
    spans: dict[tuple[int, int], dict[int, list[float]]] = defaultdict(dict)
    for one in trained:
        key = (one.given["number"], one.given["rank"])
        moments = [one.began, *([one.ended] if one.state == "ok" else [])]
        span = spans[key].setdefault(one.given["attempt"], [moments[0], moments[-1]])
        span[0], span[1] = min(span[0], *moments), max(span[1], *moments)
    for (number, rank), attempts in spans.items():
        for (first, before), (second, after) in itertools.pairwise(sorted(attempts.items())):
            if before[1] > after[0]:
                yield f"attempts {first} and {second} of trial {number}, rank {rank}, lived at once"


def _resumes(trained: Sequence[Record]) -> Iterator[str]:
    """10: an attempt starts at the last acknowledged checkpoint or later: one that every rank has saved."""
    ranks = {one.given["rank"] for one in trained}
    saved: dict[tuple[int, int, int], set[int]] = defaultdict(set)
    for one in trained:
        if one.name == "save" and one.state == "ok":
            who = one.given
            saved[who["number"], who["attempt"], who["step"]].add(who["rank"])
    whole: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for (number, attempt, step), by in saved.items():
        if by == ranks:
            whole[number].append((attempt, step))
    for one in trained:
        if one.name == "start":
            who = one.given
            before = [step for attempt, step in whole[who["number"]] if attempt < who["attempt"]]
            known = max(before, default=-1)
            if who["first"] <= known:
                name = f"attempt {who['attempt']} of trial {who['number']}, rank {who['rank']}"
                yield f"{name}, began at {who['first']}, not at {known + 1}"


def _series(details: Sequence[Any], steps: int) -> Iterator[str]:
    """9: the effective series has each step once, without gaps, to the trial's end."""
    for trial in details:
        if trial is None:
            continue
        found = [step for step, _ in trial.curve]
        wanted = list(range(steps if trial.state == "COMPLETE" else len(found)))
        if trial.state in ("COMPLETE", "PRUNED") and found != wanted:
            yield f"trial {trial.number}, {trial.state}, has the steps {found}"


def _best(trials: Sequence[FrozenTrial], best: FrozenTrial | None, shown: float | None) -> Iterator[str]:
    """6: the best is the best, for Optuna and on the pages."""
    values = [trial.values[0] for trial in trials if trial.state is TrialState.COMPLETE]
    wanted = min(values, default=None)
    if (best.values[0] if best else None) != wanted or shown != wanted:
        yield f"the best is {wanted}, Optuna says {best and best.values}, the pages {shown}"


def _verdicts(url: str, trials: Sequence[FrozenTrial], pruner: optuna.pruners.BasePruner) -> Iterator[str]:
    """12: each True verdict follows from what its event recorded."""
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect() as connection:
        query = sa.text("SELECT kind, trial_id, detail FROM tuner_events ORDER BY event_id")
        rows = connection.execute(query).all()
    engine.dispose()
    by_id = {trial._trial_id: trial for trial in trials}
    complete: list[FrozenTrial] = []
    for row in rows:
        detail = json.loads(row.detail)
        if row.kind == "finished" and detail["state"] == "COMPLETE":
            complete.append(by_id[row.trial_id])
        elif row.kind == "should_prune":
            trial = by_id[row.trial_id]
            kept = dict(sorted(trial.intermediate_values.items())[: detail["seq"]])
            replayed = optuna.create_study(pruner=pruner)
            replayed.add_trials(complete)
            asked = optuna.trial.create_trial(state=TrialState.RUNNING, intermediate_values=kept)
            if not pruner.prune(replayed, asked):
                yield f"the verdict on trial {trial.number} at {detail} cannot be replayed"
