"""The lease of a study: one driver at a time, by counters, and a fence that a sleeper cannot pass."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from storage import Database, Held, Lease, LeaseLost, Unavailable, studies, tables
from storage.writes import AddEvent

HOLDER = """
    import sys, time
    from storage import Database, Lease, LeaseLost, studies
    from storage.writes import AddEvent

    database = Database(sys.argv[1])
    record = studies.find(database, "s")
    lease = Lease(database, record.uid, study_name="s", run="other", duration=float(sys.argv[2]))
    lease.acquire()
    print("held", flush=True)
    for line in sys.stdin:
        try:
            lease.fence.commit([AddEvent(study_uid=record.uid, epoch=lease.epoch, kind=line.strip())])
            print("committed", flush=True)
        except LeaseLost as error:
            print("lost", flush=True)
"""


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    found = Database(url)
    studies.create(found, "s", ["minimize"], seed=1, sampler=None, pruner=None)
    yield found
    found.dispose()


def lease_on(database: Database, duration: float = 15.0) -> Lease:
    record = studies.find(database, "s")
    assert record is not None
    return Lease(database, record.uid, study_name="s", run="test", duration=duration)


@pytest.fixture
def holder(database: Database) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lease and commits an event for each line of its input."""
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLDER), database.text, "1.5"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def events(database: Database) -> list[str]:
    with database.read() as connection:
        query = sa.select(tables.events.c.kind).order_by(tables.events.c.event_id)
        return list(connection.execute(query).scalars())


