"""Ends what a killed driver leaves behind: a process of its own with a pipe to the driver.

Run as ``python -m tuner.dispatch.reaper RUN``. Lines on its input name folders to remove;
``done`` ends it. When the pipe closes without ``done`` the driver was killed: every process that
carries the run's mark is killed (the local Ray's, the shells', the zygotes', the ranks'), and
the folders are removed. It imports neither Ray nor torch.
"""

from __future__ import annotations

import glob
import shutil
import signal
import subprocess
import sys
import tempfile

from tuner.processes import sweep

__all__ = ["Reaper", "main"]


class Reaper:
    """The driver's end: started before the local Ray, told the folders, dismissed at the end."""

    def __init__(self, run: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tuner.dispatch.reaper", run],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
        )

    @property
    def pid(self) -> int:
        """The reaper's process, which a sweep spares."""
        return self._process.pid

    def remove(self, folder: str) -> None:
        """Name a folder that is to go when the driver is killed."""
        self._write(folder)

    def dismiss(self) -> None:
        """The driver cleaned up itself."""
        self._write("done")
        self._process.wait(timeout=10)

    def _write(self, line: str) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return


def main() -> None:
    """Wait for the driver's word, or its end."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    run, folders = sys.argv[1], []
    for line in sys.stdin:
        if line.strip() == "done":
            return
        folders.append(line.strip())
    sweep(run, seconds=20)
    for folder in [*folders, *glob.glob(f"{tempfile.gettempdir()}/tuner-{run}-*")]:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
