"""The channel between a rank's process and its shell: lines of JSON.

What the rank says goes into a pipe, in one order. Its shell comes by now and then, and at once when a byte
on their socket tells of a question or of the end: a report that wakes nobody costs the training a tenth of
one that does, and what is in the pipe outlives the rank. Answers come back over the socket.

A line goes into the pipe whole or not at all, whoever else writes there: another thread, a signal handler,
a process that the objective forked. The kernel promises that for 4 KiB, so that a longer line goes in parts::

    +ID PART    of a longer line; each such line has an ID of its own
    -ID PART    its end
    anything else is a line itself
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import select
import socket
import threading
from collections.abc import Iterator
from typing import Any

from tuner.errors import BadInput
from tuner.messages import Finished, Message, Question, encode

__all__ = ["STOP", "PipeChannel", "answer_line", "lines"]

STOP = b'{"stop": true}\n'
"""What the shell writes when the rank is asked to stop."""

REST = 0.02
"""Seconds that reports may lie in the pipe after the shell has read some."""

CAPACITY = 2**18  # bytes of the pipe: some thousand reports, in which the rank need not wait
LARGE = 2**14  # bytes of a message that may have to wait for a reader
WHOLE = select.PIPE_BUF  # bytes that the kernel writes whole or not at all
BELL = b"!"
QUESTIONS = 2**32  # of an attempt at most


def answer_line(question: int, value: Any, error: str) -> bytes:
    """An answer as the shell writes it to its child."""
    return json.dumps({"id": question, "value": value, "error": error}).encode() + b"\n"


def lines(connection: socket.socket) -> Iterator[str]:
    """What a rank says, line by line, until it goes or either side hangs up (the shell's side).

    Args:
        connection: our end of the socket; another thread may write to it, and close it.
    """
    with connection.dup() as bell:  # closed by another thread, its number would soon be another file's
        _, descriptors, _, _ = socket.recv_fds(bell, 1, 1)
        if not descriptors:
            return
        (pipe,) = descriptors
        try:
            os.set_blocking(pipe, False)
            yield from _lines(bell, pipe)
        finally:
            os.close(pipe)


def _lines(bell: socket.socket, pipe: int) -> Iterator[str]:
    poll = select.poll()
    poll.register(bell, select.POLLIN)
    poll.register(pipe, select.POLLIN)
    buffer, goes_on, rests = b"", True, False
    begun: dict[bytes, list[bytes]] = {}  # longer lines by ID; of one that was broken off, nothing follows
    while goes_on:
        poll.modify(pipe, 0 if rests else select.POLLIN)
        ready = dict(poll.poll(1000 * REST if rests else None))
        if bell.fileno() in ready:
            goes_on = _has_rung(bell)
        data = _read(pipe)
        while not goes_on and (more := _read(pipe)):
            data = (data or b"") + more
        *whole, buffer = (buffer + (data or b"")).split(b"\n")  # of a rank that is killed, a part may stay
        for line in whole:
            if line[:1] in (b"+", b"-"):
                number, _, part = line[1:].partition(b" ")
                begun.setdefault(number, []).append(part)
                if line[:1] == b"+":
                    continue
                line = b"".join(begun.pop(number))
            yield line.decode()
        goes_on = goes_on and data != b""
        rests = data is not None and len(data) < LARGE


def _has_rung(bell: socket.socket) -> bool:
    """False: the other side has hung up."""
    with contextlib.suppress(OSError):
        return bool(bell.recv(4096))
    return False


def _read(pipe: int) -> bytes | None:
    """All that is in the pipe; None: nothing now, b"": nothing ever."""
    with contextlib.suppress(BlockingIOError):
        return os.read(pipe, CAPACITY)
    return None


class PipeChannel:
    """The rank's end; see :class:`tuner.channel.Channel`. Threads of an objective may share it, and its
    signal handlers; a process that it forked may send, and cannot ask: the answer is its parent's to read.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        pipe, self._pipe = os.pipe()
        with contextlib.suppress(OSError):  # a user may have too many large ones
            fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, CAPACITY)
        socket.send_fds(connection, [BELL], [pipe])
        os.close(pipe)
        self._process = os.getpid()
        self._long = itertools.count()
        self._reading = threading.Lock()  # held from a question to its answer
        self._buffer = b""
        self._questions = 0
        self._stop = False
        self._answers: dict[int, dict[str, Any]] = {}

    def begin(self, at: int) -> None:
        """The next attempt of a series, perhaps in a process of its own, speaks from here on."""
        self._process = os.getpid()
        self._questions = at * QUESTIONS  # an answer to the one before would be for nobody
        self._stop = False

    def send(self, message: Message, *, rings: bool = True) -> None:
        """See :class:`tuner.channel.Channel`.

        Args:
            rings: False: also a last word may lie in the pipe until the shell next comes by.
        """
        try:
            self._send(message)
            if rings and isinstance(message, Question | Finished):
                self._socket.sendall(BELL)
        except OSError as error:
            if error.errno != errno.EBADF:
                raise
            text = "the objective has closed the files of the process that it runs in"
            raise OSError(
                error.errno, f"{text}, its way to the driver too; close only files that it has opened"
            ) from None

    def _send(self, message: Message) -> None:
        line = encode(message).encode() + b"\n"
        if len(line) >= LARGE:
            self._socket.sendall(BELL)  # it may not fit before somebody reads
        if len(line) <= WHOLE:
            os.write(self._pipe, line)
        else:
            self._send_long(line)

    def _send_long(self, line: bytes) -> None:
        number = b"%d.%d" % (os.getpid(), next(self._long))
        size = WHOLE - len(number) - 3  # the sign, the blank, the end of the line
        for start in range(0, len(line), size):
            part = line[start : start + size]
            whole = b"-%b %b" if start + size >= len(line) else b"+%b %b\n"
            os.write(self._pipe, whole % (number, part))

    def close(self) -> None:
        """Hang up; what was sent arrives."""
        with contextlib.suppress(OSError):  # an objective may have closed all files that it found
            os.close(self._pipe)
        with contextlib.suppress(OSError):
            self._socket.close()

    def ask(self, kind: type[Message], **fields: Any) -> Any:
        if os.getpid() != self._process:
            raise BadInput(
                f"a process that the objective forked cannot ask ({kind.__name__}), only report and log; ask "
                "for parameters, should_prune and checkpoints in the objective's own process"
            )
        question: Any = kind  # every Question has an id
        with self._reading:
            self._questions += 1
            number = self._questions
            self.send(question(id=number, **fields))
            while number not in self._answers:
                self._read(block=True)
            answer = self._answers.pop(number)
        if answer["error"]:
            raise RuntimeError(answer["error"])
        return answer["value"]

    def stop_requested(self) -> bool:
        if not self._stop and self._reading.acquire(blocking=False):  # else another thread reads
            try:
                self._read(block=False)
            finally:
                self._reading.release()
        return self._stop

    def _read(self, *, block: bool) -> None:
        try:
            data = self._socket.recv(65536, 0 if block else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionError("the shell of this rank is gone")
        *lines, self._buffer = (self._buffer + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if "stop" in message:
                self._stop = True
            else:
                self._answers[message["id"]] = message
