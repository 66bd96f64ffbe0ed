"""A dashboard as a user starts it, for the tests with a browser."""

from __future__ import annotations

import contextlib
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from socket import create_server

from dashboard import server

__all__ = ["served"]


@contextlib.contextmanager
def served(url: str, folder: Path, password_file: str | None = None) -> Iterator[str]:
    """The address of a dashboard on a database, with its log in ``folder``."""
    with create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    argv, environment = server.command(url, port=port, password_file=password_file)
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(argv, env=environment, stdout=log, stderr=log, cwd=folder)
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2).close()
                    break
                except OSError:
                    assert time.monotonic() < deadline, "the dashboard did not answer"
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=20)
