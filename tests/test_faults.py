"""Killed processes on a real local Ray: what is acknowledged stands, and nothing stays behind."""

from __future__ import annotations

import glob
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import psutil
import pytest
import sqlalchemy as sa

from storage import Database, Unavailable, reads, tables
from storage.views import TrialDetail

OBJECTIVE = '''
"""Two ranks descend together; faults are ordered by the trial's number."""

import ctypes
import os
import signal
import time

import optuna
import torch
import torch.distributed as dist

STEPS = 8


def objective(trial):
    x = trial.suggest_float("x", -1, 1)
    saved = trial.load_checkpoint()
    start = saved.step + 1 if saved else 0
    w = saved.state["w"] if saved else torch.tensor([x])
    print(f"rank {trial.rank} starts at {start}", flush=True)
    if trial.number == 5 and trial.rank == 0 and trial.attempt == 1:  # out of session and mark
        os.system(f"env -i setsid sleep 600 & echo $! > {os.path.dirname(__file__)}/dropped")
    for step in range(start, STEPS):
        part = w.clone()
        dist.all_reduce(part)
        w = w - 0.05 * part
        time.sleep(0.3 if trial.number == 5 else 0.02)  # a training step
        first = trial.attempt == 1 and step == 4
        if first and trial.number == 0 and trial.rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if first and trial.number == 1 and trial.rank == 0:
            ctypes.string_at(0)
        if trial.number == 2 and step == 1 and trial.rank == 0:
            raise ValueError("rank 0 fails while rank 1 waits for it")
        trial.report(float(w) ** 2, step)
        trial.save_checkpoint({"w": w}, step)
        prune = trial.number == 3 and step == 2
        if trial.number == 4 and trial.rank == 0 or trial.number != 4:
            trial.should_prune()
        if prune:
            raise optuna.TrialPruned
    return float(w) ** 2
'''

PLAIN = """
import time


def objective(trial):
    for step in range(3000):  # until it is ended
        time.sleep(0.02)
        trial.report(0.0, step)
    return 0.0
"""