def test_a_live_holder_is_not_taken_over(database: Database, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(Held, match=f"process {holder.pid} on") as held:
        lease_on(database).acquire()
    url = str(database).replace(":***@", "@")  # where its password is kept the command finds it
    assert shlex.split(str(held.value).partition("end it with: ")[2]) == [
        "tuner",
        "stop",
        "s",
        "--storage",
        url,
    ]


def test_a_killed_holder_is_taken_over_at_once(database: Database, holder: subprocess.Popen[str]) -> None:
    holder.kill()
    holder.wait()
    lease = lease_on(database, duration=3600)
    lease.acquire()
    assert lease.epoch == 2
    assert lease.previous_owner is not None
    assert lease.previous_owner["run"] == "other"
    lease.release()


def test_a_stopped_holder_is_ended_before_it_is_taken_over(
    database: Database, holder: subprocess.Popen[str]
) -> None:
    os.kill(holder.pid, signal.SIGSTOP)
    lease = lease_on(database, duration=1.5)
    lease.acquire()
    assert holder.wait(timeout=10) == -signal.SIGKILL
    lease.release()


def test_a_holder_that_waits_for_a_locked_database_is_not_ended(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = Database(sqlite_url)
    studies.create(database, "s", ["minimize"], seed=1, sampler=None, pruner=None)
    command = [sys.executable, "-c", textwrap.dedent(HOLDER), database.text, "1.5"]
    lease, asked, error = lease_on(database, duration=1.5), threading.Event(), []

    def take() -> None:
        try:
            lease.acquire()
        except Held as held:
            error.append(str(held))

    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        write = database.write
        monkeypatch.setattr(database, "write", lambda: asked.set() or write())
        monkeypatch.setattr("storage.lease._AT_ONCE", 0.0)  # the lock need not be held for long
        taker = threading.Thread(target=take)
        other = Database(sqlite_url)
        with other.write():
            taker.start()
            assert asked.wait(timeout=30)  # the counter stood still for one lease
        taker.join(timeout=30)
        assert holder.poll() is None
        assert f"process {holder.pid} on" in error[0]
        holder.kill()
    other.dispose()
    database.dispose()


def test_a_holder_that_slept_through_a_take_over_changes_nothing(
    database: Database, holder: subprocess.Popen[str]
) -> None:
    assert holder.stdin is not None
    assert holder.stdout is not None
    print("before", file=holder.stdin, flush=True)
    assert holder.stdout.readline() == "committed\n"
    os.kill(holder.pid, signal.SIGSTOP)
    with database.write() as connection:  # what a taker on another host does after one lease
        owner = json.dumps({"host": "elsewhere", "boot_id": "x", "pid": 1})
        fields = {"epoch": 2, "owner": owner, "applied_seq": 0}
        connection.execute(tables.leases.update().values(fields))
    os.kill(holder.pid, signal.SIGCONT)
    print("after", file=holder.stdin, flush=True)
    assert holder.stdout.readline() == "lost\n"
    assert events(database) == ["before"]


def test_a_released_lease_is_free_for_the_next(database: Database) -> None:
    first, second = lease_on(database), lease_on(database)
    first.acquire()
    first.release()
    second.acquire()
    assert (first.epoch, second.epoch, second.previous_owner) == (1, 2, None)
    event = AddEvent(study_uid=second.study_uid, epoch=1, kind="late")
    with pytest.raises(LeaseLost):
        first.fence.commit([event])
    second.release()


def test_an_owner_of_another_host_is_taken_over_after_one_unmoved_lease(database: Database) -> None:
    first = lease_on(database)
    first.acquire()
    first.release()
    owner = json.dumps(
        {"host": "elsewhere", "boot_id": "x", "pid_namespace": "y", "pid": 1, "start_time": "2"}
    )
    with database.write() as connection:
        connection.execute(tables.leases.update().values(owner=owner))
    lease = lease_on(database, duration=1.0)
    began = time.monotonic()
    lease.acquire()
    assert time.monotonic() - began >= 1.0
    lease.release()


def test_of_many_takers_one_wins(database: Database) -> None:
    leases = [lease_on(database, duration=3.0) for _ in range(6)]
    outcomes: list[str] = []

    def take(lease: Lease) -> None:
        try:
            lease.acquire()
            outcomes.append("won")
        except Held:
            outcomes.append("held")

    threads = [threading.Thread(target=take, args=(lease,)) for lease in leases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert sorted(outcomes) == ["held"] * 5 + ["won"]
    for lease in leases:
        if lease.epoch:
            lease.release()


def test_a_lost_reply_to_commit_is_applied_once(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    lease = lease_on(database)
    lease.acquire()
    apply = lease.fence._apply

    def apply_and_lose_the_reply(seq: int, writes: object) -> object:
        monkeypatch.setattr(lease.fence, "_apply", apply)
        apply(seq, writes)  # type: ignore[arg-type]
        raise sa.exc.OperationalError("COMMIT", {}, Exception("connection reset"))

    monkeypatch.setattr(lease.fence, "_apply", apply_and_lose_the_reply)
    lease.fence.commit([AddEvent(study_uid=lease.study_uid, epoch=lease.epoch, kind="once")])
    assert events(database) == ["once"]
    lease.release()


def test_a_locked_database_is_waited_for(sqlite_url: str) -> None:
    database = Database(sqlite_url, timeout=0.2)
    studies.create(database, "s", ["minimize"], seed=1, sampler=None, pruner=None)
    lease = lease_on(database)
    lease.acquire()
    locked, release = threading.Event(), threading.Event()

    def lock() -> None:
        other = Database(sqlite_url)
        with other.write():
            locked.set()
            release.wait(timeout=30)
        other.dispose()

    thread = threading.Thread(target=lock)
    thread.start()
    assert locked.wait(timeout=10)
    timer = threading.Timer(1.0, release.set)
    timer.start()
    lease.fence.commit([AddEvent(study_uid=lease.study_uid, epoch=lease.epoch, kind="waited")])
    thread.join(timeout=30)
    assert events(database) == ["waited"]
    lease.release()


def test_a_lease_in_a_file_that_is_read_only_is_refused_in_one_line(sqlite_url: str) -> None:
    database = Database(sqlite_url)
    record = studies.create(database, "s", ["minimize"], seed=1, sampler=None, pruner=None)
    assert record is not None
    database.dispose()
    database = Database(sqlite_url, read_only=True)
    with pytest.raises(Unavailable, match="readonly database; it and its folder must be writable"):
        Lease(database, record.uid, study_name="s", run="test").acquire()
    database.dispose()
