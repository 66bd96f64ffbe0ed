"""The order of a start: what is refused starts nothing, and what a rank does not need does not delay it."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.test_zygote import assignment, attribute, drain_until, until_ended
from tuner.channel import Place
from tuner.dispatch import ahead as aheads
from tuner.dispatch.ahead import MOST, Ahead
from tuner.dispatch.shell import Shell
from tuner.dispatch.surroundings import SHELL_MARK
from tuner.messages import UserAttr
from tuner.outcome import Reason
from tuner.processes import MARK, is_gone, marked
from tuner.resources import Resources

RUN = f"start-tests-{os.getpid()}"

OBJECTIVES = """
import os, sys

def tells(trial):
    trial.set_user_attr("told", {
        "modules": [name for name in ("torch", "torch._dynamo") if name in sys.modules],
        "environment": dict(os.environ),
        "input": sys.stdin.read(),
        "zygote": os.getppid(),
    })
    return 0.0
"""

COMMANDS = """
import sys
from tuner.cli import main
from tuner.dispatch import ahead

common = ["--storage", "sqlite:///tuner.db", "--trials", "1", "--gpus", "0"]
for target, *more in (
    ["good.py:nothing", "--study", "s"],
    ["bad.py", "--study", "s"],
    ["good.py", "--study", "s", "--trial-timeout", "-1"],
    ["good.py", "--study", "s", "--sampler", "no-such"],
    ["good.py", "--study", "there"],
):
    assert main(["run", target, *more, *common]) == 2
    print("ray" in sys.modules, ahead.taken(ahead.mark()), flush=True)
