"""Starts, stops and ends the programs of this folder: ``worker`` and ``driver``."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

__all__ = ["Program", "until"]


class Program:
    """A worker process. Its lines of output can be waited for."""

    def __init__(
        self,
        folder: Path,
        url: str,
        *arguments: str,
        name: str = "one",
        fault: str = "",
        module: str = "worker",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.history = folder / f"{name}.history"
        self._errors = (folder / f"{name}.errors").open("a")
        self._lines: queue.Queue[str] = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"tests.chaos.{module}", url, "s", str(self.history), *arguments],
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=Path(__file__).parents[2],
            env={
                **os.environ,
                "TUNER_SPILL": str(folder / "spill"),
                "TUNER_FAULT": fault,
                **(environment or {}),
            },
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.strip())

    def line(self, seconds: float = 60.0) -> str:
        """Its next line of output."""
        return self._lines.get(timeout=seconds)

    def wait(self, seconds: float = 120.0) -> int:
        """Its exit code."""
        return self._process.wait(timeout=seconds)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def is_stopped(self) -> bool:
        """Whether SIGSTOP has reached it."""
        try:
            stat = Path(f"/proc/{self._process.pid}/stat").read_text()
        except OSError:
            return False
        return stat.rpartition(")")[2].split()[0] == "T"

    def end(self) -> None:
        if self.alive:
            self._process.send_signal(signal.SIGKILL)
        self._process.wait(timeout=30)
        self._errors.close()

    def errors(self) -> str:
        """What it wrote to its standard error, and said last."""
        said = []
        with contextlib.suppress(queue.Empty):
            while True:
                said.append(self._lines.get_nowait())
        return "\n".join([*said, self.history.with_suffix(".errors").read_text()])

    def lines_written(self) -> int:
        """How many lines its history has."""
        return self.history.read_bytes().count(b"\n") if self.history.exists() else 0


def until(condition: object, seconds: float = 60.0) -> None:
    """Wait for a condition, with a bound."""
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)
