"""A line from the driver to a shell, past Ray: what the shell does with it, and what both ends share.

A call by Ray passes through several threads and two event loops on either side, which a trial that
asks whether to prune waits for. Calls here are those of :class:`tuner.dispatch.shell.Shell`, in frames
of a length and a pickled value: (number, method, arguments) there, (number, result) back. Both ends
prove first that they know the key, which went by Ray: nothing is unpickled that came from elsewhere.
The driver's end is :mod:`tuner.dispatch.exchange`.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import pickle
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

__all__ = ["Frames", "Offer", "Service", "accept", "frame", "ring"]

ANSWER = 15.0  # seconds for a stranger to prove that it is a shell
PATIENCE = 60.0  # seconds for a driver to answer: it may be starting hundreds of groups
CALLS = frozenset({"listen", "start", "drain", "reply", "recall", "stop", "kill"})
THREADS = 4  # of a shell: one waits in a drain, one for the next call, and some calls end processes
CHUNK = 1 << 18
_LENGTH = struct.Struct(">Q")
_NONCE, _NAME = 32, 16


@dataclass(frozen=True, kw_only=True)
class Offer:
    """Where the driver waits for a shell, the name of the shell's line, and the key of both ends."""

    host: str
    port: int
    name: bytes
    key: bytes


def frame(value: Any) -> bytes:
    """A value as it goes over a line."""
    text = pickle.dumps(value, protocol=5)
    return _LENGTH.pack(len(text)) + text


class Frames:
    """Values out of what has come so far."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Any]:
        """The values that are whole by now, in order."""
        buffer = self._buffer
        buffer += data
        found, at = [], 0
        while len(buffer) - at >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, at)
            end = at + _LENGTH.size + length
            if end > len(buffer):
                break
            found.append(pickle.loads(memoryview(buffer)[at + _LENGTH.size : end]))
            at = end
        del buffer[:at]
        return found


def ring(offer: Offer) -> socket.socket | None:
    """Take an offer up; None where the driver cannot be reached, or is another one."""
    with contextlib.suppress(OSError):
        until = time.monotonic() + PATIENCE
        line = socket.create_connection((offer.host, offer.port), timeout=PATIENCE)
        mine = os.urandom(_NONCE)
        try:
            line.sendall(offer.name + mine)
            theirs = _exactly(line, _NONCE, until)
            expected = _proof(offer.key, b"driver", mine, theirs)
            if hmac.compare_digest(_exactly(line, len(expected), until), expected):
                line.sendall(_proof(offer.key, b"shell", mine, theirs))
                return _made(line)
        except OSError:
            pass
        line.close()
    return None


def accept(line: socket.socket, keys: dict[bytes, bytes]) -> bytes | None:
    """The driver's part of :func:`ring`: the name of the line; None for a stranger.

    Args:
        keys: by the names of the lines that are awaited.

    Raises:
        OSError: the other end went away, or says nothing.
    """
    until = time.monotonic() + ANSWER
    name, theirs = _exactly(line, _NAME, until), _exactly(line, _NONCE, until)
    key, mine = keys.get(name, os.urandom(_NONCE)), os.urandom(_NONCE)  # a stranger learns of no name
    line.sendall(mine + _proof(key, b"driver", theirs, mine))
    expected = _proof(key, b"shell", theirs, mine)
    if not hmac.compare_digest(_exactly(line, len(expected), until), expected):
        return None
    _made(line)
    return name


class Service:
    """Calls the shell for the other end of a line, in threads of its own, until either goes away.

    Each thread takes a call, carries it out and answers it; meanwhile another one waits for the next.
    So a call that waits holds up no other, and none changes threads.
    """

    def __init__(self, line: socket.socket, shell: Any) -> None:
        self._line, self._shell = line, shell
        self._reading, self._writing = threading.Lock(), threading.Lock()
        self._frames, self._calls = Frames(), deque[Any]()
        self._is_over = False
        for _ in range(THREADS):
            threading.Thread(target=self._work, name="tuner-line", daemon=True).start()

    def end(self) -> None:
        """Carry out nothing more, also of what has come."""
        self._is_over = True
        with contextlib.suppress(OSError):
            self._line.shutdown(socket.SHUT_RDWR)

    def _take(self) -> Any:
        with self._reading:
            while not self._calls:
                data = self._line.recv(CHUNK)
                if not data:
                    return None
                self._calls.extend(self._frames.feed(data))
            return None if self._is_over else self._calls.popleft()

    def _work(self) -> None:
        with contextlib.suppress(OSError):
            while (call := self._take()) is not None:
                number, method, arguments = call
                answer = _answer(number, self._shell, method, arguments)
                with self._writing:
                    self._line.sendall(answer)


def _answer(number: int, shell: Any, method: str, arguments: tuple[Any, ...]) -> bytes:
    """The frame with the result of a call, or with its error: as it is where the driver has its class too."""
    try:
        if method not in CALLS:
            raise ValueError(f"{method!r} is no call of a shell")
        return frame((number, getattr(shell, method)(*arguments)))
    except Exception as error:
        known = type(error).__module__.partition(".")[0] in ("builtins", "tuner")
        return frame((number, error if known else RuntimeError(f"{type(error).__name__}: {error}")))


def _proof(key: bytes, who: bytes, asked: bytes, answered: bytes) -> bytes:
    return hmac.digest(key, who + asked + answered, "sha256")


def _exactly(line: socket.socket, count: int, until: float) -> bytes:
    """So many bytes, all of them before a moment of ``time.monotonic``."""
    found = b""
    while len(found) < count:
        line.settimeout(max(0.001, until - time.monotonic()))
        data = line.recv(count - len(found))
        if not data:
            raise ConnectionError("the other end went away")
        found += data
    return found


def _made(line: socket.socket) -> socket.socket:
    line.settimeout(None)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return line
