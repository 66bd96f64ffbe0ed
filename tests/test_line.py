"""Lines from a driver to its shells: calls past Ray, which lose nothing where the line breaks."""

from __future__ import annotations

import pickle
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.files import no_further_file
from tuner.dispatch.exchange import STRANGERS, Exchange, Line
from tuner.dispatch.line import THREADS, Frames, Offer, Service, frame, ring

BOUND = 20.0


class Shell:
    """What is called: it answers, fails, or waits until it is told to end."""

    def __init__(self) -> None:
        self.told = threading.Event()
        self.waits = threading.Event()
        self.replies: list[Any] = []

    def reply(self, value: Any) -> Any:
        self.replies.append(value)
        return value

    def drain(self, message: str) -> str:
        self.waits.set()
        assert self.told.wait(BOUND)
        return message

    def kill(self, message: str) -> None:
        self.told.set()
        raise RuntimeError(message)

    def recall(self) -> Any:
        return threading.Lock()

    def listen(self) -> int:
        raise subprocess.TimeoutExpired("x", 3)

    def shut_down(self) -> None:
        raise AssertionError("not to be called from afar")


class Actor:
    """What Ray knows of a shell: its calls, each answered at once."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, method: str) -> Any:
        actor = self

        class Method:
            def remote(self, *arguments: Any) -> Any:
                actor.calls.append((method, *arguments))
                return self

            def future(self) -> Future[str]:
                future: Future[str] = Future()
                future.set_result("by Ray")
                return future

        return Method()


class Bench:
    """A driver's end and a shell's, in one process."""

    def __init__(self) -> None:
        self.exchange = Exchange()
        self.exchange.listen("127.0.0.1")
        self.actor, self.shell = Actor(), Shell()
        self.line = Line(self.exchange, self.actor)
        self.results: list[Any] = []
        self.far: socket.socket | None = None
        self.service: Service | None = None

    def connect(self, served: bool = True) -> None:
        offer = self.exchange.offer(self.line)
        assert offer is not None
        rung: list[socket.socket | None] = []
        ringing = threading.Thread(target=lambda: rung.append(ring(offer)))
        ringing.start()
        self.until(lambda: self.line.is_made)
        ringing.join(BOUND)
        (self.far,) = rung
        assert self.far is not None
        if served:
            self.service = Service(self.far, self.shell)

    def call(self, method: str, *arguments: Any) -> None:
        self.line.call(method, *arguments, then=self.results.append)

    def until(self, reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + BOUND
        while not reached():
            assert time.monotonic() < deadline
            self.exchange.wait(0.05)

    def answers(self, count: int) -> list[Any]:
        self.until(lambda: len(self.results) >= count)
        return self.results

    def close(self) -> None:
        self.shell.told.set()
        self.line.close()
        self.exchange.close()
        if self.far is not None:
            self.far.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.close()


def test_calls_go_by_ray_until_there_is_a_line_and_then_over_it(bench: Bench) -> None:
    bench.call("reply", 1)
    assert bench.answers(1) == ["by Ray"]
    bench.connect()
    bench.call("reply", {"a": (1, b"2")})
    assert bench.answers(2)[1] == {"a": (1, b"2")}
    assert bench.actor.calls == [("reply", 1)]


def test_a_call_that_waits_holds_up_no_other_and_errors_come_as_they_are(bench: Bench) -> None:
    bench.connect()
    bench.call("drain", "over")
    assert bench.shell.waits.wait(BOUND)
    bench.call("kill", "now")
    bench.answers(2)
    assert sorted(map(repr, bench.results)) == ["'over'", "RuntimeError('now')"]


def test_only_what_a_shell_offers_can_be_called(bench: Bench) -> None:
    bench.connect()
    bench.call("shut_down")
    bench.call("__class__")
    assert [str(error) for error in bench.answers(2)] == [
        "'shut_down' is no call of a shell",
        "'__class__' is no call of a shell",
    ]


def test_what_cannot_cross_a_line_is_an_error_in_words(bench: Bench) -> None:
    bench.connect()
    bench.call("recall")
    bench.call("listen")
    locked, late = sorted(bench.answers(2), key=repr)
    assert "cannot pickle" in str(locked if isinstance(locked, TypeError) else late)
    assert any("TimeoutExpired: Command 'x' timed out" in str(one) for one in (locked, late))


def test_a_line_that_breaks_loses_no_call(bench: Bench) -> None:
    bench.connect(served=False)
    bench.call("drain", 1)
    bench.line.call("reply", 2)
    bench.line.call("start", 3, then=bench.results.append, again="start_again")
    assert bench.far is not None
    bench.far.close()
    assert bench.answers(2) == ["by Ray", "by Ray"]
    bench.call("drain", 4)
    bench.answers(3)
    assert bench.actor.calls == [
        ("hang_up", bench.line._name),
        ("drain", 1),
        ("reply", 2),
        ("start_again", 3),
        ("drain", 4),
    ]


def test_nothing_of_a_line_is_carried_out_after_its_shell_has_hung_up(bench: Bench) -> None:
    bench.connect()
    for _ in range(THREADS):
        bench.call("drain", "over")
    assert bench.shell.waits.wait(BOUND)
    bench.call("reply", "late")
    bench.line.drop()
    bench.call("reply", "meanwhile")
    assert bench.actor.calls == [("hang_up", bench.line._name)], "nothing passes it"
    assert bench.service is not None
    bench.service.end()
    bench.shell.told.set()
    deadline = time.monotonic() + BOUND
    while any(thread.name == "tuner-line" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert bench.shell.replies == []
    assert bench.answers(THREADS + 2) == ["by Ray"] * (THREADS + 2)
    assert bench.actor.calls[-2:] == [("reply", "late"), ("reply", "meanwhile")]


def test_a_shell_that_reads_nothing_stops_no_driver(bench: Bench) -> None:
    bench.connect(served=False)
    much = "x" * 5_000_000
    for _ in range(10):
        bench.call("reply", much)
    assert bench.far is not None
    Service(bench.far, bench.shell)
    assert bench.answers(10) == [much] * 10
    bench.call("reply", "and on")
    assert bench.answers(11)[-1] == "and on"
    assert bench.actor.calls == []


def test_who_does_not_know_the_key_is_no_shell_and_no_driver(bench: Bench) -> None:
    offer = bench.exchange.offer(bench.line)
    assert offer is not None
    for wrong in (replace(offer, key=b"k" * 32), replace(offer, name=b"n" * 16)):
        found: list[Any] = []
        ringing = threading.Thread(target=lambda offer, found: found.append(ring(offer)), args=(wrong, found))
        ringing.start()
        bench.until(lambda ringing=ringing: not ringing.is_alive())  # type: ignore[misc]
        assert found == [None]
    assert not bench.line.is_made
    bench.connect()


def test_strangers_that_say_nothing_hold_up_nobody(bench: Bench) -> None:
    offer = bench.exchange.offer(bench.line)
    assert offer is not None
    strangers = [socket.create_connection((offer.host, offer.port)) for _ in range(STRANGERS - 1)]
    strangers[0].sendall(pickle.dumps("hostile") * 100)
    try:
        bench.connect()
    finally:
        for stranger in strangers:
            stranger.close()


def test_who_may_open_no_further_file_takes_no_further_line_and_waits_in_peace(bench: Bench) -> None:
    offer = bench.exchange.offer(bench.line)
    assert offer is not None
    with socket.create_connection((offer.host, offer.port)), no_further_file():
        bench.exchange.wait(BOUND)
    woken: list[int] = []
    waking = threading.Timer(0.2, bench.exchange.put, (woken.append, 1))
    waking.start()
    bench.exchange.wait(BOUND)  # it is woken by nobody else
    bench.exchange.wait(0)
    assert woken == [1]
    assert bench.exchange.offer(bench.line) is None
    bench.call("reply", 1)
    assert bench.answers(1) == ["by Ray"]


def test_without_a_driver_to_reach_there_is_no_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    assert ring(Offer(host="127.0.0.1", port=port, name=b"n" * 16, key=b"k" * 32)) is None


def test_an_address_that_is_not_ours_leaves_all_to_ray(bench: Bench) -> None:
    other = Exchange()
    other.listen("192.0.2.1")
    assert other.offer(bench.line) is None
    other.close()
    other.close()


@given(st.lists(st.binary(max_size=300), max_size=8), st.data())
def test_values_come_whole_wherever_the_network_cuts_them(values: list[bytes], data: st.DataObject) -> None:
    text = b"".join(map(frame, values))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=10)))
    frames = Frames()
    parts = [text[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert [value for part in parts for value in frames.feed(part)] == values
