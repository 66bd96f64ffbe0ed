"""What holds for every command of the command line: help, JSON, plain output, completion."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import tuner
from tests.cli_data import OBJECTIVES
from tuner.cli import main
from tuner.cli.app import cli

CONTRACT = (
    *("run", "resume", "status", "studies", "trials", "show", "best", "stop", "retry", "enqueue", "replay"),
    *("export", "copy", "fork", "delete", "db check", "db upgrade", "dashboard", "doctor", "completion"),
)
WITHOUT_JSON = {
    "export": "its --format is what it prints",
    "dashboard": "it serves until it is ended",
    "completion": "it prints a script",
}
WITHOUT_STORAGE = {"copy": "it takes two", "completion": "it reads none"}


def commands(group: click.Group = cli, path: str = "") -> Iterator[tuple[str, click.Command]]:
    ctx = click.Context(group)
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


TREE = dict(commands())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tree")
    (folder / "tree_objectives.py").write_text(OBJECTIVES)
    study = tuner.create_study("digits", storage=f"sqlite:///{folder}/tuner.db", sampler="random", seed=1)
    tuner.optimize(
        study, f"{folder}/tree_objectives.py:objective", n_trials=2, executor="inline", progress=False
    )
    tuner.create_study("another study", storage=f"sqlite:///{folder}/tuner.db")
    return folder


def test_the_tree_is_the_contract() -> None:
    assert sorted(TREE) == sorted(CONTRACT)


@pytest.mark.parametrize("path", list(TREE))
def test_every_command_explains_itself_with_an_example(path: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*path.split(), "--help"]) == 0
    out = capsys.readouterr().out
    assert "Examples:\n" in out
    assert f"  tuner {path}" in out.partition("Examples:")[2]
    assert max(map(len, out.splitlines())) <= 100
    for param in TREE[path].params:
        if isinstance(param, click.Option):
            assert param.help, f"{path} {param.name} has no help"


@pytest.mark.parametrize("path", list(TREE))
def test_every_command_has_json_and_storage_or_a_reason_not_to(path: str) -> None:
    options = {option for param in TREE[path].params for option in param.opts}
    assert ("--json" in options) is not (path in WITHOUT_JSON)
    assert ("--storage" in options) is not (path in WITHOUT_STORAGE)


PLAIN = [
    *(["studies"], ["status", "digits"], ["status", "digits", "--watch"], ["trials", "digits"]),
    *(["show", "digits"], ["show", "digits", "0"], ["best", "digits"], ["db", "check"]),
    ["doctor", "--no-ray"],
]


@pytest.mark.parametrize("arguments", PLAIN, ids=" ".join)
@pytest.mark.parametrize("as_json", [False, True])
def test_what_is_no_terminal_gets_plain_lines(
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    as_json: bool,
) -> None:
    monkeypatch.chdir(made)
    assert main([*arguments, *(["--json"] if as_json else [])]) == 0
    out, err = capsys.readouterr()
    assert "\x1b" not in out + err
    assert "\r" not in out + err
    if as_json:
        json.loads(out)


def test_a_run_in_a_pipe_prints_plain_lines_and_its_end_as_json(
    made: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    arguments = ["tree_objectives.py", "--study", "piped", "--trials", "2", "--executor", "inline"]
    assert main(["run", *arguments, "--progress", "--json"]) == 0
    out, err = capfd.readouterr()
    assert "\x1b" not in out + err
    assert "piped: 2/2 finished" in err
    end = json.loads(out)
    assert (end["name"], end["states"], end["failures"]) == ("piped", {"COMPLETE": 2}, [])
    assert main(["resume", "piped", "--trials", "3", "--json", "--no-progress"]) == 0
    assert json.loads(capfd.readouterr().out)["states"] == {"COMPLETE": 3}


def test_acting_commands_answer_in_json(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(made)
    assert main(["fork", "digits", "gone", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["trials"] == 2
    assert main(["delete", "gone", "--yes", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["deleted"], found["trials"], found["files_deleted"]) == ("gone", 2, False)


# ---------------------------------------------------------------------- completion


def complete(folder: Path, words: str, shell: str = "bash") -> list[str]:
    """What a shell is told at the end of these words."""
    count = len(words.split()) - (not words.endswith(" "))
    environment = {
        **os.environ,
        "_TUNER_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": words,
        "COMP_CWORD": str(count),
    }
    environment.pop("TUNER_STORAGE", None)
    done = subprocess.run(
        [sys.executable, "-m", "tuner"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


def test_commands_options_and_names_of_studies_are_completed(made: Path) -> None:
    assert complete(made, "tuner st") == ["status", "studies", "stop"]
    assert "--max-concurrent" in complete(made, "tuner run --max")
    assert complete(made, "tuner status d") == ["digits"]
    # a name that a shell would take apart is not offered
    assert "another study" not in complete(made, "tuner status ")


def test_completion_fails_at_nothing(made: Path, tmp_path: Path) -> None:
    assert complete(tmp_path, "tuner status ") == []
    (tmp_path / "tuner.toml").write_text("nonsense")
    assert complete(tmp_path, "tuner status ") == []
    (tmp_path / "tuner.toml").unlink()
    (tmp_path / "tuner.db").write_text("this is no database")
    assert complete(tmp_path, "tuner status ") == []
    shutil.copy(made / "tuner.db", tmp_path / "other.db")
    assert complete(tmp_path, "tuner status --storage sqlite:///other.db d") in ([], ["digits"])
    lock = sqlite3.connect(made / "tuner.db", isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    try:
        assert complete(made, "tuner status d") == ["digits"]
    finally:
        lock.close()


def test_completion_imports_nothing_heavy(made: Path) -> None:
    program = (
        "import os, sys; from tuner.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "sys.exit(str({'ray', 'torch', 'optuna', 'sqlalchemy', 'rich'} & set(sys.modules) or '') or 0)"
    )
    environment = {
        **os.environ, "_TUNER_COMPLETE": "bash_complete", "COMP_WORDS": "tuner show d", "COMP_CWORD": "2",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=made,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "plain,digits\n", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_each_shell_is_one_that_it_can_read(
    shell: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "_TUNER_COMPLETE" in script
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"there is no {shell} here")
    file = tmp_path / "script"
    file.write_text(script)
    done = subprocess.run([program, "-n", str(file)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