"""


def is_ended(mark: str) -> bool:
    return all(is_gone(pid) for pid in marked(mark))


def until_ended_by_itself(mark: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not is_ended(mark):
        assert time.monotonic() < deadline, [psutil.Process(pid) for pid in marked(mark)]
        time.sleep(0.02)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("objectives") / "start_objectives.py"
    path.write_text(OBJECTIVES)
    return path


@pytest.fixture(scope="module")
def hired() -> Iterator[tuple[Shell, int]]:
    """A shell whose zygote was there before it, and that zygote."""
    ahead = Ahead(RUN, 1, ("torch",), 1)
    ahead._process.wait(timeout=60)  # its parent
    (folder,) = ahead.take(1)
    (waiting,) = marked(os.path.basename(folder), SHELL_MARK)
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("SET_SINCE", "yes")
        shell = Shell(RUN, cpus=1, hide_gpus=True, preload=("torch",), folder=folder)
    yield shell, waiting
    shell.shutdown(1)
    ahead.end()
    assert marked(RUN) == []
    assert not Path(folder).exists()


def test_a_shell_takes_the_zygote_that_waits_for_it_and_gives_it_its_environment(
    hired: tuple[Shell, int], file: Path
) -> None:
    shell, waiting = hired
    shell.start([assignment(file, "tells", run=RUN)], Place())
    messages, _ = drain_until(shell, lambda message: isinstance(message, UserAttr))
    told = attribute(messages)
    assert until_ended(shell).reason == Reason.COMPLETE
    assert told["environment"]["SET_SINCE"] == "yes"
    assert told["environment"][MARK] == RUN
    assert told["input"] == ""
    assert told["zygote"] == waiting
    assert marked(RUN) == [waiting], "the shell has started another"
    # the first rank does not wait for what only an optimiser needs; the next find it imported
    assert told["modules"] == ["torch"]
    shell.start([assignment(file, "tells", run=RUN, number=1)], Place())
    messages, _ = drain_until(shell, lambda message: isinstance(message, UserAttr))
    assert attribute(messages)["modules"] == ["torch", "torch._dynamo"]
    assert attribute(messages)["zygote"] == waiting
    assert until_ended(shell).reason == Reason.COMPLETE


def test_a_shell_starts_its_own_where_the_one_that_waited_has_died(file: Path) -> None:
    run = f"{RUN}-dead"
    ahead = Ahead(run, 1, (), 1)
    ahead._process.wait(timeout=60)
    victims = [psutil.Process(pid) for pid in marked(run)]
    for one in victims:
        one.kill()
    # one whose environment is gone may still hold its socket for a moment
    assert not psutil.wait_procs(victims, timeout=30)[1]
    shell = Shell(run, cpus=1, hide_gpus=True, preload=(), folder=ahead.take(1)[0])
    try:
        shell.start([assignment(file, "tells", run=run)], Place())
        assert until_ended(shell).reason == Reason.COMPLETE
    finally:
        shell.shutdown(1)
        ahead.end()
    assert marked(run) == []


def test_a_zygote_is_started_by_one_that_has_many_files_open(file: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limits[1] < 4096:
        pytest.skip("this system allows no process 4096 files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(4096, limits[0]), limits[1]))
    run = f"{RUN}-many"
    many = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        ahead = Ahead(run, 1, (), 1)
        shell = Shell(run, cpus=1, hide_gpus=True, preload=(), folder=ahead.take(1)[0])
        try:
            shell.start([assignment(file, "tells", run=run)], Place())
            assert until_ended(shell).reason == Reason.COMPLETE
        finally:
            shell.shutdown(1)
            ahead.end()
    finally:
        for number in many:
            os.close(number)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_a_zygote_ends_with_the_driver_that_has_no_shell_for_it() -> None:
    run = f"{RUN}-alone"
    ahead = Ahead(run, 1, (), 1)
    assert ahead._process.stdin is not None
    ahead._process.wait(timeout=60)
    ahead._process.stdin.close()  # as when the driver is killed
    until_ended_by_itself(run)
    assert not Path(ahead.take(1)[0]).exists()
    ahead.end()


def test_one_process_imports_for_several_zygotes_which_end_apart(file: Path) -> None:
    run = f"{RUN}-several"
    ahead = Ahead(run, 1, ("torch",), 3)
    shells = {
        folder: Shell(run, cpus=1, hide_gpus=True, preload=("torch",), folder=folder)
        for folder in ahead.take(2)
    }
    told: dict[str, Any] = {}
    for folder, shell in shells.items():
        shell.start([assignment(file, "tells", run=run)], Place())
        messages, _ = drain_until(shell, lambda message: isinstance(message, UserAttr))
        told[folder] = attribute(messages)
        assert until_ended(shell).reason == Reason.COMPLETE
    for folder in shells:
        mark = os.path.basename(folder)
        assert told[folder]["environment"][SHELL_MARK] == mark
        assert marked(mark, SHELL_MARK) == [told[folder]["zygote"]], "seen from outside it has its own mark"
    assert ahead.take(2) == (), "so many are not left"
    first, second = shells.values()
    first.shutdown(1)
    second.start([assignment(file, "tells", run=run, number=1)], Place())
    assert until_ended(second).reason == Reason.COMPLETE
    second.shutdown(1)
    (left,) = ahead.take(1)
    assert marked(run) == marked(os.path.basename(left), SHELL_MARK)
    assert len(marked(run)) == 1
    ahead.end()
    assert marked(run) == []
    assert not any(Path(folder).exists() for folder in (*shells, left))


@pytest.mark.parametrize(
    ("wanted", "groups", "cores", "count"),
    [
        (Resources(cpus=1, gpus=0), None, 4, 4),
        (Resources(cpus=1, gpus=0), 3, 4, 3),
        (Resources(cpus=1, gpus=0), None, 64, MOST),
        (Resources(ranks=2, cpus=0.5, gpus=0), None, 2, 4),
        (Resources(ranks=3, cpus=1, gpus=0), None, 64, 6),
        (Resources(ranks=12, cpus=1, gpus=0), 2, 64, 12),
        (Resources(cpus=8, gpus=0), None, 4, 1),
        (Resources(ranks=5, cpus=0.1, gpus=0), None, 4, 0),
        (Resources(cpus=1, gpus=1), None, 4, 0),
    ],
)
def test_as_many_are_started_ahead_as_will_be_needed_at_once(
    wanted: Resources, groups: int | None, cores: int, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    made: list[int] = []
    monkeypatch.setattr(aheads, "Ahead", lambda run, cpus, preload, count: made.append(count))
    aheads.start_groups(RUN, wanted, (), groups)
    assert sum(made) == count


def test_what_is_refused_starts_no_ray_and_leaves_nothing(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    (tmp_path / "good.py").write_text("import numpy\ndef objective(trial):\n    return 0.0\n")
    (tmp_path / "bad.py").write_text("import numpy\nraise RuntimeError('broken')\n")
    make = "import tuner; tuner.create_study('there', storage='sqlite:///tuner.db')"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["TMPDIR"] = str(temporary)
    done = subprocess.run(
        [sys.executable, "-c", f"{make}\n{COMMANDS}"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["False None"] * 5
    said = done.stderr.splitlines()
    assert len(said) == 5, done.stderr
    for line, word in zip(said, ("nothing", "broken", "--trial-timeout", "no-such", "there"), strict=True):
        assert line.startswith("error: ")
        assert word in line
    assert list(temporary.iterdir()) == []
