"""A database that is away: what runs goes on, each record is applied once, by whoever comes back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa
from optuna.trial import TrialState

import tuner
from storage import Database, HeldStudy, Lease, LeaseLost, Unavailable, journal, studies
from storage.fence import Fence
from storage.spill import Spill
from storage.writes import AddEvent, AddReport, EndAttempt, FinishTrial, SetTrialAttr, StartAttempt, Supersede
from tests.test_store import held_study, plain


@pytest.fixture(autouse=True)
def spill_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TUNER_SPILL", str(tmp_path / "spill"))
    monkeypatch.setattr(journal, "PATIENCE", 0.1)
    monkeypatch.setattr(journal, "EVERY", 0.1)
    return tmp_path / "spill"


class Outage:
    """A database that every transaction finds away as long as it lasts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.on = False
        self.lost_replies = 0
        apply, answers = Fence._apply, Database.answers

        def patched(fence: Fence, seq: int, writes: object) -> object:
            if self.on:
                raise sa.exc.OperationalError("BEGIN", {}, Exception("connection refused"))
            results = apply(fence, seq, writes)  # type: ignore[arg-type]
            if self.lost_replies:
                self.lost_replies -= 1
                self.on = True
                raise sa.exc.OperationalError("COMMIT", {}, Exception("connection reset"))
            return results

        monkeypatch.setattr(Fence, "_apply", patched)
        monkeypatch.setattr(Database, "answers", lambda database: not self.on and answers(database))


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> Outage:
    return Outage(monkeypatch)


@pytest.fixture
def held(url: str) -> Iterator[HeldStudy]:
    study = held_study(url)
    study.patience = 0.0
    yield study
    study.end()
    study.lease.release()
    study.lease.database.dispose()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_runs_goes_on_and_is_in_the_database_once_it_is_back(held: HeldStudy, outage: Outage) -> None:
    study = optuna.Study("s", held.storage, sampler=optuna.samplers.RandomSampler(seed=1))
    trial, other = study.ask(), study.ask()
    held.flush()
    outage.on = True
    trial.report(0.5, 0)
    trial.set_user_attr("note", "away")
    study.tell(trial, 0.25)
    other.report(0.75, 3)
    held.flush()
    assert held.away
    assert held.image.trials()[0].values == [0.25]
    assert plain(held).trials[0].state is TrialState.RUNNING
    outage.on = False
    until(lambda: not held.away)
    first, second = plain(held).trials
    assert (first.state, first.values, first.user_attrs) == (TrialState.COMPLETE, [0.25], {"note": "away"})
    assert (first.intermediate_values, second.intermediate_values) == ({0: 0.5}, {3: 0.75})


def test_nothing_new_starts_while_the_database_is_away(held: HeldStudy, outage: Outage) -> None:
    study = optuna.Study("s", held.storage)
    outage.on = True
    with pytest.raises(Unavailable):
        study.ask()
    outage.on = False
    until(lambda: not held.away)
    study.ask()
    held.refresh()
    numbers = [trial.number for trial in plain(held).trials]
    assert numbers == [0, 1]  # the one that waited for the database was made when it came back


def test_who_waits_for_the_database_hears_that_the_study_was_taken_over(
    held: HeldStudy, outage: Outage
) -> None:
    held.patience = 60.0
    study = optuna.Study("s", held.storage)
    outage.on = True
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(study.ask)
        until(lambda: held.away)
        with held.lease.database.write() as connection:
            connection.execute(sa.text("UPDATE tuner_leases SET epoch = epoch + 1"))
        outage.on = False
        with pytest.raises(LeaseLost):
            asked.result(timeout=30)
    assert held.lease.lost


def test_a_caller_may_wait_for_the_database(held: HeldStudy, outage: Outage) -> None:
    held.patience = 20.0
    outage.on = True
    threading.Timer(0.5, lambda: setattr(outage, "on", False)).start()
    assert optuna.Study("s", held.storage).ask().number == 0
    assert len(plain(held).trials) == 1


