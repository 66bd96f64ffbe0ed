"""A Ray cluster that outlives its drivers, started and ended by a test: ``ray start``, with nodes to lose.

All nodes are on this machine: they share its clock, its disks and its kernel.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tuner.processes import is_gone, marked, ray_processes, sweep

__all__ = ["StandingRay", "standing_ray"]

_MARK = "TUNER_TEST_RAY"


class StandingRay:
    """A head node, and others that come and go.

    Attributes:
        address: as a driver names it.
        folder: of its files.
        jobs: where its job server is asked, if it has one.
    """

    def __init__(self, folder: str, cpus: float, jobs: bool = False) -> None:
        self.folder = folder
        self._mark = os.path.basename(folder)
        self._environment = {
            **os.environ,
            _MARK: self._mark,
            "RAY_memory_monitor_refresh_ms": "0",
            "RAY_worker_niceness": "0",
            "RAY_enable_metrics_collection": "0",
            "RAY_health_check_period_ms": "500",
            "RAY_health_check_timeout_ms": "1000",
            # as ``ray start --head`` decides by itself, and ``ray start --address`` does not
            "RAY_AUTH_MODE": "token" if (Path.home() / ".ray/auth_token").exists() else "disabled",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }
        port, jobs_port = _free_port(), _free_port()
        printed = self._start(
            *("--head", f"--port={port}", f"--num-cpus={cpus}", f"--temp-dir={folder}"),
            *(("--dashboard-port", str(jobs_port)) if jobs else ("--include-dashboard=false",)),
        )
        self.jobs = f"http://127.0.0.1:{jobs_port}" if jobs else ""
        words = printed.replace("'", " ").split()
        self.address = next(word for word in words if word.endswith(f":{port}"))

    def head_node(self) -> str:
        """Ray's id of the head node."""
        code = (
            "import ray, sys; from tuner.dispatch.connection import show_token; show_token(sys.argv[1]);"
            "ray.init(address=sys.argv[1], logging_level='ERROR', log_to_driver=False);"
            "print(*(n['NodeID'] for n in ray.nodes() if 'node:__internal_head__' in n['Resources']))"
        )
        command = [sys.executable, "-c", code, self.address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.strip()

    def add_node(self, cpus: float = 1, has: str = "") -> int:
        """Add a node; the process id of its raylet.

        Args:
            has: a resource that it alone has, one of it. Its files are then in a folder of its own too.
        """
        before = set(self._raylets())
        own = (f"--resources={json.dumps({has: 1})}", f"--temp-dir={self.folder}/{has}") if has else ()
        self._start(f"--address={self.address}", f"--num-cpus={cpus}", *own)
        (raylet,) = set(self._raylets()) - before
        return raylet

    def lose_node(self, raylet: int) -> None:
        """Kill a node's raylet, without grace; Ray's workers on it end with it."""
        os.kill(raylet, signal.SIGKILL)

    def lose_head(self) -> None:
        """Kill the server that knows all nodes and actors."""
        for pid in self._named("gcs_server"):
            os.kill(pid, signal.SIGKILL)

    def drain_node(self, node: str, seconds: int) -> None:
        """As before a preemption: the node goes in so many seconds."""
        self._ray(
            *("drain-node", f"--address={self.address}", f"--node-id={node}"),
            *("--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=test"),
            f"--deadline-remaining-seconds={seconds}",
        )

    def _start(self, *arguments: str) -> str:
        ports = ("--min-worker-port=0", "--max-worker-port=0", "--disable-usage-stats")
        return self._ray("start", *arguments, *ports)

    def _ray(self, *arguments: str) -> str:
        done = self.ray(*arguments)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    def ray(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Ray's own command."""
        command = [str(Path(sys.executable).parent / "ray"), *arguments]
        return subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=120, check=False
        )

    def _raylets(self) -> list[int]:
        return self._named("raylet")

    def _named(self, name: str) -> list[int]:
        return [pid for pid in marked(self._mark, _MARK) if not is_gone(pid) and _name(pid) == name]


@contextlib.contextmanager
def standing_ray(cpus: float = 2, jobs: bool = False) -> Iterator[StandingRay]:
    """A cluster. Everything of it, and all that it ran, is ended with the block.

    Args:
        jobs: with a job server.
    """
    folder = tempfile.mkdtemp(prefix="rs-", dir="/tmp")  # short: the paths of Ray's sockets have a limit
    try:
        yield StandingRay(folder, cpus, jobs)
    finally:
        sweep(os.path.basename(folder), _MARK, folders=[folder], seconds=10)
        assert ray_processes([folder]) == []
        shutil.rmtree(folder, ignore_errors=True)


def _name(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip()
    return ""


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])
