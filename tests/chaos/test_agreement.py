"""Hundreds of trials whose ranks ask by any pattern, are late, and die: all end, soon, and agreed.

``CHAOS_SEED`` makes other ones, ``CHAOS_TRIALS`` fewer; the same seed makes the same plans.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import os
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
import pytest

import tuner
from storage import Database, commands, reads
from tests.chaos import agreeing
from tests.chaos.observer import details, left_behind
from tests.chaos.programs import until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(3600)]

TRIALS = int(os.environ.get("CHAOS_TRIALS", "300"))
LONGEST = 6.0  # seconds of an attempt: it ends those in which a rank hangs
BOUND = 25.0  # seconds from the first end of a rank to the end of its attempt; 10 are the others' to go

Note = Callable[..., None]
Diary = Sequence[Mapping[str, Any]]


class Coin(optuna.pruners.BasePruner):
    """Says True at random, and the same each time."""

    def prune(self, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> bool:
        return trial.last_step is not None and agreeing.coin(trial.number, trial.last_step)


@contextlib.contextmanager
def stopping(url: str, folder: Path) -> Iterator[None]:
    """Ask one of the trials that have begun to stop, every second."""
    over, chance = threading.Event(), random.Random(agreeing.SEED)

    def stop() -> None:
        database = Database(url, create=False)
        (study,) = reads.studies(database.engine)
        while not over.wait(1.0):
            rows = reads.trials(database.engine, "s", states=("RUNNING",)).rows
            running = [row.number for row in rows if (folder / f"{row.number}-1-0.diary").exists()]
            if running:
                number = chance.choice(running)
                commands.send(database, study.uid, "stop_trial", {"number": number}, "test")
        database.dispose()

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize(("ranks", "n"), [(2, TRIALS * 2 // 3), (3, TRIALS // 3)])
def test_ranks_agree_and_end_whatever_they_ask_and_whoever_dies(
    ranks: int, n: int, tmp_path: Path, sqlite_url: str, monkeypatch: pytest.MonkeyPatch, recovered: Note
) -> None:
    monkeypatch.setenv("TUNER_CHAOS_FOLDER", str(tmp_path))
    study = tuner.create_study("s", storage=sqlite_url, sampler="random", pruner=Coin(), seed=1)
    with stopping(sqlite_url, tmp_path):
        tuner.optimize(
            study,
            f"{agreeing.__file__}:objective",
            n_trials=n,
            resources=tuner.Resources(ranks=ranks, cpus=0.25, gpus=0),
            retry=tuner.Retry(max_failures=3, backoff=0.05, stop_after=0),
            trial_timeout=LONGEST,
            env=("TUNER_CHAOS_*", "CHAOS_SEED"),
            progress=False,
        )
    trials = details(sqlite_url, n)
    assert all(trial.state in ("COMPLETE", "PRUNED", "FAIL") for trial in trials)
    counts: Counter[str] = Counter()
    took: dict[str, list[float]] = defaultdict(list)
    for trial in trials:
        for row in trial.attempt_rows:
            assert row.reason, f"attempt {row.attempt} of trial {trial.number} has no end"
            diaries = _diaries(tmp_path, trial.number, row.attempt, ranks)
            plan = agreeing.plan(trial.number, row.attempt, ranks)
            name = f"{ranks} ranks, {plan.pattern} ask{', one at fault' if _fell(diaries) else ''}"
            seconds = _seconds_to_end(diaries, row)
            assert seconds is None or seconds < BOUND, (trial.number, row, diaries)
            took[name] += [] if seconds is None else [seconds]
            counts[row.reason] += 1
            _check_verdicts(trial, diaries, plan)
            _check_params(trial, diaries)
            _check_reason(row, diaries, plan)
    for name, all_seconds in took.items():
        for seconds in all_seconds:
            recovered(f"agreement: {name}", seconds)
    print(f"{n} trials, {ranks} ranks: {dict(counts)}")
    until(lambda: not left_behind(sqlite_url), 20)


def _diaries(folder: Path, number: int, attempt: int, ranks: int) -> list[Diary]:
    """What each rank wrote; nothing where it was ended before it had begun."""
    paths = [folder / f"{number}-{attempt}-{rank}.diary" for rank in range(ranks)]
    return [
        [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        for path in paths
    ]


def _fell(diaries: Sequence[Diary]) -> bool:
    return any(one["what"] == "fate" for diary in diaries for one in diary)


def _seconds_to_end(diaries: Sequence[Diary], row: Any) -> float | None:
    """From the first end of a rank, or the moment that one was to die at, to the end of the attempt."""
    ends = [
        one["at"]
        for diary in diaries
        for one in diary
        if one["what"] == "end" or (one["what"] == "fate" and one["kind"] not in ("hang", "freeze"))
    ]
    return row.ended_at.replace(tzinfo=dt.UTC).timestamp() - min(ends) if ends else None


def _check_verdicts(trial: Any, diaries: Sequence[Diary], plan: agreeing.Plan) -> None:
    """One for each ordinal, True only where the pruner says so, and the pruner's own for rank 0 alone."""
    for topic in ("prune", "stop"):
        told = [[one["verdict"] for one in diary if one["what"] == topic] for diary in diaries]
        for ordinal in range(max(map(len, told))):
            verdicts = {answers[ordinal] for answers in told if len(answers) > ordinal}
            assert len(verdicts) == 1, f"trial {trial.number}, {topic} {ordinal + 1}: {told}"
    pruner = [agreeing.coin(trial.number, one["step"]) for one in diaries[0] if one["what"] == "prune"]
    mine = [one["verdict"] for one in diaries[0] if one["what"] == "prune"]
    assert all(says for says, verdict in zip(pruner, mine, strict=True) if verdict)
    if plan.pattern == "only 0":
        assert mine == pruner
    if plan.pattern == "only 1":
        assert not any(one["verdict"] for one in diaries[1] if one["what"] == "prune")


def _check_params(trial: Any, diaries: Sequence[Diary]) -> None:
    """What a rank has suggested is what the database has."""
    for diary in diaries:
        for one in diary:
            if one["what"] == "params":
                assert one["params"].items() <= dict(trial.params).items(), (one, trial.params)


def _check_reason(row: Any, diaries: Sequence[Diary], plan: agreeing.Plan) -> None:
    """Whoever is named as lost or at fault met a fate, or left while the others went on."""
    if row.reason in ("rank_lost", "exception"):
        assert _fell(diaries), row
        assert plan.fate is not None
        if plan.fate[2] in ("kill", "exit", "return"):
            assert f"rank {plan.fate[0]} " in row.message, (row, plan)
        elif plan.fate[2] == "raise":
            assert row.message == "ValueError: as planned", (row, plan)