def test_a_lost_reply_before_an_outage_applies_nothing_twice(held: HeldStudy, outage: Outage) -> None:
    study = optuna.Study("s", held.storage)
    trial = study.ask()
    held.flush()
    outage.lost_replies = 1
    held.flush(AddEvent(study_uid=held.uid, epoch=held.lease.epoch, kind="once"))
    trial.report(1.0, 0)
    held.flush()
    assert held.away
    outage.on = False
    until(lambda: not held.away)
    assert kinds(held.lease.database) == ["once"]
    assert plain(held).trials[0].intermediate_values == {0: 1.0}


def test_a_trial_that_another_program_told_meanwhile_keeps_its_word(held: HeldStudy, outage: Outage) -> None:
    study = optuna.Study("s", held.storage)
    trial = study.ask()
    held.flush()
    outage.on = True
    study.tell(trial, 1.0)
    plain(held).tell(trial.number, 7.0)
    outage.on = False
    until(lambda: not held.away)
    assert plain(held).trials[0].values == [7.0]


def test_nothing_is_left_of_the_spill_once_it_is_replayed(
    held: HeldStudy, outage: Outage, spill_folder: Path
) -> None:
    outage.on = True
    held.flush(AddEvent(study_uid=held.uid, epoch=held.lease.epoch, kind="kept"))
    assert len(list(spill_folder.iterdir())) == 1
    outage.on = False
    until(lambda: not held.away)
    assert list(spill_folder.iterdir()) == []


def test_a_spill_that_cannot_be_written_is_said(held: HeldStudy, outage: Outage, spill_folder: Path) -> None:
    spill_folder.write_text("in the way")
    outage.on = True
    with pytest.raises(Unavailable, match="TUNER_SPILL"):
        held.flush(AddEvent(study_uid=held.uid, epoch=held.lease.epoch, kind="lost"))
    outage.on = False


KILLED = """
import sys, optuna, sqlalchemy as sa
from storage import Database, HeldStudy, Lease, fence, journal, studies
database = Database(sys.argv[1])
record = studies.find(database, "s")
lease = Lease(database, record.uid, study_name="s", run="killed")
lease.acquire()
held = HeldStudy(lease, record, patience=0.0)
study = optuna.Study("s", held.storage)
trial, other = study.ask(), study.ask()
held.flush()
journal.PATIENCE = 0.0
def away(*given):
    raise sa.exc.OperationalError("BEGIN", {}, Exception("connection refused"))
fence.Fence._apply = away
Database.answers = lambda database: False
trial.report(0.5, 0)
study.tell(trial, 0.25)
other.report(0.75, 1)
held.flush()
print("told", flush=True)
sys.stdin.read()
"""


def test_the_successor_on_this_host_replays_what_a_killed_holder_kept(url: str, spill_folder: Path) -> None:
    database = Database(url)
    record = studies.create(database, "s", ["minimize"], seed=1, sampler=None, pruner=None)
    assert record is not None
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "told\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=10)
    assert len(list(spill_folder.iterdir())) == 1
    lease = Lease(database, record.uid, study_name="s", run="next")
    lease.acquire()
    held = HeldStudy(lease, record)
    told, running = held.image.trials()
    assert (told.state, told.values, told.intermediate_values) == (TrialState.COMPLETE, [0.25], {0: 0.5})
    assert (running.state, running.intermediate_values) == (TrialState.RUNNING, {1: 0.75})
    assert list(spill_folder.iterdir()) == []
    held.close()
    lease.release()
    database.dispose()