DRIVER = """
import sys

import tuner

if __name__ == "__main__":
    url, file, ranks, n_trials = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:])
    study = tuner.create_study("s", storage=url, seed=1, sampler="random", load_if_exists=True)
    try:
        tuner.optimize(
            study,
            file,
            n_trials=n_trials,
            resources=tuner.Resources(ranks=ranks, cpus=0.5),
            retry=tuner.Retry(backoff=0.1),
            max_concurrent=1,
            progress=False,
        )
    except tuner.TunerError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "faulty.py").write_text(OBJECTIVE)
    (tmp_path / "plain.py").write_text(PLAIN)
    (tmp_path / "drive.py").write_text(DRIVER)
    return tmp_path


class Start(Protocol):
    def __call__(self, n_trials: int, *, plain: bool = False) -> subprocess.Popen[str]: ...


@pytest.fixture
def drive(folder: Path) -> Iterator[Start]:
    """Start a driver as a process; it and all of its kind are ended with the test.

    Where a test is not about what is inside a trial, this is ``plain``: one rank, without torch, that reports
    until it is ended.
    """
    started: list[subprocess.Popen[str]] = []

    def start(n_trials: int, *, plain: bool = False) -> subprocess.Popen[str]:
        objective = ("plain.py", "1") if plain else ("faulty.py", "2")
        process = subprocess.Popen(
            [sys.executable, "drive.py", f"sqlite:///{folder}/tuner.db", *objective, str(n_trials)],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str], timeout: float = 120) -> str:
    output, _ = process.communicate(timeout=timeout)
    return output


def database(folder: Path) -> Database:
    return Database(f"sqlite:///{folder}/tuner.db", create=False)


def trial(folder: Path, number: int) -> TrialDetail:
    found = reads.trial(database(folder).engine, "s", number)
    assert found is not None
    return found


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.05)


def steps_of(folder: Path, number: int) -> int:
    try:
        found = reads.trial(database(folder).engine, "s", number)
    except (Unavailable, sa.exc.OperationalError):
        return 0  # the driver has not made the database yet
    return len(found.curve) if found else 0


def run_mark(folder: Path) -> str:
    """The mark of the newest driver's run, from the lease's owner."""
    (row,) = reads.studies(database(folder).engine)
    assert row.owner is not None
    return str(row.owner["run"])


def is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def marked(run: str) -> list[psutil.Process]:
    """The living processes that carry the mark of a run in their environment."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TUNER_RUN") == run and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def each_fault_inside_a_trial_was_answered_in_its_own_way(folder: Path) -> None:
    killed, segfault, raised, pruned, lone = (trial(folder, number) for number in range(5))
    assert [(row.reason, row.resumed_step) for row in killed.attempt_rows] == [
        ("rank_lost", None),
        ("complete", 3),
    ]
    assert killed.attempt_rows[0].message == "rank 1 was killed by SIGKILL"
    assert "starts at 4" in killed.attempt_rows[1].log_tail or killed.attempt_rows[1].log_tail == ""
    assert [step for step, _ in killed.curve] == list(range(8))
    assert segfault.attempt_rows[0].reason == "rank_lost"
    assert segfault.attempt_rows[0].message == "rank 0 was killed by SIGSEGV"
    assert segfault.state == "COMPLETE"
    assert (raised.state, raised.reason) == ("FAIL", "exception")
    assert "rank 0 fails while rank 1 waits" in raised.attempt_rows[0].traceback
    assert (pruned.state, pruned.last_step) == ("PRUNED", 2)
    assert lone.state == "COMPLETE"
    ranks = killed.attempt_rows[0].ranks
    assert [rank["rank"] for rank in ranks] == [0, 1]
    assert not any(is_alive(rank["pid"]) for row in killed.attempt_rows for rank in row.ranks)


@pytest.mark.fault("14 of the checker: a driver of a local Ray killed")
def test_faults_inside_trials_are_answered_and_a_killed_driver_loses_nothing_and_leaves_nothing(
    folder: Path, drive: Start
) -> None:
    first = drive(7)
    wait_for(lambda: steps_of(folder, 5) >= 2 or first.poll() is not None, 90, "reports of trial 5")
    assert first.poll() is None, finish(first)
    each_fault_inside_a_trial_was_answered_in_its_own_way(folder)
    before = {row.number: row for row in reads.trials(database(folder).engine, "s").rows}
    run = run_mark(folder)
    assert marked(run)
    session = {rank["pid"] for row in trial(folder, 5).attempt_rows for rank in row.ranks}
    session.add(int((folder / "dropped").read_text()))
    first.kill()
    first.wait()
    wait_for(lambda: not marked(run), 5, "the end of every process of the killed run")
    wait_for(lambda: not any(is_alive(pid) for pid in session), 5, "the end of its ranks")

    second = drive(7)
    output = finish(second)
    assert second.returncode == 0, output
    rows = {row.number: row for row in reads.trials(database(folder).engine, "s").rows}
    assert sorted(rows) == list(range(7))
    assert {row.state for row in rows.values()} <= {"COMPLETE", "PRUNED", "FAIL"}
    for number, row in before.items():
        if row.state != "RUNNING":
            assert rows[number] == row, "a finished trial was run again"
    interrupted = trial(folder, 5)
    assert [row.reason for row in interrupted.attempt_rows] == ["driver_lost", "complete"]
    assert interrupted.attempt_rows[1].resumed_step is not None, "it started from nothing"
    assert [step for step, _ in interrupted.curve] == list(range(8))
    with database(folder).read() as connection:
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        open_attempts = sa.select(tables.attempts).where(tables.attempts.c.state != "ended")
        assert connection.execute(open_attempts).all() == []


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.chaos), signal.SIGTERM])
@pytest.mark.fault("24: a signal while Ray starts")
def test_a_driver_that_is_ended_while_ray_starts_leaves_nothing(
    folder: Path, drive: Start, number: signal.Signals
) -> None:
    driver = drive(50, plain=True)
    session = f"{os.environ.get('RAY_TMPDIR', '/tmp')}/ray/session_*_{driver.pid}"
    wait_for(lambda: glob.glob(session) or driver.poll() is not None, 90, "the session of a local Ray")
    run = run_mark(folder)
    driver.send_signal(number)
    output = finish(driver, timeout=60)
    assert driver.returncode == 130, output
    wait_for(lambda: not marked(run), 5, "the end of every process of the run")
    assert glob.glob(session) == []
    (row,) = reads.studies(database(folder).engine)
    assert row.owner is None


