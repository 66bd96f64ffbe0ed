"""A TCP proxy before PostgreSQL's socket that loses what a network loses."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path

__all__ = ["Proxy"]


class Proxy:
    """Listens on a port of this machine and passes everything on.

    Attributes:
        down: refuse new connections, and cut those that are there.
        lose_commit: pass the next COMMIT on, and cut the connection instead of passing its answer.
        lost: set when that has happened.
    """

    def __init__(self, folder: Path, port: int = 5432) -> None:
        self._target = str(folder / f".s.PGSQL.{port}")
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = self._server.getsockname()[1]
        self.lose_commit = False
        self.lost = threading.Event()
        self._down = False
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def down(self) -> bool:
        return self._down

    @down.setter
    def down(self, down: bool) -> None:
        self._down = down
        if down:
            for one in list(self._open):
                self._cut(one)

    def close(self) -> None:
        self.down = True
        self._server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            if self._down:
                client.close()
                continue
            server = socket.socket(socket.AF_UNIX)
            try:
                server.connect(self._target)
            except OSError:
                client.close()
                continue
            self._open |= {client, server}
            lossy = threading.Event()
            for source, sink, ours in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pass, args=(source, sink, ours, lossy), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket, ours: bool, lossy: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if ours and self.lose_commit and b"COMMIT" in data:
                    self.lose_commit = False
                    lossy.set()
                if not ours and lossy.is_set():  # the server has done it, and nobody hears of it
                    self.lost.set()
                    break
                sink.sendall(data)
        self._cut(source)
        self._cut(sink)

    def _cut(self, one: socket.socket) -> None:
        self._open.discard(one)
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