def test_a_spill_gives_back_what_it_was_given(spill_folder: Path) -> None:
    import datetime as dt

    end = EndAttempt(study_uid="u", trial_id=1, attempt=1, epoch=3, reason="complete", charged=False)
    batch = [
        AddReport(trial_id=1, step=2, value=float("inf")),
        SetTrialAttr(trial_id=1, kind="user", key="k", value_json='{"a": [1, "ü"]}'),
        StartAttempt(study_uid="u", trial_id=1, attempt=1, epoch=3, resumed_step=4),
        Supersede(
            study_uid="u", trial_id=1, attempt=1, after_step=-1, user_attrs={"write": "1"}, system_attrs={}
        ),
        FinishTrial(
            trial_id=1,
            state=TrialState.COMPLETE,
            values=(1.0, 2.0),
            completed=dt.datetime(2026, 1, 2, 3, 4, 5, 6),
            end=end,
        ),
    ]
    spill = Spill("u", 3)
    spill.append(7, batch)
    spill.append(8, batch[:1])
    assert spill.read() == [(7, batch), (8, batch[:1])]
    with spill.path.open("ab") as file:
        file.write(b"0badc0de [9, []")  # a torn line
    assert [seq for seq, _ in spill.read()] == [7, 8]
    newer = Spill("u", 4)
    newer.drop_older()
    assert spill.read() == []


def kinds(database: Database) -> list[str]:
    from storage.tables import events

    with database.read() as connection:
        return list(connection.execute(sa.select(events.c.kind).order_by(events.c.event_id)).scalars())


def test_a_locked_sqlite_file_is_waited_for_without_losing_a_report(sqlite_url: str) -> None:
    held = held_study(sqlite_url, timeout=1.0)
    study = optuna.Study("s", held.storage)
    trial = study.ask()
    other = Database(sqlite_url)
    with contextlib.ExitStack() as stack:
        stack.enter_context(other.write())
        for step in range(100):
            trial.report(float(step), step)
        held.flush()  # kept beside the database
        assert held.away
    until(lambda: not held.away)
    assert len(plain(held).trials[0].intermediate_values) == 100
    other.dispose()
    held.close()
    held.lease.release()


@pytest.mark.parametrize("times", [1, 3])
def test_a_driven_study_outlives_outages(url: str, outage: Outage, times: int) -> None:
    study = tuner.create_study("s", storage=url, sampler="random", seed=1)
    began = iter(range(times))

    def objective(trial: optuna.Trial) -> float:
        for step in range(5):
            trial.report(float(step), step)
        if next(began, None) is not None:
            outage.on = True
            threading.Timer(0.7, lambda: setattr(outage, "on", False)).start()
        return trial.suggest_float("x", 0, 1)

    study = tuner.optimize(study, objective, n_trials=8, executor="inline")
    trials = study.trials
    assert [trial.number for trial in trials] == list(range(8))
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    assert all(len(trial.intermediate_values) == 5 for trial in trials)
    assert all(trial.params["x"] == trial.value for trial in trials)


def test_a_claim_that_was_applied_with_a_lost_reply_is_started(url: str, outage: Outage) -> None:
    study = tuner.create_study("s", storage=url, sampler="random", seed=1)

    def objective(trial: optuna.Trial) -> float:
        if trial.number == 1:
            # the tell of this trial is the first transaction from here, the claim of the next the second
            outage.lost_replies = 2
            threading.Timer(0.7, lambda: setattr(outage, "on", False)).start()
            threading.Timer(1.4, lambda: setattr(outage, "on", False)).start()
        return 1.0

    study = tuner.optimize(study, objective, n_trials=5, executor="inline")
    assert [(trial.number, trial.state) for trial in study.trials] == [
        (number, TrialState.COMPLETE) for number in range(5)
    ]


def test_a_connection_that_the_server_ends_is_opened_again(url: str) -> None:
    if not url.startswith("postgresql"):
        pytest.skip("SQLite has no server")
    held = held_study(url)
    study = optuna.Study("s", held.storage)
    admin = sa.create_engine(url, isolation_level="AUTOCOMMIT")
    for number in range(5):
        trial = study.ask()
        trial.report(0.5, 0)
        with admin.connect() as connection:
            ended = connection.execute(
                sa.text(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            ).scalar_one()
        assert ended >= 1
        study.tell(trial, float(number))
    admin.dispose()
    assert [trial.value for trial in plain(held).trials] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert held.lease.fence.applied
    assert not held.away
    held.close()
    held.lease.release()
    held.lease.database.dispose()