def test_a_shell_that_is_killed_is_in_our_own_words_and_in_none_of_rays(folder: Path, drive: Start) -> None:
    driver = drive(50, plain=True)
    wait_for(lambda: steps_of(folder, 0) >= 1 or driver.poll() is not None, 90, "a report of trial 0")
    (shell,) = [process for process in marked(run_mark(folder)) if process.name() == "ray::RayShell"]
    shell.kill()
    wait_for(lambda: trial(folder, 0).attempt_rows[0].state == "ended", 60, "the end of its attempt")
    driver.send_signal(signal.SIGINT)
    output = finish(driver, timeout=60)
    assert driver.returncode == 130, output
    assert trial(folder, 0).attempt_rows[0].message == "rank 0 is lost: its shell died"
    assert "raylet" not in output


@pytest.mark.parametrize("server", [pytest.param("gcs_server", marks=pytest.mark.chaos), "raylet"])
@pytest.mark.fault("32: the local Ray killed")
def test_a_driver_whose_local_ray_is_killed_ends_in_one_line_and_all_goes_on_later(
    folder: Path, drive: Start, server: str
) -> None:
    driver = drive(50, plain=True)
    wait_for(lambda: steps_of(folder, 0) >= 1 or driver.poll() is not None, 90, "a report of trial 0")
    run = run_mark(folder)
    (found,) = [process for process in marked(run) if process.name() == server]
    found.kill()
    output = finish(driver, timeout=45)
    assert driver.returncode == 2, output
    assert "the local Ray was killed; what ran goes on when the study is resumed" in output
    wait_for(lambda: not marked(run), 5, "the end of every process of the run")
    running = [row for row in reads.trials(database(folder).engine, "s").rows if row.state == "RUNNING"]
    # Trial 0, or one after it where this machine was slow to kill; and one that began while its retry waited.
    assert 1 <= len(running) <= 2
    lost = 0
    for row in running:
        *before, last = trial(folder, row.number).attempt_rows
        assert last.state == "claimed"
        assert {attempt.state for attempt in before} <= {"ended"}
        assert {attempt.reason for attempt in before} <= {"node_lost", "rank_lost"}
        lost += len(before)
    assert lost


@pytest.mark.fault("24: SIGTERM, with a second driver meanwhile")
def test_a_terminated_driver_lets_go_and_a_second_driver_is_refused_meanwhile(
    folder: Path, drive: Start
) -> None:
    first = drive(50, plain=True)
    wait_for(lambda: steps_of(folder, 0) >= 1 or first.poll() is not None, 90, "a report of trial 0")
    run = run_mark(folder)
    second = drive(50, plain=True)
    output = finish(second)
    assert second.returncode == 3, output
    assert "is held by a live driver" in output
    os.killpg(first.pid, signal.SIGTERM)  # its whole process group, as timeout(1) and service managers do
    output = finish(first, timeout=30)
    assert first.returncode == 130, output
    wait_for(lambda: not marked(run), 5, "the end of every process of the run")
    (row,) = reads.studies(database(folder).engine)
    assert row.owner is None
    assert row.stop_reason == "interrupted by SIGTERM"
    assert not os.path.exists(f"/proc/{first.pid}")
