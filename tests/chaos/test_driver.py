"""A driver is killed at every boundary of a study with failures and retries; the next one finishes it.

Faults 5 to 8, 35 and 38 of the catalogue: no orphan, each trial claimed once and run once, failing
and queueing its retry in one transaction, N in all.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy as sa

from tests.chaos.checker import check_rows, check_trials
from tests.chaos.history import read
from tests.chaos.programs import Program, until

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

N = 12
Note = Callable[[str, float], None]


@pytest.fixture
def drive(tmp_path: Path, url: str) -> Iterator[Callable[..., Program]]:
    """Starts a driver on the study of the test, and ends it afterwards."""
    programs: list[Program] = []

    def drive(*arguments: str, n: int = N, **given: Any) -> Program:
        programs.append(Program(tmp_path, url, "--n", str(n), *arguments, module="driver", **given))
        return programs[-1]

    yield drive
    for program in programs:
        program.end()


def finished(url: str) -> dict[int, Any]:
    """What the database says of the finished trials."""
    storage = optuna.storages.RDBStorage(url, skip_table_creation=True)
    try:
        trials = storage.get_all_trials(storage.get_study_id_from_name("s"), deepcopy=False)
        return {
            trial.number: (trial.state, trial.values, trial.params, trial.datetime_complete)
            for trial in trials
            if trial.state.is_finished()
        }
    except (KeyError, sa.exc.DatabaseError):
        return {}
    finally:
        storage.engine.dispose()


def faults_found(url: str, *programs: Program, n: int = N) -> list[str]:
    """What is wrong with a drained study: the checker's words, and attempts that ran twice."""
    found = [*check_trials(url, "s", n=n), *check_rows(url, "s")]
    records = read(sorted({program.history for program in programs if program.history.exists()}))
    runs = Counter((one.given["number"], one.given["attempt"]) for one in records)
    return found + [f"attempt {one} ran {count} times" for one, count in runs.items() if count > 1]


@pytest.mark.parametrize("point", ["begun", "fenced", "written", "committed"])
def test_killed_at_every_boundary(
    url: str, drive: Callable[..., Program], recovered: Note, point: str
) -> None:
    """One driver after the other dies a few transactions further on, until one comes to the end."""
    programs, before, killed = [], {}, 0
    for passage in range(1, 60):
        program = drive(name=f"p{passage}", fault=f"{point}:{2 + 3 * passage % 13}:kill")
        programs.append(program)
        began = time.monotonic()
        code = program.wait()
        after = finished(url)
        assert {number: after.get(number) for number in before} == before, "a finished trial has changed"
        before = after
        if code == 0:
            break
        assert code == -signal.SIGKILL
        killed += 1
        recovered(f"5 to 7, 35: driver killed, {point}: a life", time.monotonic() - began)
    assert killed >= 3, "the fault did not fire"
    assert faults_found(url, *programs) == []
    failed_first = [number for number, one in before.items() if number % 4 == 1]
    assert all(before[number][0].name == "COMPLETE" for number in failed_first)


@pytest.mark.fault("38: N in all, over resumes")
def test_resumed_with_a_larger_budget(url: str, drive: Callable[..., Program]) -> None:
    first = drive(fault="committed:20:kill")
    assert first.wait() == -signal.SIGKILL
    second = drive(name="two", n=N + 5)
    assert second.wait() == 0
    third = drive(name="three", n=N + 5)
    assert third.wait() == 0
    assert not third.history.exists(), "nothing was left to run"
    assert faults_found(url, first, second, n=N + 5) == []


def test_a_driver_of_another_host_that_slept_changes_nothing(
    url: str, drive: Callable[..., Program], recovered: Note
) -> None:
    """It wakes up after another finished the study: nothing it held back is run or written."""
    first = drive("--foreign", n=N + 10, fault="committed:12:stop")
    until(first.is_stopped)
    stopped, lines = time.monotonic(), first.lines_written()
    second = drive(name="two")
    assert [second.line(), second.line(90)] == ["opened", "done"]
    recovered("9: driver stopped elsewhere, lease of 15 s", time.monotonic() - stopped)
    before = finished(url)
    first.signal(signal.SIGCONT)
    assert first.wait() == 3
    assert first.line() == "opened"
    assert first.line().startswith("lost: ")
    assert first.lines_written() <= lines + 2, "it ran more than what it had begun"
    assert finished(url) == before
    assert faults_found(url, first, second) == []


@pytest.mark.fault("16 of the checker: mutant with two transactions")
def test_a_retry_in_two_transactions_is_noticed(url: str, drive: Callable[..., Program]) -> None:
    """The mutant: killed somewhere between failing and queueing, it leaves what the checker sees."""
    for passage in range(2, 40):
        program = drive("--mutant", "apart", name=f"m{passage}", fault=f"committed:{passage}:kill")
        if program.wait() != -signal.SIGKILL:
            break
        if broken_now(url):
            return
    pytest.fail("the checker did not notice")


def broken_now(url: str) -> bool:
    """A trial that runs, or failed, while its attempts say otherwise."""
    engine = sa.create_engine(url)
    try:
        with engine.connect() as connection:
            rows = connection.execute(
                sa.text(
                    "SELECT t.state, sum(CASE WHEN a.state = 'ended' THEN 0 ELSE 1 END) AS open "
                    "FROM trials t JOIN tuner_attempts a ON a.trial_id = t.trial_id "
                    "GROUP BY t.trial_id, t.state"
                )
            ).all()
    finally:
        engine.dispose()
    return any((row.state in ("RUNNING", "WAITING")) != (row.open == 1) for row in rows)
