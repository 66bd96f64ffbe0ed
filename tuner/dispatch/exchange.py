"""Where a driver waits for its shells: lines to them (:mod:`tuner.dispatch.line`), and what Ray answers."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from tuner.dispatch.line import CHUNK, Frames, Offer, accept, frame

__all__ = ["Exchange", "Line"]

log = logging.getLogger(__name__)

Handler = Callable[[Any], None]
STRANGERS = 64  # connections at once that have not proved yet that they know a key
_FULL = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Exchange:
    """Calls handlers with what arrives, in the thread that calls :meth:`wait`."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._bell, self._rope = socket.socketpair()
        for end in (self._bell, self._rope):
            end.setblocking(False)
        self._selector.register(self._bell, selectors.EVENT_READ, self._rung)
        self._arrived: deque[tuple[Handler, Any]] = deque()
        self._door: socket.socket | None = None
        self._host = ""
        self._awaited: dict[bytes, Line] = {}
        self._made: set[Line] = set()
        self._keys: dict[bytes, bytes] = {}
        self._strangers = threading.BoundedSemaphore(STRANGERS)

    def listen(self, host: str) -> None:
        """Wait for shells at an address of this host; without one, all calls go by Ray."""
        try:
            self._door = socket.create_server((host, 0), backlog=STRANGERS)
        except OSError as error:
            log.info("no lines to shells: nothing can listen at %s (%s)", host, error)
            return
        self._host = host
        self._door.setblocking(False)
        self._selector.register(self._door, selectors.EVENT_READ, self._knocked)

    def close(self) -> None:
        """Forget all that was waited for. Can be called twice."""
        self._arrived.clear()
        self._keys.clear()
        for line in [*self._made]:
            line.close()
        self._selector.close()
        for end in (self._bell, self._rope, self._door):
            if end is not None:
                end.close()

    def offer(self, line: Line) -> Offer | None:
        """What its shell needs to know for a line; None where there is none to be had."""
        if self._door is None:
            return None
        name, key = os.urandom(16), os.urandom(32)
        self._awaited[name], self._keys[name] = line, key
        return Offer(host=self._host, port=self._door.getsockname()[1], name=name, key=key)

    def watch(self, ref: Any, handler: Handler) -> None:
        """Call the handler with the result of a call by Ray, or with its error. From any thread."""

        def done(future: Any) -> None:
            self.put(handler, future.exception() or future.result())

        ref.future().add_done_callback(done)

    def put(self, handler: Handler, value: Any) -> None:
        """Call the handler soon. From any thread."""
        self._arrived.append((handler, value))
        with contextlib.suppress(OSError):  # it is to wake already, or is closed
            self._rope.send(b".")

    def wait(self, timeout: float) -> None:
        """Call the handlers of all that has arrived; wait at most so many seconds for the first."""
        for key, events in self._selector.select(0 if self._arrived else timeout):
            key.data(events)
        for _ in range(len(self._arrived)):
            if self._arrived:  # a handler may have closed this
                handler, value = self._arrived.popleft()
                handler(value)

    def listen_to(self, line: Line, connection: socket.socket, writes: bool = False) -> None:
        """Tell the line when its connection can be read, or also written."""
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if writes else 0)
        change = self._selector.modify if line in self._made else self._selector.register
        self._made.add(line)
        change(connection, events, line.ready)

    def forget(self, line: Line, connection: socket.socket) -> None:
        """Never mind the line."""
        self._made.discard(line)
        self._selector.unregister(connection)

    def _rung(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._bell.recv(CHUNK)

    def _knocked(self, _events: int) -> None:
        try:
            stranger, _ = self._door.accept()  # type: ignore[union-attr]
        except OSError as error:
            if error.errno in _FULL:  # who knocks would go on knocking, and wake us each time
                self._shut(error)
            return
        if self._strangers.acquire(blocking=False):
            threading.Thread(target=self._greet, args=(stranger,), daemon=True).start()
        else:
            stranger.close()

    def _shut(self, why: OSError) -> None:
        """Take no further lines: shells that have none are called by Ray."""
        log.info("no further lines to shells: %s", why)
        self._selector.unregister(self._door)  # type: ignore[arg-type]
        self._door.close()  # type: ignore[union-attr]
        self._door = None

    def _greet(self, stranger: socket.socket) -> None:
        """A thread: it waits for the other end, which may say nothing."""
        try:
            name = accept(stranger, self._keys)
        except OSError:
            name = None
        finally:
            self._strangers.release()
        if name is None:
            stranger.close()
        else:
            self.put(self._take, (name, stranger))

    def _take(self, made: tuple[bytes, socket.socket]) -> None:
        name, connection = made
        self._keys.pop(name, None)
        line = self._awaited.pop(name, None)
        if line is None:
            connection.close()
        else:
            line.connect(connection, name)


class Line:
    """Calls of one shell: past Ray where its line is made, else by Ray.

    Args:
        shell: as Ray knows it.
    """

    def __init__(self, exchange: Exchange, shell: Any) -> None:
        self._exchange = exchange
        self._shell = shell
        self._socket: socket.socket | None = None
        self._frames = Frames()
        self._numbers = itertools.count(1)
        self._calls: dict[int, tuple[str, tuple[Any, ...], Handler | None]] = {}  # that are not answered
        self._unsent = bytearray()
        self._name = b""
        self._breaks = False  # its shell is being told

    def call(self, method: str, *arguments: Any, then: Handler | None = None, again: str = "") -> None:
        """Call a method of the shell, and the handler with its result or its error.

        Where the line breaks, the shell is told so by Ray, which says whether it lives; then what was not
        answered is called again. It may have been carried out, but nothing of the line comes after that.

        Args:
            again: another method for that.
        """
        if not self.is_made and not self._breaks:
            self._by_ray(method, arguments, then)
            return
        number = next(self._numbers)
        self._calls[number] = (again or method, arguments, then)
        if self.is_made:
            self._send(frame((number, method, arguments)))

    @property
    def is_made(self) -> bool:
        """Calls go past Ray."""
        return self._socket is not None

    def connect(self, connection: socket.socket, name: bytes) -> None:
        """The line is made."""
        connection.setblocking(False)
        self._name = name
        self._socket = connection
        self._exchange.listen_to(self, connection)

    def close(self) -> None:
        """Hang up; what was not answered is forgotten."""
        self._calls.clear()
        self._hang_up()

    def _by_ray(self, method: str, arguments: tuple[Any, ...], then: Handler | None) -> None:
        ref = getattr(self._shell, method).remote(*arguments)
        if then is not None:
            self._exchange.watch(ref, then)

    def ready(self, events: int) -> None:
        """The connection can be read or written."""
        if events & selectors.EVENT_WRITE and self._socket is not None:
            self._send(b"")
        if not events & selectors.EVENT_READ or self._socket is None:
            return
        try:
            data = self._socket.recv(CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.drop()
            return
        for number, result in self._frames.feed(data):
            _, _, then = self._calls.pop(number, ("", (), None))
            if then is not None:
                then(result)

    def _send(self, data: bytes) -> None:
        """As much as goes at once: a shell that is stopped must not stop its driver."""
        assert self._socket is not None
        waited = bool(self._unsent)
        self._unsent += data
        try:
            sent = self._socket.send(bytes(self._unsent[:CHUNK]))
        except BlockingIOError:
            sent = 0
        except OSError:
            self.drop()
            return
        del self._unsent[:sent]
        if waited != bool(self._unsent):
            self._exchange.listen_to(self, self._socket, writes=not waited)

    def drop(self) -> None:
        """Call by Ray from here on; nothing where that is so already."""
        if self.is_made:
            self._hang_up()
            self._breaks = True
            self._by_ray("hang_up", (self._name,), self._repeat)

    def _repeat(self, _result: Any) -> None:
        self._breaks = False
        calls, self._calls = self._calls, {}
        for method, arguments, then in calls.values():
            self._by_ray(method, arguments, then)

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._exchange.forget(self, self._socket)
            self._socket.close()
            self._socket = None
        self._unsent.clear()
        self._frames = Frames()
