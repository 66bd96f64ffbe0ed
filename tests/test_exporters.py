"""Exports after the fact and live: what other programs read, again and again, and what fails alone."""

from __future__ import annotations

import gc
import json
import logging
import math
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pyarrow.parquet
import pytest

import tuner
from storage import Database, SqlStorage, exports
from storage.exports import ExportedStudy, ExportedTrial
from tests.trials_data import RUNNING, fill_states
from tuner.cli import main
from tuner.exporters import live_export, series

PLUGIN = '''
import threading
from tuner.exporters import Exporter

class Kept(Exporter):
    """Keeps what it is given."""
    takes = "running"
    made = []
    fail = set()
    blocked = threading.Event()
    given = threading.Event()

    def __init__(self, output):
        super().__init__(output)
        self.studies, self.trials, self.ended, self.closed = [], [], [], 0
        self.made.append(self)

    def begin(self, study):
        self.studies.append(study)

    def trial(self, trial):
        if self.output_is("block"):
            self.blocked.wait(60)
        if trial.number in self.fail:
            raise ConnectionError("http://ann:secret@host is away")
        self.trials.append(trial)
        self.given.set()

    def end(self, study):
        self.ended.append(study)

    def close(self):
        self.closed += 1

    def output_is(self, text):
        return self.where == text

class NoExporter:
    def __init__(self, output):
        pass
'''

ENTRIES = """[tuner.exporters]
kept = kept_exporter:Kept
broken = kept_exporter:NoExporter
absent = package_that_is_not_there:Exporter
"""


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of a database with trials in every state; see :mod:`tests.trials_data`."""
    url = f"sqlite:///{tmp_path_factory.mktemp('states')}/tuner.db"
    fill_states(url)
    return url


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The exporter ``kept`` of somebody else's package, which is installed."""
    folder = tmp_path / "site"
    (folder / "kept_exporter-1.0.dist-info").mkdir(parents=True)
    (folder / "kept_exporter.py").write_text(PLUGIN)
    (folder / "kept_exporter-1.0.dist-info" / "METADATA").write_text("Name: kept-exporter\nVersion: 1.0\n")
    (folder / "kept_exporter-1.0.dist-info" / "entry_points.txt").write_text(ENTRIES)
    monkeypatch.syspath_prepend(folder)
    import kept_exporter  # type: ignore[import-not-found]

    yield kept_exporter.Kept
    del sys.modules["kept_exporter"]


def all_of(url: str, name: str = "states") -> tuple[ExportedStudy, list[ExportedTrial]]:
    database = Database(url, create=False)
    try:
        study = exports.study(database, name)
        return study, list(exports.trials(database, study, exports.trial_ids(database, study)))
    finally:
        database.dispose()


# ---------------------------------------------------------------------- what an exporter is given


def test_an_exporter_is_given_what_counts_in_the_end(states: str) -> None:
    study, trials = all_of(states)
    assert (study.objectives, list(study.space)) == (("value",), ["lr", "optimizer"])
    assert study.attr_names == ("note",)
    assert [trial.number for trial in trials] == list(range(10))
    retried = trials[6]
    assert (retried.attempts, retried.state) == (2, "COMPLETE")
    assert [step for step, _ in retried.reports] == [0, 1, 2, 3]  # each step once
    assert trials[7].reports[1] == (1, math.inf)
    assert trials[3].constraints == {"size": -2.0}
    assert trials[0].metrics == {"train/loss": ((0, 1.0),)}
    assert (trials[4].reason, trials[4].values, trials[5].reason) == ("exception", (), "nan")
    assert not trials[RUNNING["running"]].finished
    assert study.best_number is not None
    assert [one.step for one in study.checkpoint] == [3]


def test_a_study_of_several_objectives_and_of_optunas_own(sqlite_url: str) -> None:
    study = optuna.create_study(study_name="two", storage=sqlite_url, directions=["minimize", "maximize"])
    study.set_metric_names(["loss", "accuracy"])
    study.optimize(lambda trial: (trial.suggest_int("n", 1, 9), math.inf), n_trials=2)
    found, trials = all_of(sqlite_url, "two")
    assert found.objectives == ("loss", "accuracy")
    assert (found.uid, found.checkpoint, trials[0].attempts) == ("", (), 0)
    assert dict(series.series(found.objectives, trials[0])) == {
        "objective/loss": [(0, trials[0].values[0])],
        "objective/accuracy": [(0, math.inf)],
    }


def test_a_study_of_any_size_needs_no_memory(sqlite_url: str) -> None:
    store = SqlStorage(sqlite_url)
    study = optuna.create_study(study_name="big", storage=store)
    space = {"x": optuna.distributions.FloatDistribution(0, 1)}
    with store.lease("big"):
        study.add_trials(
            optuna.trial.create_trial(value=0.1, params={"x": 0.5}, distributions=space) for _ in range(600)
        )
    database = Database(sqlite_url, create=False)
    found = exports.study(database, "big")
    most = 0
    for count, _ in enumerate(exports.trials(database, found, exports.trial_ids(database, found))):
        if count % 50 == 0:
            most = max(most, sum(type(one) is ExportedTrial for one in gc.get_objects()))
    database.dispose()
    assert count == 599
    assert most <= 2 * exports.PAGE + 10


