"""Runs from the command line: a study, a resume, a single trial."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import storage
import tuner
from storage import reads, studies
from tests.cli_data import Run, database
from tuner.cli import run as run_module


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


def test_a_run_with_nothing_to_do_starts_no_ray_and_says_once_how_it_ended(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.init", lambda **options: pytest.fail("Ray was started"))
    again = ("run", "cli_objectives.py", "--study", "objective", "--trials", "3", "--load-if-exists")
    for arguments in (again, ("resume", "objective", "--executor", "ray")):
        code, out, err = run(*arguments, "--progress")
        assert code == 0, err
        assert out.startswith("objective: 3 complete; budget of 3 trials spent\nbest ")
        assert err.startswith("objective: 3/3 finished (3 complete, 0 pruned, 0 failed), 0 running, best ")
        assert err.count("\n") == 1


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


def test_a_study_is_run_and_read_on_each_database(run: Run, empty_url: str) -> None:
    if empty_url.startswith("postgresql"):  # a server's database is there before its tables
        assert run("studies", "--storage", empty_url)[0] == 0
        assert "no study yet" in run("status", "n", "--storage", empty_url)[2]
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
        empty_url,
    ]
    assert "n (new)" in run(*arguments, "--dry-run")[1]
    assert run(*arguments)[0] == 0
    for command in ("status", "trials", "show", "best"):
        assert run(command, "n", "--storage", empty_url)[0] == 0
    assert run("trials", "n", "--sort", "duration", "--storage", empty_url)[0] == 0


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
    assert err.endswith("'tuner resume broken' goes on, once that is repaired\n")


def test_a_file_that_has_changed_is_named(run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "edited.py"
    text = "def objective(trial):\n    trial.report(1.0, 0)\n    return trial.suggest_float('x', 0, 1)\n"
    start = ("run", str(file), "--study", "edited", "--executor", "inline", "--load-if-exists", "--trials")
    file.write_text(text)
    said = f"{file} has changed since study 'edited' last ran"
    for trials in ("1", "2"):
        assert run(*start, trials)[0] == 0
    assert said not in caplog.messages
    file.write_text(text + "# another line\n")
    assert run(*start, "3")[0] == 0
    assert said in caplog.messages
    assert " 1 report, 1 at step 0" in run("show", "edited", "0")[1]


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


@pytest.mark.parametrize(("objective", "code"), [("objective", 0), ("fails", 1)])
def test_a_run_whose_output_nobody_reads_to_its_end_exits_as_any_other(
    made: Path, objective: str, code: int
) -> None:
    arguments = ["run", f"cli_objectives.py:{objective}", "--study", f"unread-{objective}", "--trials", "2"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "tuner", *arguments, "--executor", "inline", "--progress"],
        cwd=made,
        stdout=write,
        stderr=write,
        timeout=60,
        check=False,
    )
    os.close(write)
    assert done.returncode == code


def test_the_last_lines_of_a_run_escape_the_name_of_the_study(run: Run) -> None:
    name = "two\nli\x1b[31mnes"
    code, out, _ = run("run", "cli_objectives.py", "--study", name, "--trials", "1", "--executor", "inline")
    assert code == 0
    first, *_, last = out.splitlines()
    assert first.startswith("two\\nli\\x1b[31mnes: 1 complete; ")
    assert "look further: tuner best $'two\\nli\\U0000001b[31mnes', " in last


def test_a_long_name_is_not_said_whole(run: Run) -> None:
    code, _, err = run("status", "n" * 100_000)
    assert code == 2
    assert f"there is no study '{'n' * 57}'... in " in err
    assert len(err) < 500


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
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


def test_what_was_a_function_is_asked_for_in_words_of_the_command_line(run: Run, made: Path) -> None:
    study = tuner.create_study("functions", storage=f"sqlite:///{made}/tuner.db", sampler="random")
    file = f"{made}/cli_objectives.py"
    tuner.optimize(study, file, n_trials=1, executor="inline", resources=lambda params: tuner.Resources())
    code, _, err = run("resume", "functions", "--trials", "2")
    assert (code, err) == (
        2,
        "error: resources was a function, which is not stored; give --ranks, --cpus, --gpus or --memory\n",
    )
    assert run("resume", "functions", "--trials", "2", "--cpus", "1")[0] == 0
    tuner.optimize(
        study, file, n_trials=3, executor="inline", space=lambda trial: trial.suggest_float("x", 0, 1)
    )
    code, _, err = run("resume", "functions", "--trials", "4", "--cpus", "1")
    assert code == 2
    assert "go on in Python, with tuner.resume(NAME, space=...)" in err
