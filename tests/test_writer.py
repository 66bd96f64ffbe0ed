"""Group commit: order, results, what is refused, and what stands for a database that is away."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import pytest

from storage.errors import LeaseLost, Refused, StorageError
from storage.writer import PENDING, Ticket, Writer
from storage.writes import AddEvent, Write


def event(kind: str) -> AddEvent:
    return AddEvent(study_uid="u", epoch=1, kind=kind)


class Log:
    """Commits into a list; a kind that starts with "bad" is refused."""

    def __init__(self, **given: Any) -> None:
        self.batches: list[list[str]] = []
        self.refused: list[str] = []
        self.first = threading.Event()
        self.writer = Writer(self.commit, tend=self.tend, refused=self.refuse, gap=True)

    def tend(self, alone: AbstractContextManager[Any]) -> None: ...

    def commit(self, writes: Sequence[Write], tickets: Sequence[Ticket]) -> list[Any]:
        kinds = [write.kind for write in writes if isinstance(write, AddEvent)]
        if any(kind.startswith("bad") for kind in kinds):
            raise Refused(f"refused: {kinds}")
        if "fault" in kinds:
            raise RuntimeError("a fault of ours")
        if "lost" in kinds:
            raise LeaseLost("taken over")
        self.batches.append(kinds)
        self.first.set()
        return [PENDING if kind == "later" else f"done {kind}" for kind in kinds]

    def refuse(self, write: Write, error: Refused) -> None:
        assert isinstance(write, AddEvent)
        self.refused.append(write.kind)


@pytest.fixture
def log() -> Log:
    return Log()


def test_what_is_queued_goes_before_what_is_awaited_in_one_transaction(log: Log) -> None:
    log.writer.add([event("a"), event("b")])
    assert log.writer.flush([event("c"), event("d")]) == ["done c", "done d"]
    assert log.batches == [["a", "b", "c", "d"]]


def test_what_nobody_awaits_is_committed_all_the_same(log: Log) -> None:
    log.writer.add([event("a")])
    assert log.first.wait(timeout=10)
    assert log.batches == [["a"]]


def test_a_callback_gets_its_results(log: Log) -> None:
    got: list[Any] = []
    log.writer.add([event("a")])
    log.writer.add([event("b")], got.extend)
    log.writer.flush()
    assert got == ["done b"]


def test_of_a_refused_batch_everything_but_the_culprits_is_written(log: Log) -> None:
    log.writer.add([event(kind) for kind in ("a", "b", "bad1", "c", "d", "bad2", "e")])
    assert log.writer.flush([event("f")]) == ["done f"]
    assert [kind for batch in log.batches for kind in batch] == ["a", "b", "c", "d", "e", "f"]
    assert log.refused == ["bad1", "bad2"]


def test_awaited_writes_stand_or_fall_together(log: Log) -> None:
    log.writer.add([event("a")])
    with pytest.raises(Refused):
        log.writer.flush([event("x"), event("bad"), event("y")])
    assert [kind for batch in log.batches for kind in batch] == ["a"]
    assert log.refused == []


def test_a_lost_lease_reaches_everyone_who_waits(log: Log) -> None:
    log.writer.add([event("lost")])
    with pytest.raises(LeaseLost):
        log.writer.flush([event("a")])


def test_after_a_fault_of_ours_nothing_more_is_taken(log: Log) -> None:
    with pytest.raises(StorageError, match="a fault of ours"):
        log.writer.flush([event("fault")])
    with pytest.raises(StorageError, match="a fault of ours"):
        log.writer.add([event("next")])
    with pytest.raises(StorageError, match="a fault of ours"):
        log.writer.flush()


def test_threads_that_wait_share_transactions_and_get_each_its_own_results(log: Log) -> None:
    got: dict[str, Sequence[Any]] = {}

    def write(name: str) -> None:
        for at in range(50):
            got[f"{name}{at}"] = log.writer.flush([event(f"{name}{at}")])

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert got == {name: [f"done {name}"] for name in got}
    assert len(got) == 200
    for name in "abcd":
        mine = [kind for batch in log.batches for kind in batch if kind.startswith(name)]
        assert mine == [f"{name}{at}" for at in range(50)]


def test_what_gathers_is_bounded(log: Log) -> None:
    for start in range(0, 60_000, 100):
        log.writer.add([event(str(at)) for at in range(start, start + 100)])
    log.writer.flush()
    assert [int(kind) for batch in log.batches for kind in batch] == list(range(60_000))
    assert max(len(batch) for batch in log.batches) <= 4_100


def test_closing_writes_what_is_queued(log: Log) -> None:
    log.writer.add([event("a")])
    log.writer.close()
    log.writer.close()
    assert log.batches == [["a"]]
