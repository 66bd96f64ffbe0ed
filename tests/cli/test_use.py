"""The command line as a whole: help, JSON, exit codes, and one line for every bad use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from storage import reads, studies
from tests.cli_data import Run, database
from tuner.cli.app import _COMMANDS
from tuner.cli.checks.database import sqlite_finding
from tuner.cli.options import bytes_of, params_of


def test_help_shows_every_command_and_imports_nothing_heavy() -> None:
    code = (
        "import sys; from tuner.cli import main; main(['--help']); main([]);"
        "heavy = {'ray', 'torch', 'optuna', 'sqlalchemy', 'streamlit', 'rich', 'pandas'} & set(sys.modules);"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in _COMMANDS:
        assert f"\n  {name} " in done.stdout


@pytest.mark.parametrize("name", list(_COMMANDS))
def test_every_command_has_help_with_examples(run: Run, name: str) -> None:
    code, out, _ = run(name, "--help")
    assert code == 0
    assert "Examples:\n" in out
    assert f"tuner {name}" in out


@pytest.mark.parametrize("name", ["studies", "status", "trials", "show", "best", "doctor"])
def test_every_reading_command_takes_storage_and_json(run: Run, made: Path, name: str) -> None:
    arguments = {"studies": [], "doctor": ["--no-ray"]}.get(name, ["objective"])
    code, out, _ = run(name, *arguments, "--json", "--storage", f"sqlite:///{made}/tuner.db")
    assert code == 0
    json.loads(out)


BAD_USE = {
    "unknown command": (["frobnicate"], "No such command 'frobnicate'"),
    "no objective": (["run"], "name an objective"),
    "no study": (["run", "cli_objectives.py", "--trials", "3"], "--study NAME is missing"),
    "no end": (["run", "cli_objectives.py", "--study", "n"], "--trials N or --timeout"),
    "no file": (["run", "nofile.py", "--study", "n", "--trials", "3"], "there is no file nofile.py"),
    "no function": (["run", "cli_objectives.py:zz", "--study", "n", "--trials", "3"], "it has: objective"),
    "no trials": (["run", "cli_objectives.py", "--study", "n", "--trials", "0"], "error: --trials 0: give"),
    "no sampler": (
        ["run", "cli_objectives.py", "--study", "n", "--trials", "3", "--sampler", "tpee"],
        "'tpe'",
    ),
    "no direction": (
        ["run", "cli_objectives.py", "--study", "n", "--trials", "3", "--direction", "up"],
        "'up'",
    ),
    "exists": (["run", "cli_objectives.py", "--study", "two", "--trials", "3"], "'tuner resume two'"),
    "no ranks": (
        ["run", "cli_objectives.py", "--study", "n", "--trials", "3", "--ranks", "0"],
        "--ranks 0:",
    ),
    "bad memory": (["run", "cli_objectives.py", "--study", "n", "--trials", "3", "--memory", "4x"], "'4x'"),
    "bad custom": (["run", "cli_objectives.py", "--study", "n", "--trials", "3", "--custom", "d"], "'d'"),
    "near command": (["statsu", "two"], "'status'"),
    "near option": (["run", "cli_objectives.py", "--study", "n", "--trails", "3"], "--trials"),
    "near sampler": (
        ["run", "cli_objectives.py", "--study", "n", "--trials", "3", "--sampler", "tpee()"],
        "did you mean 'tpe'?",
    ),
    "bad pruner": (
        ["run", "cli_objectives.py", "--study", "n", "--trials", "3", "--pruner", "median(x=1)"],
        "x",
    ),
    "error at import": (
        ["run", "broken_objective.py", "--study", "n", "--trials", "3"],
        "broken_objective.py line 4: ZeroDivisionError: division by zero",
    ),
    "error in syntax": (
        ["run", "broken_syntax.py", "--study", "n", "--trials", "3"],
        "broken_syntax.py line 2: SyntaxError",
    ),
    "missing import": (
        ["run", "broken_import.py", "--study", "n", "--trials", "3"],
        "broken_import.py line 1: ModuleNotFoundError: No module named 'not_installed'",
    ),
    "error at import, one trial": (["run", "broken_objective.py", "--params", "x=1"], "line 4"),
    "broken url": (["studies", "--storage", "postgresql://ann:secret@h:port/x"], "is not a database URL"),
    "other database": (["studies", "--storage", "mysql://h/x"], "not to mysql"),
    "negative timeout": (
        ["run", "cli_objectives.py", "--study", "n", "--timeout", "-1"],
        "--timeout -1.0: give seconds above 0\n",
    ),
    "endless timeout": (["run", "cli_objectives.py", "--study", "n", "--timeout", "inf"], "--timeout inf: "),
    "no concurrency": (
        ["run", "cli_objectives.py", "--study", "n", "--trials", "3", "--max-concurrent", "0"],
        "--max-concurrent 0: ",
    ),
    "bad isolation": (
        ["run", "cli_objectives.py", "--study", "n", "--trials", "3", "--isolation", "none"],
        "--isolation 'none': ",
    ),
    "bad seed": (
        ["run", "cli_objectives.py", "--study", "n", "--trials", "3", "--seed", "-1"],
        "--seed -1:",
    ),
    "bad alert": (
        ["run", "cli_objectives.py", "--study", "n", "--trials", "3", "--alert", "x"],
        "error: --alert 'x' is no web address",
    ),
    "bad amount": (
        ["run", "cli_objectives.py", "--study", "n", "--trials", "3", "--custom", "disk=0"],
        "error: --custom disk=0.0: ",
    ),
    "no folder to send": (
        ["run", "cli_objectives.py", "--study", "n", "--trials", "3", "--working-dir", "none"],
        "error: --working-dir 'none': ",
    ),
    "bad retry": (["resume", "two", "--max-failures", "-2"], "error: --max-failures -2: "),
    "bad cpus, one trial": (["run", "cli_objectives.py", "--params", "x=1", "--cpus", "-1"], "--cpus -1.0: "),
    "bad on_oom": (
        ["run", "cli_objectives.py", "--study", "n", "--trials", "3", "--on-oom", "cry"],
        "--on-oom 'cry': give 'alone' or 'fail'\n",
    ),
    "export state": (["export", "objective", "--state", "x"], "'X'"),
    "export condition": (["export", "objective", "--where", "lr!=3"], "condition 'lr!=3'"),
    "no page": (["trials", "objective", "--page", "0"], "--page"),
    "pipe for passwords": (["dashboard", "--password-file", "pipe"], "pipe is no regular file"),
    "no shell": (["completion", "tcsh"], "'tcsh'"),
    "bad url": (["run", "cli_objectives.py", "--study", "n", "--trials", "3", "--storage", "foo"], "'foo'"),
    "no database": (["studies", "--storage", "sqlite:///none.db"], "none.db"),
    "unknown study": (["status", "digitz"], "it has: objective, two"),
    "unknown trial": (["show", "objective", "99"], "its trials are 0 to 2"),
    "unknown state": (["trials", "objective", "--state", "x"], "'X'"),
    "unknown sort": (["trials", "objective", "--sort", "x"], "'x'"),
    "bad condition": (["trials", "objective", "--where", "lr!=3"], "condition 'lr!=3'"),
    "unknown format": (["best", "objective", "--format", "xml"], "'xml'"),
    "front format": (["best", "two", "--format", "json"], "Pareto front"),
    "not a number": (["show", "objective", "x"], "'x'"),
    "open address": (["dashboard", "--host", "0.0.0.0"], "host 0.0.0.0: another address"),
    "no passwords": (["dashboard", "--password-file", "none"], "none cannot be read"),
    "half of TLS": (["dashboard", "--cert", "pem"], "--cert and --key"),
    "params typo": (["run", "cli_objectives.py", "--params", "x"], "NAME=VALUE"),
    "params missing": (["run", "cli_objectives.py", "--params", "y=1"], "asks for 'x' (FloatDistribution"),
    "params twice": (["run", "cli_objectives.py", "--params", "x=1,x=2"], "'x' is given twice"),
    "params ranks": (
        ["run", "cli_objectives.py", "--params", "x=1", "--ranks", "2", "--executor", "inline"],
        "runs one rank, resources ask for 2",
    ),
    "params study": (["run", "cli_objectives.py", "--params", "x=1", "--study", "n"], "leave --study out"),
    "params of none": (["run", "cli_objectives.py", "--params", "@objective:77"], "no trial 77"),
    "params of front": (["run", "cli_objectives.py", "--params", "@two:best"], "@STUDY:NUMBER"),
    "stop both": (["stop", "objective", "--trial", "1", "--now"], "--trial and --now"),
    "inline ranks": (
        ["run", "cli_objectives.py", "--study", "n", "--trials", "1", "--executor", "inline", "--ranks", "2"],
        "one rank",
    ),
    "inline gpus": (
        ["run", "cli_objectives.py", "--study", "n", "--trials", "1", "--executor", "inline", "--gpus", "99"],
        "99 GPUs",
    ),
}


@pytest.mark.parametrize("case", list(BAD_USE))
def test_bad_use_is_one_line_with_exit_2_and_writes_nothing(run: Run, made: Path, case: str) -> None:
    arguments, said = BAD_USE[case]
    before = {path.name for path in made.iterdir()}, studies.names(database(made))
    code, _, err = run(*arguments)
    assert code == 2, err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err
    after = {path.name for path in made.iterdir()} - {"__pycache__"}, studies.names(database(made))
    assert after[0] <= before[0] | {"tuner.db-wal", "tuner.db-shm"}
    assert after[1] == before[1]


def test_an_error_that_nobody_foresaw_is_one_line_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(reads, "studies", broken)
    code, _, err = run("studies")
    assert (code, err.count("\n")) == (1, 1)
    assert "ZeroDivisionError" in err
    monkeypatch.setenv("TUNER_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        run("studies")


def test_an_interrupt_exits_130(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(reads, "studies", interrupted)
    assert run("studies")[0] == 130


def test_a_password_is_never_shown(run: Run) -> None:
    pytest.importorskip("psycopg")
    code, out, err = run("studies", "--storage", "postgresql://ann:secret@127.0.0.1:1/tuner")
    assert code == 2
    assert "secret" not in out + err


def test_doctor_warns_of_the_sqlite_bug_and_names_the_fix(run: Run) -> None:
    assert sqlite_finding((3, 51, 2)).state == "warning"
    assert "3.51.3" in sqlite_finding((3, 40, 1)).fix
    assert sqlite_finding((3, 51, 3)).state == "ok"
    code, out, _ = run("doctor", "--no-ray")
    assert code == 0
    assert "nothing is wrong" in out


def test_doctor_exits_1_when_something_is_wrong(run: Run, made: Path) -> None:
    code, out, _ = run("doctor", "--no-ray", "--storage", "mysql://ann:secret@h/x")
    assert code == 1
    assert "1 wrong" in out
    assert "secret" not in out
    code, out, _ = run("doctor", "--no-ray", "--json", "--storage", f"sqlite:///{made}/missing/x.db")
    assert code == 1
    assert [one["name"] for one in json.loads(out) if one["state"] == "wrong"] == ["database"]


def test_sizes_and_parameters_are_read_from_text() -> None:
    assert [bytes_of(text) for text in ("4GiB", "500 MB", "64", "1.5k")] == [4 * 2**30, 500_000_000, 64, 1500]
    assert params_of(["a=1,b=x y", "c=[1, 2],d='p,q'", "e=None", "f=1e-3"]) == {
        "a": 1,
        "b": "x y",
        "c": [1, 2],
        "d": "p,q",
        "e": None,
        "f": 0.001,
    }


def test_an_output_without_space_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "tuner", "--help"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith("error: there is no space left where this writes to; make room")


@pytest.mark.parametrize("closed", ["1", "2", "0, 1, 2"])
def test_a_run_with_closed_streams_runs_all_the_same(made: Path, closed: str) -> None:
    name = f"closed {closed}"
    code = f"import os; [os.close(one) for one in ({closed},)]; os.execv(sys.executable, sys.argv[1:])"
    given = (
        "run",
        "cli_objectives.py:objective",
        "--study",
        name,
        "--direction",
        "minimize",
        "--trials",
        "1",
    )
    command = [sys.executable, "-m", "tuner", *given, "--executor", "inline"]
    ended = subprocess.run(
        [sys.executable, "-c", f"import sys; {code}", *command],
        cwd=made,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    study = optuna.load_study(study_name=name, storage=f"sqlite:///{made}/tuner.db")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"]


def test_a_name_that_the_output_cannot_hold_is_one_line(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/tuner.db"
    optuna.create_study(study_name="größe", storage=url)
    ended = subprocess.run(
        [sys.executable, "-m", "tuner", "studies", "--storage", url],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "PYTHONIOENCODING=utf-8, or give --json" in ended.stderr
