"""The command line: what each command prints, its exit code, and one line for every bad use."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

import storage
import tuner
from storage import commands, reads, studies
from tuner.cli import main
from tuner.cli import run as run_module
from tuner.cli import stop as stop_module
from tuner.cli.app import _COMMANDS
from tuner.cli.checks.database import sqlite_finding
from tuner.cli.options import bytes_of, params_of

OBJECTIVES = """
import optuna


def objective(trial):
    x = trial.suggest_float("x", -3, 3)
    kind = trial.suggest_categorical("kind", ["a", "b"])
    for step in range(3):
        trial.report(x * x + step, step)
    trial.log({"half": x / 2}, 2)
    trial.save_checkpoint({"x": x}, 2)
    return x * x + (kind == "b")


def fails(trial):
    trial.suggest_float("x", 1e-5, 1, log=True)
    raise ValueError("boom [x]")


def two(trial):
    x = trial.suggest_float("x", 0, 1)
    return x, 1 - x


def constrained(trial):
    x = trial.suggest_int("x", 0, 9)
    trial.set_constraint("at least 3", 3 - x)
    return x


def prunes(trial):
    raise optuna.TrialPruned()
"""

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with objectives, and a database with a finished study of each kind."""
    folder = tmp_path_factory.mktemp("cli")
    file = folder / "cli_objectives.py"
    file.write_text(OBJECTIVES)
    (folder / "broken_objective.py").write_text("import math\n\nx = 0\ny = 1 / x\n")
    (folder / "broken_syntax.py").write_text("x = 1\ndef objective(trial:\n    pass\n")
    (folder / "broken_import.py").write_text("import not_installed\n")
    os.mkfifo(folder / "pipe", 0o600)
    url = f"sqlite:///{folder}/tuner.db"
    for name, budget in (("objective", 3), ("two", 3), ("constrained", 4), ("fails", 2)):
        ways = ["minimize", "minimize"] if name == "two" else ["minimize"]
        study = tuner.create_study(name, storage=url, directions=ways, sampler="random", seed=1)
        if name == "constrained":
            for x in (1, 5, 4, 8):
                study.enqueue_trial({"x": x})
        tuner.optimize(study, f"{file}:{name}", n_trials=budget, executor="inline", progress=False)
    return folder


