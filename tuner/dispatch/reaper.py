"""Ends what a killed driver leaves behind: a process of its own with a pipe to the driver.

Run as ``python -m tuner.dispatch.reaper RUN``. Each line on its input is a pattern of folders to
remove, of which only those that are younger than the reaper go; ``done`` ends it. When the pipe
closes without ``done`` the driver was killed: every process that carries the run's mark is killed
(the local Ray's, the shells', the zygotes', the ranks'), and the folders are removed, with
those of shared data that nobody holds any more. It imports neither Ray nor torch.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tuner import credentials, shared_folder
from tuner.processes import sweep

__all__ = ["Reaper", "main"]


_CLEANED = 10.0  # seconds that the driver waits for its reaper's end


class Reaper:
    """The driver's end: started before the local Ray, told the folders, dismissed at the end."""

    def __init__(self, run: str) -> None:
        home = str(Path(__file__).parents[2])  # where this very Tuner is imported from
        path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH", "")]))
        self._process = subprocess.Popen(
            # -P: a file of the user's in the working folder must not stand in for one of ours
            [sys.executable, "-P", "-m", "tuner.dispatch.reaper", run],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**credentials.without(os.environ), "PYTHONPATH": path},
            start_new_session=True,
            text=True,
        )

    @property
    def pid(self) -> int:
        """The reaper's process."""
        return self._process.pid

    def remove(self, pattern: str) -> None:
        """Name folders that are to go when the driver is killed."""
        self._write(pattern)

    def dismiss(self) -> None:
        """The driver cleaned up itself."""
        self._write("done")
        self.leave()

    def leave(self) -> None:
        """Let it clean up now, as if the driver had been killed, and wait for that."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=_CLEANED)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):  # someone killed it: the driver still cleans up itself
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()


def main() -> None:
    """Wait for the driver's word, or its end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    began = time.time() - 60  # the first import of a busy machine takes a while
    run = sys.argv[1]
    patterns = [f"{glob.escape(tempfile.gettempdir())}/tuner-{glob.escape(run)}-*"]
    for line in sys.stdin:
        if line.strip() == "done":
            return
        patterns.append(line.strip())
    sweep(run, folders=patterns, seconds=20, quiet=1)
    for pattern in patterns:
        for folder in glob.glob(pattern):
            with contextlib.suppress(OSError):
                if os.stat(folder).st_mtime >= began:
                    shutil.rmtree(folder, ignore_errors=True)
    shared_folder.sweep()


if __name__ == "__main__":
    main()
