"""The channel between a rank and its shell: nothing is lost or reordered, and a question does not wait."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Iterator

import pytest

from tuner.dispatch.pipe import CAPACITY, STOP, PipeChannel, answer_line, lines
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