@pytest.mark.parametrize("name", ["digits", "a b/c", "..", "", "x" * 300, "übung"])
def test_names_for_files_are_safe_and_stay_apart(name: str) -> None:
    made = series.safe(name)
    assert "/" not in made
    assert made not in ("", ".", "..")
    assert len(made) < 200
    assert made == series.safe(name)
    assert made != series.safe(f"{name}@")


# ---------------------------------------------------------------------- files


def test_parquet_has_everything_in_columns_of_its_types(states: str, tmp_path: Path) -> None:
    assert tuner.exporters.export("states", "parquet", str(tmp_path / "s.parquet"), storage=states)
    table = pyarrow.parquet.read_table(tmp_path / "s.parquet")
    rows = table.to_pylist()
    types = {name: str(table.schema.field(name).type) for name in table.schema.names}
    assert (types["params_lr"], types["params_optimizer"], types["value"]) == ("double", "string", "double")
    assert json.loads(table.schema.metadata[b"tuner"])["study"] == "states"
    assert [row["number"] for row in rows] == list(range(10))
    assert rows[7]["reports"][1] == {"step": 1, "value": math.inf}
    assert rows[0]["metrics"] == [{"name": "train/loss", "step": 0, "value": 1.0}]
    assert rows[3]["constraints"] == [{"name": "size", "value": -2.0}]
    assert (rows[4]["reason"], rows[4]["value"], rows[6]["attempts"]) == ("exception", None, 2)
    assert json.loads(rows[0]["user_attrs_note"]) == "=trial 0"
    assert rows[0]["start"].utcoffset().total_seconds() == 0


def test_parquet_of_parameters_of_mixed_types(sqlite_url: str, tmp_path: Path) -> None:
    def objective(trial: optuna.Trial) -> float:
        trial.suggest_categorical("mixed", [1, "one", None, True])
        trial.suggest_categorical("flag", [True, False])
        trial.suggest_categorical("number", [1, 2.5])
        trial.suggest_int("large", 2**63, 2**63)
        if trial.number:
            trial.suggest_int("late", 1, 3)
        return 1.0

    study = optuna.create_study(study_name="m", storage=sqlite_url)
    study.optimize(objective, n_trials=2)
    tuner.exporters.export("m", "parquet", str(tmp_path / "m.parquet"), storage=sqlite_url)
    table = pyarrow.parquet.read_table(tmp_path / "m.parquet")
    types = [str(table.schema.field(f"params_{name}").type) for name in ("mixed", "flag", "number", "late")]
    assert types == ["string", "bool", "double", "int64"]
    first = study.trials[0].params["mixed"]
    assert table["params_mixed"].to_pylist()[0] == (None if first is None else str(first))
    assert table["params_large"].to_pylist() == [str(2**63)] * 2
    assert table["params_late"].to_pylist()[0] is None


# ---------------------------------------------------------------------- plug-ins