@pytest.fixture
def run(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in the folder, on its database: (exit code, stdout, stderr)."""
    monkeypatch.chdir(made)
    monkeypatch.setenv("TUNER_STORAGE", f"sqlite:///{made}/tuner.db")

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def database(folder: Path) -> storage.Database:
    return storage.Database(f"sqlite:///{folder}/tuner.db", create=False)


# ---------------------------------------------------------------------- all commands


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
    "no trials": (["run", "cli_objectives.py", "--study", "n", "--trials", "0"], "n_trials=0"),
    "no sampler": (
        ["run", "cli_objectives.py", "--study", "n", "--trials", "3", "--sampler", "tpee"],
        "'tpe'",
    ),
    "no direction": (
        ["run", "cli_objectives.py", "--study", "n", "--trials", "3", "--direction", "up"],
        "'up'",
    ),
    "exists": (["run", "cli_objectives.py", "--study", "two", "--trials", "3"], "'tuner resume two'"),
    "no ranks": (["run", "cli_objectives.py", "--study", "n", "--trials", "3", "--ranks", "0"], "ranks=0"),
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
        "timeout=-1.0: give seconds above 0",
    ),
    "endless timeout": (["run", "cli_objectives.py", "--study", "n", "--timeout", "inf"], "timeout=inf"),
    "no concurrency": (
        ["run", "cli_objectives.py", "--study", "n", "--trials", "3", "--max-concurrent", "0"],
        "max_concurrent=0",
    ),
    "bad isolation": (
        ["run", "cli_objectives.py", "--study", "n", "--trials", "3", "--isolation", "none"],
        "'none'",
    ),
    "bad seed": (["run", "cli_objectives.py", "--study", "n", "--trials", "3", "--seed", "-1"], "seed=-1"),
    "bad alert": (["run", "cli_objectives.py", "--study", "n", "--trials", "3", "--alert", "x"], "x"),
    "bad on_oom": (
        ["run", "cli_objectives.py", "--study", "n", "--trials", "3", "--on-oom", "cry"],
        "'cry'",
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


# ---------------------------------------------------------------------- run and resume


def test_run_drives_a_study_and_resume_goes_on_with_stored_settings(run: Run, made: Path) -> None:
    arguments = [
        "run",
        "cli_objectives.py",
        "--study",
        "new",
        "--trials",
        "2",
        "--executor",
        "inline",
        "--seed",
        "3",
    ]
    code, out, err = run(*arguments)
    assert (code, err) == (0, "")
    assert "new: 2 complete; budget of 2 trials spent" in out
    code, out, _ = run("resume", "new", "--trials", "3", "--max-failures", "7")
    assert code == 0
    study = reads.study(database(made).engine, "new")
    assert study is not None
    assert study.states == {"COMPLETE": 3}
    assert study.seed == 3
    assert study.settings["executor"] == "inline"
    assert study.settings["retry"]["max_failures"] == 7
    assert study.settings["retry"]["stop_after"] == 5
    assert run(*arguments[:-2], "--load-if-exists")[0] == 0  # the budget is spent: nothing runs again


def test_of_two_runs_of_a_new_study_the_second_is_told_in_options(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path}/race.db"

    def then_another_is_first(name: str, *arguments: object) -> None:
        assert existing(name, *arguments) is None  # type: ignore[arg-type]
        tuner.create_study(name, storage=url)

    existing = run_module.existing
    monkeypatch.setattr(run_module, "existing", then_another_is_first)
    code, out, err = run("run", "cli_objectives.py", "--study", "new", "--trials", "1", "--storage", url)
    assert (code, out) == (2, "")
    assert err == (
        f"error: study 'new' exists already in {url}; choose another name, give --load-if-exists, "
        f"or go on with 'tuner resume new --storage {url}'\n"
    )


def test_a_study_is_run_and_read_on_each_database(run: Run, url: str) -> None:
    if url.startswith("postgresql"):  # a server's database is there before its tables
        assert run("studies", "--storage", url)[0] == 0
        assert "no study yet" in run("status", "n", "--storage", url)[2]
    arguments = [
        "run",
        "cli_objectives.py",
        "--study",
        "n",
        "--trials",
        "2",
        "--executor",
        "inline",
        "--storage",
        url,
    ]
    assert "n (new)" in run(*arguments, "--dry-run")[1]
    assert run(*arguments)[0] == 0
    for command in ("status", "trials", "show", "best"):
        assert run(command, "n", "--storage", url)[0] == 0
    assert run("trials", "n", "--sort", "duration", "--storage", url)[0] == 0


def test_a_study_that_stops_on_failures_exits_1_with_the_objectives_traceback(run: Run) -> None:
    code, _, err = run(
        "run",
        "cli_objectives.py:fails",
        "--study",
        "broken",
        "--trials",
        "9",
        "--executor",
        "inline",
        "--stop-after",
        "2",
    )
    assert code == 1
    assert err.startswith("error: 2 trials in a row failed alike")
    assert "boom [x]" in err
    assert "/tuner/" not in err


def test_a_run_without_a_complete_trial_exits_1(run: Run) -> None:
    code, _, err = run(
        "run",
        "cli_objectives.py:fails",
        "--study",
        "all",
        "--trials",
        "1",
        "--executor",
        "inline",
        "--stop-after",
        "0",
    )
    assert code == 1
    assert "no trial of study 'all' completed" in err


def test_dry_run_says_what_would_run_and_writes_nothing(run: Run, made: Path) -> None:
    before = studies.names(database(made))
    code, out, _ = run(
        "run", "cli_objectives.py", "--study", "later", "--trials", "5", "--executor", "inline", "--dry-run"
    )
    assert code == 0
    for part in ("cli_objectives.py:objective", "later (new)", "5 trials", "sampler tpe", "1 trial at once"):
        assert part in out
    code, out, _ = run(
        "run", "cli_objectives.py", "--study", "n", "--trials", "5", "--dry-run", "--executor", "inline",
        "--storage", "sqlite:///fresh.db",
    )  # fmt: skip
    assert code == 0
    assert not (made / "fresh.db").exists()
    assert studies.names(database(made)) == before


def test_a_held_study_exits_3(run: Run, made: Path) -> None:
    record = studies.find(database(made), "two")
    assert record is not None
    lease = storage.Lease(database(made), record.uid, study_name="two", run="test")
    lease.acquire()
    try:
        code, _, err = run(
            "run", "cli_objectives.py:two", "--study", "two", "--load-if-exists", "--trials", "9"
        )
        assert code == 3
        assert f"process {os.getpid()}" in err
        code, out, _ = run("status", "two")
        assert f"driver  process {os.getpid()}" in out
    finally:
        lease.release()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_exits_130_and_says_how_to_go_on(run: Run, tmp_path: Path, number: int) -> None:
    file, name = tmp_path / f"signals{number}.py", f"interrupted{number}"
    file.write_text(
        f"import os\n\n\ndef objective(trial):\n    os.kill(os.getpid(), {int(number)})\n    return 1.0\n"
    )
    code, _, err = run("run", str(file), "--study", name, "--trials", "50", "--executor", "inline")
    assert code == 130
    assert f"'tuner resume {name}'" in err
    assert "Traceback" not in err
    assert json.loads(run("status", name, "--json")[1])["driver"] == "none"


# ---------------------------------------------------------------------- one trial


def test_params_run_one_trial_here_and_store_nothing(run: Run, made: Path) -> None:
    before = studies.names(database(made)), sorted(path.name for path in made.iterdir())
    code, out, err = run("run", "cli_objectives.py", "--params", "x=0.5,kind=b,zz=1")
    assert code == 0
    assert "step 2  2.25" in out
    assert "step 2  half=0.25" in out
    assert out.splitlines()[-1] == "value 1.25"
    assert "never asked for zz" in err
    after = studies.names(database(made)), sorted(path.name for path in made.iterdir())
    assert after == before


def test_params_of_the_best_trial_give_its_value_again_and_keep_a_checkpoint(
    run: Run, tmp_path: Path
) -> None:
    best = json.loads(run("best", "objective", "--json")[1])["best_trials"][0]
    code, out, _ = run(
        "run", "cli_objectives.py", "--params", "@objective:best", "--checkpoints", str(tmp_path)
    )
    assert code == 0
    assert float(out.splitlines()[-1].removeprefix("value ")) == pytest.approx(best["values"][0], rel=1e-5)
    assert list(tmp_path.rglob("rank-0.pt"))


@pytest.mark.parametrize(
    "way", ["--params x=0.5", "--study ddp --trials 1", "--study dry --trials 1 --dry-run"]
)
def test_an_objective_that_needs_several_ranks_says_how_to_give_it_some(
    run: Run, tmp_path: Path, way: str
) -> None:
    (tmp_path / "parallel.py").write_text(
        "from torch import nn\n\n\ndef objective(trial):\n"
        "    nn.parallel.DistributedDataParallel(nn.Linear(1, 1))\n    return trial.suggest_float('x', 0, 1)"
    )
    storage = ("--storage", f"sqlite:///{tmp_path}/parallel.db")
    given = () if "--params" in way else ("--executor", "inline", *storage)
    code, _, err = run("run", str(tmp_path / "parallel.py"), *way.split(), *given)
    assert code == 1
    said = err.splitlines()[-1]
    if "ddp" in way:
        said = json.loads(run("show", "ddp", "0", "--json", *storage)[1])["attempt_rows"][0]["message"]
    assert "one rank has none: give --ranks 2, or use tuner.torch.prepare" in said


def test_params_for_several_objectives_need_the_directions(run: Run) -> None:
    code, out, _ = run("run", "cli_objectives.py:two", "--params", "@two:0", "--params", "x=0.25")
    assert (code, out) == (0, "value 0.25, 0.75\n")
    code, _, err = run("run", "cli_objectives.py:two", "--params", "x=0.25")
    assert code == 1
    assert "--direction once for each" in err


def test_an_objective_that_raises_shows_its_own_traceback_only(run: Run) -> None:
    code, _, err = run("run", "cli_objectives.py:fails", "--params", "x=0.1")
    assert code == 1
    assert 'raise ValueError("boom [x]")' in err
    assert err.splitlines()[-1] == "error: the trial failed: exception: ValueError: boom [x]"
    assert "tuner/" not in err


def test_an_objective_that_prunes_itself_is_no_failure(run: Run) -> None:
    assert run("run", "cli_objectives.py:prunes", "--params", "x=1")[:2] == (0, "pruned by the objective\n")


# ---------------------------------------------------------------------- reading


def test_studies_lists_and_searches(run: Run) -> None:
    _, out, _ = run("studies", "constr")
    assert "constrained" in out
    assert "objective " not in out.splitlines()[1]
    rows = json.loads(run("studies", "constr", "--json")[1])
    assert [(row["name"], row["states"], row["driver"]) for row in rows] == [
        ("constrained", {"COMPLETE": 4}, "none")
    ]


def test_status_of_an_ended_study_says_why_and_watching_it_ends_at_once(run: Run) -> None:
    for arguments in (["status", "fails"], ["status", "fails", "--watch"]):
        code, out, _ = run(*arguments)
        assert code == 0
        assert "2 failed" in out or "failed 2" in out
    assert "2 x exception: ValueError: boom" in run("status", "fails")[1]
    assert "budget of 2 trials spent" in run("status", "fails")[1]


def test_trials_can_be_filtered_sorted_and_paged(run: Run) -> None:
    page = json.loads(
        run("trials", "constrained", "--sort", "value", "--descending", "--limit", "2", "--json")[1]
    )
    assert [row["values"] for row in page["trials"]] == [[8.0], [5.0]]
    assert page["total"] == 4
    code, out, _ = run("trials", "fails", "--state", "fail", "--limit", "1")
    assert code == 0
    assert "exception" in out
    assert "1 of 2 trials (page 1 of 2)" in out
    assert "0 of 0 trials" in run("trials", "fails", "--state", "pruned")[1]
    where = ("--where", "value>2", "--where", "number<4", "--sort", "value:0", "--json")
    page = json.loads(run("trials", "constrained", *where)[1])
    values = [row["values"][0] for row in page["trials"]]
    assert values == sorted(values)
    assert min(values) > 2
    assert page["total"] == len(values) < 4


def test_show_has_set_up_curve_attempts_and_traceback(run: Run) -> None:
    _, out, _ = run("show", "objective")
    for part in ("random", "cli_objectives.py:objective", "ranks=1", "n_trials=3"):
        assert part in out
    _, out, _ = run("show", "objective", "1")
    for part in ("COMPLETE", "3 reports", "kind", "half", "attempt 1, step 2", f"process {os.getpid()}"):
        assert part in out
    _, out, _ = run("show", "fails", "0")
    assert 'raise ValueError("boom [x]")' in out
    detail = json.loads(run("show", "fails", "0", "--json")[1])
    assert detail["attempt_rows"][0]["exception"] == "ValueError"


def test_show_says_of_each_attempt_that_did_not_end_well_whether_it_was_charged(
    run: Run, sqlite_url: str
) -> None:
    def objective(trial: tuner.Trial) -> float:
        if trial.attempt == 1:
            raise ConnectionError("flaky")
        if trial.attempt == 2:
            raise tuner.CheckpointNotSaved("no room")
        return 1.0

    study = tuner.create_study("again", storage=sqlite_url)
    policy = tuner.Retry(retry_on=("ConnectionError",), backoff=0.0)
    tuner.optimize(study, objective, n_trials=1, executor="inline", retry=policy, progress=False)
    out = run("show", "again", "0", "--storage", sqlite_url)[1]
    for said in ("1  ended  exception, charged  ", "2  ended  checkpoint_not_saved, uncharged  "):
        assert said in out
    assert "3  ended  complete  " in out


def test_a_study_that_only_optuna_knows_can_be_read(run: Run, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/plain.db"
    study = optuna.create_study(study_name="plain", storage=url)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    for arguments in (
        ["studies"],
        ["status", "plain"],
        ["trials", "plain"],
        ["show", "plain"],
        ["best", "plain"],
    ):
        code, out, err = run(*arguments, "--storage", url)
        assert code == 0, err
        assert out
    code, _, err = run("stop", "plain", "--storage", url)
    assert code == 1
    assert "nobody drives it" in err


@pytest.mark.parametrize("form", ["yaml", "json", "python"])
def test_best_writes_parameters_that_read_back_the_same(
    run: Run, form: str, made: Path, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path}/values.db"
    wanted = {"lr": 1e-05, "big": 3e22, "no": "no", "n": 3, "flag": True, "none": None, "text": "a: b # é"}
    study = optuna.create_study(study_name="v", storage=url)
    study.add_trial(
        optuna.trial.create_trial(
            params=wanted,
            distributions={
                key: optuna.distributions.CategoricalDistribution([value])  # type: ignore[list-item]
                if not isinstance(value, float)
                else optuna.distributions.FloatDistribution(0, 1e23)
                for key, value in wanted.items()
            },
            value=1.0,
        )
    )
    code, out, _ = run("best", "v", "--format", form, "--storage", url)
    assert code == 0
    assert _read(form, out) == wanted


def _read(form: str, text: str) -> Any:
    if form == "json":
        return json.loads(text)
    if form == "python":
        names: dict[str, Any] = {}
        exec(text, names)
        return names["params"]
    return pytest.importorskip("yaml").safe_load(text)


def test_best_respects_constraints_and_shows_a_front(run: Run) -> None:
    best = json.loads(run("best", "constrained", "--json")[1])["best_trials"]
    assert [trial["values"] for trial in best] == [[4.0]]
    front = json.loads(run("best", "two", "--json")[1])["best_trials"]
    assert len(front) == 3  # of (x, 1 - x) every trial is on the front
    assert "trial" in run("best", "two")[1]


def test_best_copies_a_checkpoint_that_was_verified(run: Run, tmp_path: Path) -> None:
    code, _, err = run("best", "objective", "--checkpoint", str(tmp_path / "final"))
    assert code == 0
    assert "step 2" in err
    assert (tmp_path / "final" / "rank-0.pt").stat().st_size > 0
    code, _, err = run("best", "objective", "--checkpoint", str(tmp_path / "final"))
    assert code == 2
    assert "not empty" in err
    code, _, err = run("best", "constrained", "--checkpoint", str(tmp_path / "other"))
    assert code == 2
    assert not (tmp_path / "other").exists()


def test_best_without_a_complete_trial_exits_1(run: Run) -> None:
    code, _, err = run("best", "fails")
    assert code == 1
    assert "no complete trial" in err


# ---------------------------------------------------------------------- stop, dashboard, doctor


@pytest.fixture
def driven(made: Path) -> Iterator[storage.StudyRecord]:
    """The study ``two`` while this process holds its lease."""
    record = studies.find(database(made), "two")
    assert record is not None
    lease = storage.Lease(database(made), record.uid, study_name="two", run="test")
    lease.acquire()
    yield record
    lease.release()


def test_stop_without_a_live_driver_says_so_and_leaves_no_command(run: Run, made: Path) -> None:
    code, _, err = run("stop", "two")
    assert code == 1
    assert "nobody drives it" in err
    assert _waiting(made) == []


def test_stop_passes_on_what_the_driver_answers(
    run: Run, made: Path, driven: storage.StudyRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[tuple[str, dict[str, Any]]] = []
    send = commands.send

    def spy(base: storage.Database, uid: str, name: str, arguments: dict[str, Any], author: str) -> int:
        sent.append((name, arguments))
        return send(base, uid, name, arguments, author)

    monkeypatch.setattr(commands, "send", spy)
    monkeypatch.setattr(commands, "result", lambda base, command: "done")
    assert run("stop", "two", "--now")[0] == 0
    assert run("stop", "two", "--trial", "1")[0] == 0
    monkeypatch.setattr(commands, "result", lambda base, command: "trial 1 is not running")
    code, _, err = run("stop", "two", "--trial", "1")
    assert code == 1
    assert "trial 1 is not running" in err
    assert sent == [("stop", {"now": True}), ("stop_trial", {"number": 1}), ("stop_trial", {"number": 1})]
    for command in _waiting(made):
        assert commands.withdraw(database(made), command)


def test_a_silent_driver_is_reported_and_the_command_waits_for_it(
    run: Run, made: Path, driven: storage.StudyRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stop_module, "ANSWER_WITHIN", 0.0)
    code, out, _ = run("stop", "two")
    assert code == 0
    assert "has not answered yet" in out
    (command,) = _waiting(made)
    assert commands.result(database(made), command) is None
    assert commands.withdraw(database(made), command)
    assert not commands.withdraw(database(made), command)


def test_retry_makes_new_trials_and_names_the_command_that_runs_them(run: Run) -> None:
    code, out, _ = run("retry", "fails", "0", "1")
    assert code == 0
    assert out.splitlines()[0].endswith("is a retry of trial 0")
    assert "tuner resume fails" in out
    code, out, _ = run("retry", "fails", "0", "--json")
    found = json.loads(out)
    assert (code, len(found["numbers"])) == (0, 1)
    assert found["needed"] > found["n_trials"]
    for number, said in (("99", "no trial 99"), (str(found["numbers"][0]), "did not end yet (WAITING)")):
        code, _, err = run("retry", "fails", number)
        assert code == 2
        assert said in err
    assert run("retry", "fails")[0] == run("retry", "fails", "x")[0] == 2
    assert run("retry", "none", "1")[0] == 2


def test_enqueue_adds_a_trial_and_says_when_the_budget_does_not_reach(run: Run) -> None:
    code, out, _ = run("enqueue", "fails", "x=0.25")
    assert code == 0
    number = int(out.split()[1])
    needed = number + 1
    assert f"tuner resume fails --trials {needed}' runs all that wait" in out
    code, _, err = run("enqueue", "fails", "x")
    assert code == 2
    assert "'x': write NAME=VALUE" in err
    assert "--params" not in err


@pytest.mark.parametrize(
    ("params", "says"),
    [
        (["kinds=a"], "'kinds'; did you mean 'kind'? it has: kind, x"),
        (["kind=c"], "kind='c' is none of its choices: 'a', 'b'"),
        (["x=fast"], "x='fast': it is a number from -3 to 3"),
        (["x=True"], "x=True: it is a number"),
    ],
)
def test_enqueue_refuses_what_the_study_never_had_unless_it_is_forced(
    run: Run, params: list[str], says: str
) -> None:
    code, _, err = run("enqueue", "objective", *params)
    assert code == 2
    assert says in err
    assert err.count("\n") == 1
    assert run("enqueue", "objective", *params, "--force")[0] == 0


def test_enqueue_warns_of_a_number_out_of_its_range_and_takes_it(run: Run) -> None:
    code, out, err = run("enqueue", "objective", "x=5")
    assert code == 0
    assert "waits in objective" in out
    assert err == "warning: x=5 is outside of its range, -3 to 3\n"


def test_enqueue_knows_a_space_before_the_first_trial(run: Run, tmp_path: Path) -> None:
    space = {"x": optuna.distributions.FloatDistribution(0, 1)}
    study = tuner.create_study("spaced", storage=f"sqlite:///{tmp_path}/s.db")
    tuner.optimize(
        study, lambda trial: trial.params["x"], n_trials=1, space=space, executor="inline", progress=False
    )
    url = f"sqlite:///{tmp_path}/s.db"
    assert "no trial of the study has had" in run("enqueue", "spaced", "y=1", "--storage", url)[2]
    code, out, _ = run("enqueue", "spaced", "x=0.5", "--storage", url)
    assert code == 0
    assert "--objective FILE.py:NAME" in out  # the objective was sent by value: it has to be named


def test_of_a_study_that_tuner_never_ran_the_next_step_is_not_resume(run: Run, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/plain.db"
    optuna.create_study(study_name="plain", storage=url).optimize(
        lambda trial: trial.suggest_float("x", 0, 1), n_trials=1
    )
    for arguments in (["retry", "plain", "0"], ["enqueue", "plain", "x=0.5"]):
        code, out, _ = run(*arguments, "--storage", url)
        assert code == 0
        assert "tuner run FILE.py --study plain --load-if-exists --trials" in out
        assert "resume" not in out


def test_with_a_live_driver_too_the_budget_is_named(run: Run, driven: storage.StudyRecord) -> None:
    assert "tuner resume two --trials" in run("enqueue", "two", "x=0.5")[1]


def _waiting(made: Path) -> list[int]:
    import sqlalchemy as sa

    from storage.tables import commands as table

    with database(made).read() as connection:
        return list(
            connection.execute(sa.select(table.c.command_id).where(table.c.done_at.is_(None))).scalars()
        )


def test_the_dashboard_refuses_a_port_that_is_taken(run: Run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, _, err = run("dashboard", "--port", str(taken.getsockname()[1]))
    assert code == 2
    assert "name another port" in err


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


# ---------------------------------------------------------------------- values


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
