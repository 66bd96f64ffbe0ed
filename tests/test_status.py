"""``tuner status``: the driver's own view, from the database."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import optuna
import pytest

import storage
import tuner
from storage import studies
from tests.cli_data import OBJECTIVES
from tuner.cli import main
from tuner.cli import status as module
from tuner.cli.source import known_study
from tuner.snapshot import Snapshot


class Recorder:
    """A display that keeps what it was shown."""

    def __init__(self) -> None:
        self.last: Snapshot | None = None

    def update(self, snapshot: Snapshot) -> None:
        self.last = snapshot

    def close(self, snapshot: Snapshot | None, message: str) -> None:
        self.last = snapshot


@pytest.mark.parametrize("name", ["objective", "two", "fails"])
def test_the_database_gives_what_the_driver_shows(url: str, tmp_path: Path, name: str) -> None:
    file = tmp_path / f"status_{name}.py"
    file.write_text(OBJECTIVES)
    ways = ["minimize", "maximize"] if name == "two" else ["minimize"]
    study = tuner.create_study("s", storage=url, directions=ways, sampler="random", seed=1)
    shown = Recorder()
    elapsed = []
    for budget in (1, 3):  # what counts is the newest run
        tuner.optimize(study, f"{file}:{name}", n_trials=budget, executor="inline", progress=shown)
        assert shown.last is not None
        elapsed.append(shown.last.elapsed)
    database = storage.Database(url)
    found = module.snapshot_of(database, known_study(database, "s"))
    database.dispose()
    assert (found.seconds, found.elapsed) == (shown.last.seconds, shown.last.elapsed)
    assert elapsed[1] == elapsed[0] + shown.last.seconds
    assert 0 < elapsed[0] < elapsed[1]  # of both runs, without what lay between
    for field in ("study", "directions", "states", "n_trials", "finished_here", "retrying", "leaders"):
        assert getattr(found, field) == getattr(shown.last, field), field
    for field in ("best", "best_number", "best_params", "running"):
        assert getattr(found, field) == getattr(shown.last, field), field
    assert sum(found.reasons.values()) == found.states.get("FAIL", 0)
    assert bool(found.leaders) is (name == "two")
    assert found.phase == "ended"


def running_study(url: str) -> optuna.Study:
    """A study of Optuna's alone, with a trial that runs."""
    study = optuna.create_study(study_name="plain", storage=url)
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    trial = study.ask()
    trial.suggest_float("lr", 0.25, 0.25)
    for step in range(3):
        trial.report(step / 2, step)
    return study


