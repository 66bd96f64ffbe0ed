"""What a group asks of its shells, and when: calls may pass each other on their way."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from tests.test_zygote import assignment as assignment_of
from tuner.assignment import Assignment
from tuner.dispatch.exchange import Exchange
from tuner.dispatch.ray_group import Group
from tuner.dispatch.shape import Shape
from tuner.dispatch.shell import Batch, Begun, StaleEpoch
from tuner.messages import Ended, Message, RankInfo, Turn, encode
from tuner.outcome import Outcome, Reason

STOPPED = Outcome(reason=Reason.STOPPED, message="enough")


class Shell:
    """As Ray knows it: each call waits for its answer."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Future[Any]]] = []

    def __getattr__(self, method: str) -> Any:
        shell = self

        class Method:
            def remote(self, *arguments: Any) -> Any:
                self._future: Future[Any] = Future()
                shell.calls.append((method, self._future))
                return self

            def future(self) -> Future[Any]:
                return self._future

        return Method()

    def asked(self) -> list[str]:
        return [method for method, _ in self.calls]

    def answer(self, method: str, result: Any) -> None:
        """Answer the newest call of a method."""
        future = next(future for name, future in reversed(self.calls) if name == method)
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)


class Owner:
    """The executor of one group."""

    def __init__(self) -> None:
        self.exchange = Exchange()
        self.delivered: list[tuple[int, Message]] = []
        self.back: list[tuple[int, Ended | None]] = []
        self.broken = self.stale = ""

    def deliver(self, assignment: Assignment, rank: int, seq: int, message: Message) -> None:
        self.delivered.append((assignment.number, message))

    def give_back(self, attempts: Sequence[tuple[Assignment, Ended | None]]) -> None:
        self.back += [(one.number, end) for one, end in attempts]

    def became_idle(self, group: Group) -> None:
        pass

    def broke(self, group: Group, why: str) -> None:
        self.broken = why

    def ready(self, group: Group) -> bool:
        return True

    def device_failed(self, group: Group, rank: int, device: int, why: str) -> None:
        raise AssertionError("no device is there")

    def superseded(self, error: StaleEpoch) -> None:
        self.stale = str(error)


class Bench:
    """A group of one shell."""

    def __init__(self, folder: Path) -> None:
        self.owner, self.shell = Owner(), Shell()
        shape = Shape(run="r", ranks=1, cpus=1, bundle={"CPU": 1}, hide_gpus=True)
        self.group = Group(self.owner, shape, 1, None, [self.shell])
        known = {"node": "n", "loopback": "l", "address": "127.0.0.1", "devices": (), "folder": str(folder)}
        self.group._on_ready(0, known)
        self.file = folder / "objectives.py"

    def begin(self, count: int) -> None:
        self.group.begin([assignment_of(self.file, "f", number=number) for number in range(count)])

    def hear(self) -> None:
        self.owner.exchange.wait(1)
        self.group.keep_time(time.monotonic())


@pytest.fixture
def bench(tmp_path: Path) -> Any:
    bench = Bench(tmp_path)
    yield bench
    bench.owner.exchange.close()


PLACED = RankInfo(rank=0, host="h", node="n", pid=1)


def test_a_series_is_recalled_only_once_its_shell_is_known_to_have_it(bench: Bench) -> None:
    bench.begin(3)
    assert bench.group.withdraw(2, STOPPED)
    bench.group.keep_time(time.monotonic())
    assert bench.shell.asked() == ["start"], "a recall could come before it, and speak of another series"
    turn = encode(Turn(at=0, pid=1))
    bench.shell.answer("start", Begun(placed=PLACED, batch=Batch(messages=((1, turn),))))
    bench.hear()
    assert bench.shell.asked() == ["start", "drain", "recall"]
    bench.shell.answer("recall", 1)
    bench.hear()
    assert [(number, end.outcome) for number, end in bench.owner.back if end] == [(2, STOPPED)]
    assert [one.number for one in bench.group.behind] == [1]


def test_what_ray_knows_of_a_shell_is_heard_while_nothing_else_is_asked_of_it(bench: Bench) -> None:
    bench.group.ping()
    bench.shell.answer("ping", None)
    bench.hear()
    assert not bench.owner.broken
    bench.group.ping()
    bench.shell.answer("ping", RuntimeError("it died"))
    bench.hear()
    assert bench.owner.broken == "it died"


def test_a_ping_that_fails_ends_the_attempt_that_runs(bench: Bench) -> None:
    bench.begin(1)
    bench.shell.answer("start", Begun(placed=PLACED, batch=Batch()))
    bench.hear()
    bench.group.ping()
    bench.shell.answer("ping", RuntimeError("it died"))
    bench.hear()
    (ended,) = [message for _, message in bench.owner.delivered if isinstance(message, Ended)]
    assert (ended.outcome.reason, ended.outcome.message) == (Reason.NODE_LOST, "rank 0 is lost: it died")


def test_a_driver_that_was_taken_over_hears_it_from_a_ping(bench: Bench) -> None:
    bench.begin(1)
    bench.group.ping()
    bench.shell.answer("ping", StaleEpoch("epoch 1 is over"))
    bench.hear()
    assert bench.owner.stale == "epoch 1 is over"
    assert not bench.owner.broken
