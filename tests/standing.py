"""A Ray cluster that outlives its drivers, started and ended by a test: ``ray start --head``."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tuner.processes import ray_processes, sweep

__all__ = ["standing_ray"]

_MARK = "TUNER_TEST_RAY"


@contextlib.contextmanager
def standing_ray(cpus: int = 2) -> Iterator[str]:
    """Its address. Everything of it, and all that it ran, is ended with the block."""
    # short: the paths of Ray's sockets have a limit
    folder = tempfile.mkdtemp(prefix="rs-", dir="/tmp")
    mark = os.path.basename(folder)
    port = _free_port()
    command = [
        *(str(Path(sys.executable).parent / "ray"), "start", "--head", f"--port={port}"),
        *(f"--num-cpus={cpus}", f"--temp-dir={folder}", "--include-dashboard=false"),
        *("--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats"),
    ]
    environment = {
        **os.environ,
        _MARK: mark,
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_enable_metrics_collection": "0",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    try:
        assert done.returncode == 0, done.stderr + done.stdout
        yield f"127.0.0.1:{port}" if f"127.0.0.1:{port}" in done.stdout else _address(done.stdout, port)
    finally:
        sweep(mark, _MARK, folders=[folder], seconds=10)
        assert ray_processes([folder]) == []
        shutil.rmtree(folder, ignore_errors=True)


def _address(output: str, port: int) -> str:
    """As ``ray start`` prints it."""
    words = output.replace("'", " ").split()
    return next(word for word in words if word.endswith(f":{port}"))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