def test_a_running_trial_has_its_curve_and_parameters(
    sqlite_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LANG", "C.UTF-8")
    monkeypatch.delenv("LC_ALL", raising=False)
    running_study(sqlite_url)
    assert main(["status", "plain", "--storage", sqlite_url]) == 0
    out = capsys.readouterr().out
    (line,) = [line for line in out.splitlines() if "#2 " in line]
    for part in ("▁▅█", " 1 ", "step 2", "of another program", "lr=0.25"):
        assert part in line
    assert "\x1b" not in out
    monkeypatch.setenv("LANG", "C")
    assert main(["status", "plain", "--storage", sqlite_url]) == 0
    assert capsys.readouterr().out.isascii()


def test_watching_redraws_in_place_until_the_driver_ends(
    sqlite_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tuner.create_study("s", storage=sqlite_url)
    study.add_trial(optuna.create_trial(value=1.0))
    database = storage.Database(sqlite_url)
    record = studies.find(database, "s")
    assert record is not None
    lease = storage.Lease(database, record.uid, study_name="s", run="test")
    lease.acquire()
    looks = []

    def next_look(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 1:
            study.add_trial(optuna.create_trial(value=0.5))
        else:
            lease.release()

    monkeypatch.setattr(module.time, "sleep", next_look)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["status", "s", "--watch", "--storage", sqlite_url]) == 0
    out = capsys.readouterr().out
    assert len(looks) == 2
    assert out.count("\x1b[J") == 2  # each frame but the first takes the place of the one before
    first, _, last = (re.sub(r"\x1b\[[0-9;]*m", "", frame) for frame in out.split("\x1b[J"))
    assert "best 1 " in first
    assert f"process {os.getpid()}" in first
    assert "best 0.5 " in last
    assert "driver  -" in last
    database.dispose()


@pytest.mark.parametrize("first", ["nothing", "an empty file", "another study"])
def test_what_is_watched_may_come_later_with_its_driver(
    sqlite_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    file = Path(sqlite_url.removeprefix("sqlite:///"))
    if first == "an empty file":
        file.touch()
    if first == "another study":
        tuner.create_study("other", storage=sqlite_url)
    assert main(["status", "s", "--storage", sqlite_url]) != 0  # only who watches waits
    assert "waiting" not in capsys.readouterr().err
    database: storage.Database | None = None
    lease: storage.Lease | None = None
    seen = []

    def next_look(seconds: float) -> None:
        nonlocal database, lease
        seen.append(capsys.readouterr())
        if database is None:
            tuner.create_study("s", storage=sqlite_url)
            database = storage.Database(sqlite_url)
        elif '"driver": "none"' in seen[-1].out:
            record = studies.find(database, "s")
            assert record is not None
            lease = storage.Lease(database, record.uid, study_name="s", run="test")
            lease.acquire()
        elif lease is not None:
            lease.release()

    monkeypatch.setattr(module.time, "sleep", next_look)
    assert main(["status", "s", "--watch", "--json", "--storage", sqlite_url]) == 0
    seen.append(capsys.readouterr())
    said, shown = "".join(one.err for one in seen), "".join(one.out for one in seen)
    assert said.count("\n") == 1
    assert "waiting for study 's', Ctrl-C ends the waiting" in said
    assert {"nothing": "no database", "another study": "it has: other"}.get(first, "no study") in said
    assert [json.loads(line)["driver"] for line in shown.splitlines()] == ["none", "live", "none"]
    assert database is not None
    database.dispose()


@pytest.mark.parametrize("is_there", [False, True])
def test_watching_a_study_that_only_optuna_runs_ends_when_it_runs_none(
    sqlite_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    made: list[optuna.Study] = []
    trials: list[optuna.Trial] = []
    looks: list[float] = []

    def next_look(seconds: float) -> None:
        looks.append(seconds)
        assert len(looks) < 10, "it goes on for ever"
        if not made:
            made.append(optuna.create_study(study_name="s", storage=sqlite_url))
        elif not trials:
            trials.append(made[0].ask())
        elif len(made[0].trials) == 1:
            made[0].tell(trials[0], 1.0)
            made[0].ask()
        else:
            made[0].tell(1, 2.0, skip_if_finished=True)

    if is_there:
        next_look(0)
        next_look(0)
    monkeypatch.setattr(module.time, "sleep", next_look)
    assert main(["status", "s", "--watch", "--json", "--storage", sqlite_url]) == 0
    shown = [json.loads(line)["states"] for line in capsys.readouterr().out.splitlines()]
    assert shown[-3:] == [{"RUNNING": 1}, {"COMPLETE": 1, "RUNNING": 1}, {"COMPLETE": 2}]


def test_of_a_trial_whose_program_may_be_gone_it_is_said_once(
    sqlite_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = optuna.create_study(study_name="s", storage=sqlite_url)
    trial = study.ask()
    looks: list[str] = []

    def next_look(seconds: float) -> None:
        looks.append(capsys.readouterr().err)
        if len(looks) == 2:
            trial.report(1.0, 0)
        elif len(looks) == 3:
            monkeypatch.setattr(module, "SILENT", 0.0)
        elif len(looks) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(module.time, "sleep", next_look)
    assert main(["status", "s", "--watch", "--storage", sqlite_url]) == 130
    assert looks[:3] == ["", "", ""]
    assert "as RUNNING (trial 0): its program may be gone, and nobody else runs it" in looks[3]
    assert looks[4:] == ["", ""]


@pytest.mark.filterwarnings("ignore:Heartbeat of storage is supposed")  # with ask and tell
def test_where_optuna_keeps_heartbeats_their_end_ends_the_watching(
    url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    beating = optuna.storages.RDBStorage(url, heartbeat_interval=1)
    study = optuna.create_study(study_name="s", storage=beating)
    trials = [study.ask(), study.ask()]
    beating.record_heartbeat(trials[0]._trial_id)
    looks = 0

    def next_look(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 1:
            monkeypatch.setattr(module, "GONE", 0.0)  # one trial has no heartbeat: nobody can say
        elif looks == 2:
            monkeypatch.setattr(module, "GONE", 60.0)
            beating.record_heartbeat(trials[1]._trial_id)
        elif looks == 3:
            monkeypatch.setattr(module, "GONE", 0.0)

    monkeypatch.setattr(module.time, "sleep", next_look)
    assert main(["status", "s", "--watch", "--storage", url]) == 0
    assert looks == 3
    assert "of what Optuna has as RUNNING: its program is gone" in capsys.readouterr().err
    beating.remove_session()


def test_a_study_that_is_deleted_ends_its_watching_with_a_line(
    sqlite_url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = optuna.create_study(study_name="s", storage=sqlite_url)
    study.ask()
    monkeypatch.setattr(
        module.time, "sleep", lambda _: optuna.delete_study(study_name="s", storage=sqlite_url)
    )
    assert main(["status", "s", "--watch", "--storage", sqlite_url]) == 2
    err = capsys.readouterr().err
    assert err == "error: study 's' was deleted or renamed by another program meanwhile\n"


def test_a_database_that_cannot_come_is_not_waited_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "s", "--watch", "--storage", f"sqlite:///{tmp_path}/none/a.db"]) == 2
    assert "does not exist" in capsys.readouterr().err
