"""Where a shell's ranks come from: its zygote, which forks one at a time and says exactly how it ended.

A zygote that is lost takes its rank with it, and another one is started for the next.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from storage import owner
from tuner.assignment import Assignment
from tuner.channel import Place
from tuner.dispatch import ahead, memory, zygote
from tuner.dispatch.surroundings import SHELL_MARK
from tuner.dispatch.turns import TAIL
from tuner.processes import sweep

__all__ = ["Nursery", "hang_up"]

MOST = 16 * 2**20  # bytes of output that a rank's file holds; then only the last of it stays
_LOOKS = 10  # at output that grows meanwhile, before it is cut where it is
FORK = 100.0  # seconds that a zygote may take for its imports and the first fork


class Nursery:
    """The zygote of one shell, and the rank that was forked last.

    Args:
        folder: of the shell; its name is the mark of all its processes.
        environment: of the zygote and its ranks.
        preload: modules that the zygote imports once.
        waits: one has been started ahead, and waits in the folder; see :mod:`tuner.dispatch.ahead`.
        ended: called with our end of a rank's channel when the rank has ended: with its exit code
            (negative for a signal), or None when its zygote was lost.

    Attributes:
        pid: of the rank; 0 until it is there.
        zygote: its process id; 0 until it has imported everything.
    """

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        preload: Sequence[str],
        ended: Callable[[socket.socket, int | None], None],
        *,
        waits: bool = False,
    ) -> None:
        self.pid = self.zygote = 0
        self._folder = folder
        self._log = folder / "output.log"
        self._environment = environment
        self._preload = tuple(preload)
        self._ended = ended
        self._changed = threading.Condition()
        self._channel: socket.socket | None = None
        self._theirs: socket.socket | None = None
        self._turns = -1  # pipe with a byte for each attempt of a series that may still begin
        self._desk: socket.socket | None = None  # of the process that is kept
        self._is_free = False  # it waits for an attempt
        self._listener: socket.socket | None = None
        self._over = True  # the rank has ended
        self._first = 0  # the process of the first attempt of its series
        self._kept = 0  # the process that waits for another attempt
        self._seen: dict[int, Mapping[str, object]] = {}  # what was below the zygote when last looked at
        self._closing = self._has_zygote = False
        waiting = ahead.call(str(folder), environment) if waits else None
        if waiting is not None:
            self._attach(waiting, None)
        else:
            self._start()

    def listen(self, host: str) -> int:
        """Bind the socket on which rank 0's next process serves its store; the port."""
        if self._listener is not None:
            self._listener.close()
        self._listener = socket.create_server((host, 0))
        return int(self._listener.getsockname()[1])

    def prepare(self) -> socket.socket:
        """A channel to the rank that is forked next; our end, to be read before it is there."""
        if not self._has_zygote:
            self._start()
        ours, self._theirs = socket.socketpair()
        with self._changed:
            self._channel, self.pid, self._over = ours, 0, False
        return ours

    def fork(self, series: Sequence[Assignment], place: Place) -> bool:
        """Fork the rank that was prepared; False if it was not there in time, and was ended.

        Args:
            series: attempts for it, one after the other; one that is kept runs all of them, else there is
                a fork for each.
        """
        channel, theirs = self._channel, self._theirs
        assert channel is not None
        assert theirs is not None, "prepare() comes first"
        self._make_turns(len(series) - 1)
        listener, self._listener = self._listener, None
        output = os.open(self._log, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
        listen = listener.fileno() if listener is not None and place.rank == 0 else -1
        try:
            if not self._give_to_kept(series, place, theirs.fileno(), output, listen):
                desk = self._make_desk() if series[0].keep else None
                number = desk.fileno() if desk is not None else -1
                zygote.request(
                    self._control,
                    series,
                    place,
                    theirs.fileno(),
                    output,
                    desk=number,
                    listen=listen,
                    turns=self._turns,
                )
                if desk is not None:
                    desk.close()
        except OSError:
            self._end(channel, None)
        finally:
            theirs.close()
            os.close(output)
            if listener is not None:
                listener.close()
        with self._changed:
            self._changed.wait_for(lambda: self.pid or self._over, timeout=FORK)
            late = not self.pid and not self._over
        if late:
            sweep(self._folder.name, SHELL_MARK)
        return not late

    def recall(self) -> int:
        """Begin no further attempt of the series; how many of its last ones do not begin thereby."""
        with self._changed:
            return len(os.read(self._turns, 65536)) if self._turns >= 0 else 0

    def _make_turns(self, more: int) -> None:
        """Let so many attempts of a series follow its first."""
        with self._changed:
            if self._turns >= 0:
                os.close(self._turns)
                self._turns = -1
            if more:
                self._turns, write = os.pipe()
                os.write(write, b"." * more)
                os.close(write)

    def _give_to_kept(
        self, series: Sequence[Assignment], place: Place, child: int, output: int, listen: int
    ) -> bool:
        """Let the process of the last attempt be the rank; False where there is none that waits."""
        with self._changed:
            desk, is_free = self._desk, self._is_free
            self._is_free = False
        if desk is None or not is_free or not series[0].keep:
            return False
        with self._changed:
            self.pid = self._first = self._kept  # before it can end
        try:
            zygote.request(desk, series, place, child, output, listen=listen, turns=self._turns)
        except OSError:  # it has just died
            with self._changed:
                self.pid = 0
            return False
        return True

    def _make_desk(self) -> socket.socket:
        """Where the process that is forked next waits between its attempts; its end."""
        if self._desk is not None:
            hang_up(self._desk)
        self._desk, theirs = socket.socketpair()
        threading.Thread(target=self._attend, args=(self._desk,), daemon=True).start()
        return theirs

    def _attend(self, desk: socket.socket) -> None:
        """Its attempts end when it says that it is free for the next."""
        with contextlib.suppress(OSError):
            while desk.recv(1):
                with self._changed:
                    if desk is not self._desk:
                        return
                    channel, self._kept, self._is_free = self._channel, self.pid, True
                if channel is not None:
                    self._end(channel, 0)

    def trim(self) -> None:
        """Cut a rank's output where it is longer than :data:`MOST`: of it all, only the end stays."""
        with contextlib.suppress(OSError):
            if os.stat(self._log).st_size <= MOST:
                return
            with open(self._log, "r+b", buffering=0) as log:
                for _ in range(_LOOKS):  # what is printed between the look and the cut would be lost
                    size = os.fstat(log.fileno()).st_size
                    tail = os.pread(log.fileno(), TAIL, size - TAIL)
                    kept = f"[{size - len(tail):,} bytes of output before this were cut]\n".encode() + tail
                    os.pwrite(log.fileno(), kept, 0)  # before the cut: whoever prints appends
                    if os.fstat(log.fileno()).st_size == size:
                        break
                os.ftruncate(log.fileno(), len(kept))

    def look_around(self) -> int:
        """Remember what is below the zygote, in case that it is lost: it alone finds what has left the
        rank's tree and dropped our mark. The zygote's process id, as in :attr:`zygote`.
        """
        if self.zygote:
            self._seen = {pid: owner.identity("", pid) for pid in memory.below(self.zygote)}
        return self.zygote

    def tail(self, size: int = TAIL) -> str:
        """The last of what the rank printed, in bytes at most ``size``."""
        with contextlib.suppress(OSError):
            if not os.stat(self._log).st_size:
                return ""  # soon: most short trials print nothing
        with contextlib.suppress(OSError), self._log.open("rb") as handle:
            handle.seek(max(0, os.fstat(handle.fileno()).st_size - size))
            return handle.read().decode(errors="replace")
        return ""

    def close(self) -> None:
        """Let the zygote end, with all that is below it."""
        self._closing = True
        if self._desk is not None:
            hang_up(self._desk)
        hang_up(self._control)

    def _start(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            process = ahead.start(
                [theirs], str(self._folder), self._preload, self._environment, subprocess.DEVNULL
            )
        self._attach(ours, process)

    def _attach(self, control: socket.socket, process: subprocess.Popen[bytes] | None) -> None:
        self._control, self._has_zygote = control, True
        threading.Thread(target=self._read, args=(control, process), daemon=True).start()

    def _read(self, control: socket.socket, process: subprocess.Popen[bytes] | None) -> None:
        """Starts and exact ends of ranks, until the zygote goes."""
        if process is not None:
            process.wait()  # not the zygote itself, see there
        with contextlib.suppress(OSError), control.makefile("r") as lines:
            for line in lines:
                message = json.loads(line)
                with self._changed:
                    self.zygote = message.get("ready", self.zygote)
                    if "started" in message:
                        self.pid = self._first = message["started"]
                        self._changed.notify_all()
                    mine = message.get("exited") == self._first
                    channel = self._channel
                    if message.get("exited", 0) == self._kept:
                        self._is_free = False
                if mine and channel is not None:
                    self._end(channel, message["code"])
        with self._changed:
            channel, pid = None if self._over else self._channel, self.pid
        if not self._closing:
            # with all that its rank had started: nobody else looks after them now
            sweep(self._folder.name, SHELL_MARK, also=[pid] if pid and channel is not None else [])
            for seen in self._seen.values():
                owner.end(seen)
        self._has_zygote = False
        if channel is not None:
            self._end(channel, None)

    def _end(self, channel: socket.socket, code: int | None) -> None:
        self._ended(channel, code)
        with self._changed:
            self._over = self._over or channel is self._channel
            self._changed.notify_all()


def hang_up(connection: socket.socket) -> None:
    """Close both ways, also while a thread reads it, which keeps the descriptor open."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
