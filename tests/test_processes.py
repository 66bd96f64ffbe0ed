"""Processes of a run are found by their mark and ended with their trees, also after a killed driver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from storage import owner
from tests.files import no_further_file
from tuner.dispatch.reaper import Reaper
from tuner.messages import RankInfo
from tuner.processes import MARK, are_ended, is_gone, kill_tree, marked, sweep

# Starts a child that leaves its session, says so, and waits for ever.
PARENT = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"],
                 start_new_session=True)
time.sleep(600)
"""


def until(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def run() -> Iterator[str]:
    mark = f"test-{uuid.uuid4().hex[:8]}"
    yield mark
    sweep(mark)


def start(run: str) -> subprocess.Popen[str]:
    """A marked process with a child in another session."""
    environment = {**os.environ, MARK: run}
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


def test_a_sweep_ends_every_process_with_the_mark_and_no_other(run: str) -> None:
    ours, other = start(run), start(f"{run}-other")
    assert len(marked(run)) == 2
    assert sweep(run) == 2
    assert ours.wait(timeout=10) == -signal.SIGKILL
    assert marked(run) == []
    assert len(marked(f"{run}-other")) == 2
    sweep(f"{run}-other")
    other.wait(timeout=10)


def test_a_sweep_ends_what_dropped_its_mark_and_left_its_session(run: str) -> None:
    program = """
import subprocess, sys, time
from tuner.processes import become_subreaper
become_subreaper()  # as a zygote is
subprocess.run(["sh", "-c", "env -i setsid sleep 600 & echo $!"])
print("up", flush=True)
time.sleep(600)
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, env={**os.environ, MARK: run}, stdout=subprocess.PIPE, text=True) as ours:
        assert ours.stdout is not None
        dropped = psutil.Process(int(ours.stdout.readline()))
        assert ours.stdout.readline() == "up\n"
        assert until(lambda: dropped.name() == "sleep")
        assert MARK not in dropped.environ()
        assert sweep(run) == 2
        assert until(lambda: not dropped.is_running() or dropped.status() == psutil.STATUS_ZOMBIE)


def test_a_sweep_ends_rays_agents_that_wrote_over_their_mark(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    log = (tmp_path / "logs" / "raylet.out").open("w")
    agent = subprocess.Popen(["ray::DashboardAgent", "600"], executable="/bin/sleep", stdout=log, env={})
    other = subprocess.Popen(["/bin/sleep", "600"], stdout=log, env={})
    try:
        assert sweep("test-none", folders=[f"{tmp_path}*"]) == 1
        assert agent.wait(timeout=10) == -signal.SIGKILL
        assert other.poll() is None
    finally:
        for process in (agent, other):
            process.kill()
            process.wait(timeout=10)


def test_a_sweep_spares_what_it_is_told_to(run: str) -> None:
    process = start(run)
    assert sweep(run, spare=[process.pid]) == 1
    assert process.poll() is None
    assert sweep(run) == 1
    process.wait(timeout=10)


def test_a_tree_is_killed_although_its_root_is_stopped(run: str) -> None:
    process = start(run)
    below = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGSTOP)
    kill_tree(process.pid)
    assert process.wait(timeout=10) == -signal.SIGKILL
    assert psutil.wait_procs(below, timeout=10)[1] == []


def test_killing_a_tree_that_is_gone_does_nothing() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(timeout=20)
    kill_tree(process.pid)


DRIVER = """
import sys, time
from storage import owner
from tests.files import no_further_file
from tuner.dispatch.reaper import Reaper
reaper = Reaper(sys.argv[1])
reaper.remove(sys.argv[2])
print(reaper.pid, flush=True)
time.sleep(600)
"""


def test_the_reaper_of_a_killed_driver_ends_its_processes_and_removes_its_folders(
    run: str, tmp_path: Path
) -> None:
    named, other = tmp_path / "session_1_7", tmp_path / "session_1_8"
    log = Path(tempfile.mkdtemp(prefix=f"tuner-{run}-"))
    for folder in (named, other):
        folder.mkdir()
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, run, str(tmp_path / "session_*_7")], stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    reaper = psutil.Process(int(driver.stdout.readline()))
    process = start(run)
    driver.kill()
    driver.wait(timeout=10)
    assert process.wait(timeout=10) == -signal.SIGKILL
    reaper.wait(timeout=10)
    assert marked(run) == []
    assert not named.exists()
    assert not log.exists()
    assert other.exists()


def test_the_reaper_survives_signals_of_a_terminal_and_leaves_when_it_is_dismissed(run: str) -> None:
    reaper = Reaper(run)
    process = start(run)
    status = Path(f"/proc/{reaper.pid}/status")
    ignored = 1 << signal.SIGINT - 1 | 1 << signal.SIGTERM - 1

    def ignores() -> bool:
        line = next(line for line in status.read_text().splitlines() if line.startswith("SigIgn"))
        return int(line.split()[1], 16) & ignored == ignored

    assert until(ignores)
    os.kill(reaper.pid, signal.SIGINT)
    os.kill(reaper.pid, signal.SIGTERM)
    reaper.dismiss()
    assert not psutil.pid_exists(reaper.pid)
    assert process.poll() is None, "a dismissed reaper kills nothing"
    sweep(run)
    process.wait(timeout=10)


def test_who_may_open_no_further_file_takes_nobody_for_dead(run: str) -> None:
    process = start(run)
    named = owner.identity(run, process.pid)
    rank = RankInfo(rank=0, host="here", node="", pid=process.pid, process=named)
    with no_further_file():
        assert not is_gone(process.pid)
        assert owner.alive(named) is None
        assert not are_ended([rank], seconds=0.05)
        with pytest.raises(OSError, match="Too many open files"):
            owner.identity(run, process.pid)
    assert owner.alive(named)
    sweep(run)
    process.wait(timeout=10)
    assert is_gone(process.pid)
    assert owner.alive(named) is False


def test_the_reaper_imports_neither_ray_nor_torch() -> None:
    code = "import sys, tuner.dispatch.reaper; print({'ray', 'torch', 'optuna'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
