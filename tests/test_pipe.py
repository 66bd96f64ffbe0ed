"""The channel between a rank and its shell: nothing is lost or reordered, and a question does not wait."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from tuner.dispatch.pipe import CAPACITY, STOP, PipeChannel, answer_line, lines
from tuner.errors import BadInput
from tuner.messages import Ask, Message, Param, Report, UserAttr, decode


@pytest.fixture
def sockets() -> Iterator[tuple[socket.socket, socket.socket]]:
    shell, rank = socket.socketpair()
    shell.settimeout(None)
    with shell, rank:
        yield shell, rank


def reading(shell: socket.socket, into: list[Message]) -> threading.Thread:
    thread = threading.Thread(target=lambda: into.extend(decode(line) for line in lines(shell)), daemon=True)
    thread.start()
    return thread


def test_all_that_is_said_arrives_in_its_order_whatever_its_size(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    said: list[Message] = []
    for step in range(5_000):  # more than the pipe holds
        said.append(Report(step=step, value=step / 7))
        if step % 500 == 0:
            said.append(Param(name=f"p{step}", value=1.0, distribution="{}"))
            said.append(UserAttr(key="large", value="é" * (CAPACITY if step % 1000 else 17)))
    heard: list[Message] = []
    thread = reading(sockets[0], heard)
    channel = PipeChannel(sockets[1])
    for message in said:
        channel.send(message)
    channel.close()
    thread.join(30)
    assert heard == said


def test_a_question_overtakes_no_report_and_waits_for_none(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    shell, rank = sockets
    before: list[int] = []

    def serve() -> None:
        for line in lines(shell):
            message = decode(line)
            if isinstance(message, Ask):
                shell.sendall(answer_line(message.id, len(before), ""))
            else:
                before.append(1)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    channel = PipeChannel(rank)
    for step in range(1, 200):
        channel.send(Report(step=step, value=0.0))
        assert channel.ask(Ask, ordinal=step) == step
    assert not channel.stop_requested()
    shell.sendall(STOP)
    assert channel.stop_requested()
    channel.close()
    thread.join(30)
    assert not thread.is_alive()


def test_what_a_forked_process_and_a_signal_handler_say_garbles_nothing(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    shell, rank = sockets
    heard: list[Message] = []
    thread = reading(shell, heard)
    channel = PipeChannel(rank)
    large = "x" * (3 * CAPACITY)
    pid = os.fork()
    if pid == 0:
        for step in range(200):
            channel.send(Report(step=step, value=0.5))
            if step % 50 == 0:
                channel.send(UserAttr(key=f"child{step}", value=large))
        try:
            channel.ask(Ask, ordinal=1)  # its answer would be read by either of the two
        except BadInput:
            os._exit(0)
        os._exit(1)
    before = signal.signal(signal.SIGALRM, lambda *_: channel.send(UserAttr(key="alarm", value=large)))
    for step in range(200, 400):
        channel.send(Report(step=step, value=0.5))
        if step % 50 == 0:
            signal.setitimer(signal.ITIMER_REAL, 0.001)
            channel.send(UserAttr(key=f"parent{step}", value=large))
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    channel.close()
    thread.join(30)
    steps = [message.step for message in heard if isinstance(message, Report)]
    attributes = [message for message in heard if isinstance(message, UserAttr)]
    assert sorted(steps) == list(range(400))
    assert [step for step in steps if step < 200] == list(range(200))
    assert all(one.value == large for one in attributes)
    assert {f"child{step}" for step in range(0, 200, 50)} < {one.key for one in attributes}


def test_a_line_that_an_exception_broke_off_was_not_said_and_harms_no_other(
    sockets: tuple[socket.socket, socket.socket],
) -> None:
    def raise_it(*_: object) -> None:
        raise TimeoutError

    channel = PipeChannel(sockets[1])
    before = signal.signal(signal.SIGALRM, raise_it)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    with pytest.raises(TimeoutError):
        channel.send(UserAttr(key="large", value="x" * (3 * CAPACITY)))  # nobody reads it yet
    signal.signal(signal.SIGALRM, before)
    heard: list[Message] = []
    thread = reading(sockets[0], heard)
    said = [UserAttr(key="after", value="y" * CAPACITY), Report(step=1, value=0.5)]
    for message in said:
        channel.send(message)
    channel.close()
    thread.join(30)
    assert heard == said


def test_what_a_rank_said_before_it_was_killed_arrives(sockets: tuple[socket.socket, socket.socket]) -> None:
    shell, rank = sockets
    pid = os.fork()
    if pid == 0:
        shell.close()
        channel = PipeChannel(rank)
        for step in range(100):
            channel.send(Report(step=step, value=0.5))
        os.kill(os.getpid(), signal.SIGKILL)
    rank.close()
    os.waitpid(pid, 0)
    heard: list[Message] = []
    reading(shell, heard).join(30)
    assert heard == [Report(step=step, value=0.5) for step in range(100)]


@pytest.mark.parametrize("after", [0, 3])
def test_the_reader_ends_when_its_own_side_hangs_up(
    after: int, sockets: tuple[socket.socket, socket.socket]
) -> None:
    heard: list[Message] = []
    thread = reading(sockets[0], heard)
    if after:
        channel = PipeChannel(sockets[1])
        for step in range(after):
            channel.send(Report(step=step, value=0.5))
    sockets[0].shutdown(socket.SHUT_RDWR)
    thread.join(30)
    assert not thread.is_alive()
    assert len(heard) == after
    if after:
        with pytest.raises(BrokenPipeError):
            channel.send(Report(step=9, value=0.5))
        channel.close()


def test_a_rank_that_dies_within_a_line_has_not_said_it(sockets: tuple[socket.socket, socket.socket]) -> None:
    shell, rank = sockets
    channel = PipeChannel(rank)
    channel.send(Report(step=1, value=0.5))
    os.write(channel._pipe, b'["Report", {"st')
    channel.close()
    assert [decode(line) for line in lines(shell)] == [Report(step=1, value=0.5)]
