"""The README tells the truth: its commands run, its programs work; and the tree of docs/ is the tree."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

import tuner
from tests.local_cluster import local_cluster
from tuner.cli import main
from tuner.cli.app import _COMMANDS

HOME = Path(__file__).parent.parent
README = (HOME / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    line.removeprefix("$ ").partition("  # ")[0].strip()
    for language, body in BLOCKS
    if language == "console"
    for line in body.splitlines()
    if line.startswith("$ ")
]
SHOWN = dict(re.findall(r"^\$ (\S.*)\n([^$`].*)$", README, flags=re.MULTILINE))
"""Command, and the line that the page shows of its output."""


def start(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    return subprocess.run(
        shlex.split(command),
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Callable[[str], tuple[int, str]]]:
    """Runs a command in the folder: its exit code, and what it printed.

    The first has a local Ray, as on the page; all after it share one of one core. The first of ``tuner`` is
    a process, all after it are run by this one.
    """
    monkeypatch.chdir(tmp_path)
    with contextlib.ExitStack() as stack:
        processes: list[str] = []

        def run(command: str) -> tuple[int, str]:
            program, *words = shlex.split(command)
            if program == "tuner" and "tuner" in processes:
                capfd.readouterr()
                code = main(words)
                return code, "".join(capfd.readouterr())
            if len(processes) == 1:
                monkeypatch.setenv("RAY_ADDRESS", stack.enter_context(local_cluster(cpus=1)))
            processes.append(program)
            done = start(command, tmp_path)
            return done.returncode, done.stdout + done.stderr

        yield run


@pytest.mark.timeout(1200)  # some twenty commands, of which several start ranks
def test_every_command_runs_in_the_order_of_the_page(
    tmp_path: Path, run: Callable[[str], tuple[int, str]]
) -> None:
    for language, body in BLOCKS:
        if language == "python":
            name = body.splitlines()[0].removeprefix("# ")
            (tmp_path / name).write_text(body)
    for command in COMMANDS:
        if command.startswith("make ") or command == "tuner dashboard":
            continue
        code, said = run(command)
        wanted = 1 if command.startswith("tuner stop") else 0  # nothing runs: it says so
        assert code == wanted, f"$ {command}\n{said}"
        assert "Traceback" not in said
        assert said.strip() == SHOWN.get(command, said.strip())
    _, status = run("tuner status digits --json")
    assert '"digits"' in status
    best = tuner.best_checkpoint(tuner.load_study("digits", storage=f"sqlite:///{tmp_path}/tuner.db"))
    torch.nn.Linear(64, 10).load_state_dict(best.state["network"])  # as the page says


@pytest.mark.parametrize("command", [one for one in COMMANDS if one.startswith("make ")])
def test_each_make_target_is_there(command: str) -> None:
    done = start(f"make --dry-run --always-make --no-print-directory {command.split()[1]}", HOME)
    assert done.returncode == 0, done.stderr


def test_the_dashboard_answers_on_the_loopback(tmp_path: Path) -> None:
    assert "tuner dashboard" in COMMANDS
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = str(Path(sys.executable).parent / "tuner")
    storage = f"sqlite:///{tmp_path}/tuner.db"
    tuner.create_study("s", storage=storage)
    server = subprocess.Popen(
        [program, "dashboard", "--port", str(port), "--storage", storage],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/_stcore/health", timeout=2) as answer:
                    assert answer.read() == b"ok"
                break
            except OSError:
                assert time.monotonic() < deadline, "the dashboard did not answer"
                assert server.poll() is None, "the dashboard ended"
    finally:
        server.terminate()
        server.wait(timeout=20)


def test_the_tree_names_every_module() -> None:
    named = set(re.findall(r"\w+\.py", (HOME / "docs" / "tree.md").read_text()))
    commands = {path.name for path in (HOME / "tuner" / "cli").glob("*.py")}
    ours = {
        path.name
        for package in ("tuner", "storage", "objectives", "dashboard")
        for path in (HOME / package).rglob("*.py")
        if path.name != "__init__.py" and "versions" not in path.parts and path.parent.name != "views"
    }
    each_command = {f"{module}.py" for module in _COMMANDS.values()}
    assert ours - named - (commands & each_command) == set()
    assert named - ours - {"__init__.py"} == set()
