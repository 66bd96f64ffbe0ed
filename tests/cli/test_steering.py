"""Stop, retry, enqueue and the dashboard from the command line."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest

import storage
import tuner
from storage import commands, studies
from tests.cli_data import Run, database
from tuner.cli import stop as stop_module


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
    assert "nobody drives it, and its" in err
    assert "'tuner resume two --trials N' goes on" in err
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
    for number, said in (
        ("99", "study 'fails' has no trial 99"),
        (str(found["numbers"][0]), "of study 'fails' did not end yet (WAITING)"),
    ):
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
