"""What befalls the ranks of a trial: killed, hung, stopped, gone, their checkpoints torn, their disk full.

Rows 1 to 3, 14, 15, 18, 20, 22 and 37 of the catalogue.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.chaos.history import Record
from tests.chaos.observer import details, events, steps_done, steps_run, trainings
from tests.chaos.programs import Program, until
from tests.chaos.training import AT, EVERY

pytestmark = pytest.mark.chaos

STEPS, PACE = 20, 0.05
Drive = Callable[..., Program]
Note = Callable[..., None]


@pytest.fixture
def drive(train: Callable[..., Program]) -> Drive:
    """Start a driver with two ranks a trial on a local Ray."""

    def drive(name: str, *arguments: str, steps: int = STEPS, **given: Any) -> Program:
        return train(name, "--ranks", "2", "--cpus", "0.5", *arguments, steps=steps, pace=PACE, **given)

    return drive


def recovery(records: list[Record], number: int) -> float:
    """Seconds from the fault of a trial to the next step that its second attempt begins."""
    (fault,) = [one.began for one in records if one.name == "fault" and one.given["number"] == number]
    return (
        min(
            one.began
            for one in records
            if one.name == "step" and (one.given["number"], one.given["attempt"]) == (number, 2)
        )
        - fault
    )


KILLED = {
    0: (0, "kill", "1: kill -9 of rank 0", "rank_lost"),
    1: (1, "kill", "2: kill -9 of rank 1", "rank_lost"),
    2: (1, "exit", "18: os._exit of a rank", "rank_lost"),
    3: (0, "sys.exit", "18: sys.exit of a rank", "rank_lost"),
    4: (1, "segfault", "18: segfault of a rank", "rank_lost"),
    5: (0, "helpers", "1: kill -9 of a rank that had helpers", "rank_lost"),
}
HUNG = {
    0: (1, "stop", "3: SIGSTOP of rank 1", "stalled"),
    1: (0, "hang", "3: a sleep in rank 0, signals ignored", "stalled"),
    2: (1, "gil", "3: rank 1 holds the interpreter", "stalled"),
}


@pytest.mark.fault("1 to 3, 18: ranks that end or hang, all at once")
@pytest.mark.parametrize(("faults", "stall"), [(KILLED, 30), (HUNG, 4)], ids=["killed", "hung"])
def test_a_rank_that_ends_or_hangs_is_answered_with_a_retry_from_its_checkpoint(
    drive: Drive, tmp_path: Path, sqlite_url: str, recovered: Note, faults: dict[int, Any], stall: int
) -> None:
    given = {number: (rank, fault) for number, (rank, fault, _, _) in faults.items()}
    driver = drive("one", "--stall", str(stall), n=len(faults), faults=given)
    assert driver.wait() == 0, driver.errors()
    records = trainings(tmp_path)
    assert sum(one.name == "fault" for one in records) == len(faults), "not every fault has fired"
    run = steps_run(tmp_path)
    for trial in details(sqlite_url, len(faults)):
        _, _, title, reason = faults[trial.number]
        assert trial.state == "COMPLETE"
        assert [row.reason for row in trial.attempt_rows] == [reason, "complete"], trial.attempt_rows
        assert trial.attempt_rows[0].charged
        assert trial.attempt_rows[1].resumed_step == AT - AT % EVERY - 1
        assert [step for step, _ in trial.curve] == list(range(STEPS))
        again = sum(run[trial.number, step] - 1 for step in range(STEPS))
        assert again <= EVERY
        recovered(title, recovery(records, trial.number), again)
        for row in trial.attempt_rows:
            assert not any(_is_alive(rank["pid"]) for rank in row.ranks)
    _never_two_at_once(records)


def _never_two_at_once(records: list[Record]) -> None:
    """Nothing of an attempt happens after the start of the next one, on the same rank."""
    for start in (one for one in records if one.name == "start"):
        who = start.given
        late = [
            one
            for one in records
            if (one.given["number"], one.given["rank"]) == (who["number"], who["rank"])
            and one.given["attempt"] < who["attempt"]
            and max(one.began, one.ended if one.state == "ok" else 0) > start.began
        ]
        assert late == []


def _is_alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def test_a_trial_that_takes_too_long_and_never_reports_is_killed(
    drive: Drive, tmp_path: Path, sqlite_url: str, recovered: Note
) -> None:
    driver = drive(
        *("one", "--timeout", "6", "--failures", "0"),
        n=2,
        steps=10**6,
        faults={0: (0, "hang"), 1: (0, "gil")},
    )
    assert driver.wait() == 0, driver.errors()
    for trial in details(sqlite_url, 2):
        assert (trial.state, [row.reason for row in trial.attempt_rows]) == ("FAIL", ["timeout"])
        row = trial.attempt_rows[0]
        took = (row.ended_at - row.started_at).total_seconds()
        recovered("22: past its time limit, from start to end", took)
        assert took < 6 + 15
        assert row.log_tail is not None


def test_a_torn_checkpoint_is_refused_and_the_one_before_it_used(
    drive: Drive, tmp_path: Path, sqlite_url: str, recovered: Note
) -> None:
    driver = drive("one", n=1, steps=60)
    until(lambda: steps_done(tmp_path, 0) >= 3 * EVERY + 1 or not driver.alive)
    (start,) = [one for one in trainings(tmp_path) if one.name == "start" and one.given["rank"] == 1]
    newest = max(tmp_path.glob("checkpoints/*/0/a1/step-*/rank-1.pt"), key=lambda path: path.stat().st_mtime)
    data = bytearray(newest.read_bytes())
    data[len(data) // 2] ^= 1
    newest.write_bytes(data)
    os.kill(start.given["pid"], signal.SIGKILL)
    assert driver.wait() == 0, driver.errors()
    (trial,) = details(sqlite_url, 1)
    assert "checkpoint_damaged" in events(sqlite_url)
    torn = int(newest.parent.name.removeprefix("step-"))
    first, second = trial.attempt_rows
    assert (first.reason, second.reason) == ("rank_lost", "complete")
    assert second.resumed_step == torn - EVERY or second.resumed_step > torn
    recovered("15: a bit of a checkpoint flipped", None, torn - second.resumed_step)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.fault("14: the disk is full")
def test_a_full_disk_fails_no_trial_and_its_checkpoints_stay_valid(
    drive: Drive, tmp_path: Path, sqlite_url: str, small_disk: Path, recovered: Note
) -> None:
    driver = drive("one", "--failures", "0", "--checkpoints", str(small_disk), n=1, steps=60)
    until(lambda: steps_done(tmp_path, 0) >= 2 * EVERY + 1 or not driver.alive)
    filler = small_disk / "filler"
    subprocess.run(["dd", "if=/dev/zero", f"of={filler}", "bs=64k"], capture_output=True)  # until it is full
    until(lambda: "retry" in events(sqlite_url) or not driver.alive)
    filler.unlink()
    assert driver.wait() == 0, driver.errors()
    (trial,) = details(sqlite_url, 1)
    reasons = [row.reason for row in trial.attempt_rows]
    assert set(reasons[:-1]) == {"checkpoint_not_saved"}
    assert reasons[-1] == "complete"
    assert "No space left on device" in trial.attempt_rows[0].message
    assert not any(row.charged for row in trial.attempt_rows[:-1])
    assert trial.attempt_rows[-1].resumed_step >= EVERY - 1
    run = steps_run(tmp_path)
    recovered("14: the disk is full", None, sum(run[0, step] - 1 for step in range(60)))


def test_when_the_last_worker_dies_the_driver_still_acts(
    drive: Drive, tmp_path: Path, sqlite_url: str, recovered: Note
) -> None:
    driver = drive("one", n=1, steps=60)
    until(lambda: steps_done(tmp_path, 0) >= EVERY + 1 or not driver.alive)
    shells = [
        process
        for process in psutil.process_iter()
        if any("ray::RayShell" in part for part in _command(process))
    ]
    assert shells
    for process in shells:
        process.kill()
    killed = time.monotonic()
    until(lambda: any(one.given["attempt"] == 2 for one in trainings(tmp_path)) or not driver.alive)
    recovered("37: the last worker dies", time.monotonic() - killed)
    assert driver.wait() == 0, driver.errors()
    (trial,) = details(sqlite_url, 1)
    assert [row.reason for row in trial.attempt_rows] == ["node_lost", "complete"]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