def test_a_plug_in_of_others_is_used_by_its_name(
    states: str, kept: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "kept" in tuner.exporters.names()
    assert main(["export", "states", "--format", "kept", "--output", "there", "--storage", states]) == 0
    assert capsys.readouterr().out == "wrote there\n"
    (made,) = kept.made
    assert [trial.number for trial in made.trials] == list(range(10))
    assert (len(made.studies), len(made.ended), made.closed) == (1, 1, 1)


@pytest.mark.parametrize(
    ("form", "output", "says"),
    [
        ("xml", None, "there is no exporter 'xml'; there are: absent, broken, csv, json, kept, mlflow,"),
        ("absent", None, "cannot be imported (No module named 'package_that_is_not_there')"),
        ("broken", None, "is no tuner.exporters.Exporter"),
        ("parquet", None, "parquet needs a file"),
        ("csv", "no/where.csv", "there is no folder"),
        ("csv", ".", "is a folder"),
    ],
)
@pytest.mark.usefixtures("kept")
def test_what_cannot_be_exported_is_one_line(
    states: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    form: str,
    output: str | None,
    says: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    to = [] if output is None else ["--output", output]
    assert main(["export", "states", "--format", form, *to, "--storage", states]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1
    export = form if output is None else f"{form}={output}"
    (tmp_path / "o.py").write_text("def objective(trial): return 1.0\n")
    arguments = ["run", "o.py", "--study", "new", "--trials", "1", "--executor", "inline", "--export", export]
    if form not in ("csv",) or output is not None:
        assert main(arguments) == 2
        assert says in capsys.readouterr().err
        assert not (tmp_path / "tuner.db").exists()


@pytest.mark.parametrize("form", ["csv", "json", "parquet"])
def test_a_full_disk_is_one_line_and_the_file_before_stays(
    states: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    form: str,
) -> None:
    monkeypatch.setattr("tuner.exporters.files.open", lambda *_: open("/dev/full", "wb"), raising=False)  # noqa: SIM115
    output = tmp_path / "out"
    output.write_text("before")
    assert main(["export", "states", "--format", form, "--output", str(output), "--storage", states]) == 2
    err = capsys.readouterr().err
    assert f"output {output}: cannot be written (No space left on device)" in err
    assert err.count("\n") == 1
    assert [one.name for one in tmp_path.iterdir() if "out" in one.name] == ["out"]
    assert output.read_text() == "before"


# ---------------------------------------------------------------------- live


def run(url: str, objective: Callable[[Any], Any], n_trials: int, name: str = "s", **options: Any) -> Any:
    study = tuner.create_study(name, storage=url, sampler="random", seed=1, load_if_exists=True)
    return tuner.optimize(study, objective, n_trials, executor="inline", progress=False, **options)


def test_a_trial_is_exported_while_it_runs_and_again_when_it_has_ended(
    sqlite_url: str, kept: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_export, "PACE", 0.01)

    def objective(trial: tuner.Trial) -> float:
        x = trial.suggest_float("x", 0, 1)
        trial.report(x, 0)
        if trial.number == 0:
            assert kept.given.wait(60)  # while it runs
        if trial.number == 1:
            trial.suggest_int("late", 1, 3)
        return x

    run(sqlite_url, objective, 3, callbacks=[tuner.exporters.live("kept", "there")])
    made = kept.made[-1]  # the one before it was made to see whether it can be
    states = [(trial.number, trial.state) for trial in made.trials]
    assert states[0] == (0, "RUNNING")
    assert [one for one in states if one[1] == "COMPLETE"] == [(n, "COMPLETE") for n in range(3)]
    assert "late" in made.studies[-1].space  # told before the trial that has it
    assert made.ended[0].states == {"COMPLETE": 3}
    assert made.closed == 1
    assert not any(thread.name.startswith("tuner-export") for thread in threading.enumerate())


def test_an_exporter_that_fails_is_said_once_and_fails_nothing_and_catches_up(
    sqlite_url: str, kept: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(live_export, "PACE", 0.01)
    kept.fail.update(range(100))
    callback = tuner.exporters.live("kept")
    study = run(sqlite_url, lambda trial: trial.suggest_float("x", 0, 1), 5, callbacks=[callback])
    assert len(study.trials) == 5
    assert kept.made[-1].trials == []
    said = [record.message for record in caplog.records if "export to kept" in record.message]
    assert len(said) == 2
    assert "fails (ConnectionError: http://ann:***@host is away); the run goes on" in said[0]
    assert "tuner export s --format kept" in said[1]
    kept.fail.clear()
    run(sqlite_url, lambda trial: trial.suggest_float("x", 0, 1), 6, callbacks=[callback])
    assert sorted({trial.number for trial in kept.made[-1].trials if trial.finished}) == list(range(6))


def test_an_exporter_that_hangs_does_not_hold_up_the_run(
    sqlite_url: str, kept: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(live_export, "PARTING", 0.2)
    study = run(sqlite_url, lambda trial: 1.0, 30, callbacks=[tuner.exporters.live("kept", "block")])
    assert len(study.trials) == 30
    assert "was not done within 0.2 s; 'tuner export s --format kept'" in caplog.text
    hanging = [thread for thread in threading.enumerate() if thread.name == "tuner-export-kept"]
    kept.blocked.set()
    for thread in hanging:
        thread.join(60)
        assert not thread.is_alive()


def test_a_file_is_written_at_the_end_of_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "o.py").write_text("def objective(trial): return trial.suggest_float('x', 0, 1)\n")
    arguments = ["run", "o.py", "--study", "s", "--trials", "3", "--executor", "inline"]
    assert main([*arguments, "--export", "csv=s.csv", "--export", "parquet=s.parquet"]) == 0
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 4
    assert pyarrow.parquet.read_table(tmp_path / "s.parquet").num_rows == 3
    assert main(["resume", "s", "--trials", "4", "--executor", "inline", "--export", "csv=s.csv"]) == 0
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 5
    assert capsys.readouterr().err == ""


def test_messages_of_a_long_outage_stay_few(caplog: pytest.LogCaptureFixture) -> None:
    class Away(tuner.exporters.Exporter):
        def trial(self, trial: ExportedTrial) -> None:
            raise AssertionError("nothing is there to be exported")

    with caplog.at_level(logging.WARNING):
        pump = live_export.Pump(Away(None), "away", "sqlite:////no/where.db", "s")
        pump.start()
        pump.stop()
    assert caplog.text.count("export to away") == 1
