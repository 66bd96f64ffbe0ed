"""The file of a SQLite database goes away, or another takes its place, while it is open."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest

from storage import Database, Displaced, SqlStorage, fence
from tests.test_dashboard import page, texts
from tuner.cli import main
from tuner.cli import status as status_module

Run = Callable[..., tuple[int, str]]

TAKEN_AT = 3
"""Number of the trial in which the file goes away."""

OBJECTIVE = f"""
import os
from pathlib import Path

def objective(trial):
    with open("started", "a") as file:
        file.write(f"{{trial.number}}\\n")
    value = trial.suggest_float("x", 0, 1)
    trial.report(value, 1)
    if trial.number == {TAKEN_AT} and "TAKE" in os.environ:
        exec(os.environ["TAKE"])
    return value
"""

REMOVED = 'os.unlink("tuner.db")'
REPLACED = 'Path("other").write_bytes(Path("tuner.db").read_bytes()); os.replace("other", "tuner.db")'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TUNER_SPILL", str(tmp_path / "state"))
    (folder / "train.py").write_text(OBJECTIVE)
    return folder


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs six trials, in one of which a statement is carried out: the exit code and standard error."""

    def call(take: str, url: str = "sqlite:///tuner.db") -> tuple[int, str]:
        monkeypatch.setenv("TAKE", take)
        arguments = ["run", "train.py", "--study", "s", "--trials", "6", "--storage", url]
        code = main([*arguments, "--executor", "inline"])
        monkeypatch.delenv("TAKE")
        return code, capsys.readouterr().err

    return call


def states(file: Path) -> list[str]:
    study = optuna.load_study(study_name="s", storage=f"sqlite:///{file}")
    found = [trial.state.name for trial in study.trials]
    study._storage._backend.engine.dispose()  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize(
    ("take", "said"),
    [
        (REMOVED, "tuner.db was removed"),
        ('[os.unlink(f"tuner.db{end}") for end in ("", "-wal", "-shm")]', "tuner.db was removed"),
        (REPLACED, "tuner.db was replaced"),
        ('os.rename("tuner.db", "elsewhere.db")', "tuner.db was removed"),
        ('os.unlink("tuner.db-wal")', "tuner.db-wal was removed"),
        ('os.unlink("tuner.db-shm")', "tuner.db-shm was removed"),
    ],
    ids=["removed", "removed with its WAL", "replaced", "renamed", "WAL removed", "index removed"],
)
def test_a_run_whose_database_goes_away_stops_at_once_and_loses_nothing(
    here: Path, run: Run, take: str, said: str
) -> None:
    code, err = run(take)
    assert code == 2
    assert err.startswith("error: the database file ")
    assert err.count("\n") == 1
    copy = here / "tuner.rescued.db"
    assert said in err
    assert f"--storage sqlite:///{copy}" in err
    assert Path("started").read_text().split() == [str(number) for number in range(TAKEN_AT + 1)]
    if "tuner.db was" in said:  # else it would be taken for that of another file that is put there
        assert not Path("tuner.db-wal").exists()
        assert Path("tuner.db").exists() is ("replaced" in said)
    assert states(copy)[:TAKEN_AT] == ["COMPLETE"] * TAKEN_AT
    assert main(["resume", "s", "--storage", f"sqlite:///{copy}"]) == 0
    assert states(copy) == ["COMPLETE"] * 6


def test_a_link_that_comes_to_name_another_file_counts_as_replaced(here: Path, run: Run) -> None:
    Path("real").mkdir()
    Path("tuner.db").symlink_to("real/first.db")
    Database("sqlite:///tuner.db").dispose()
    code, err = run(
        'os.unlink("tuner.db"); Path("real/second.db").touch(); os.symlink("real/second.db", "tuner.db")'
    )
    assert code == 2
    assert f"{here}/tuner.db was replaced" in err
    assert states(here / "tuner.rescued.db")[:TAKEN_AT] == ["COMPLETE"] * TAKEN_AT


def test_a_file_that_is_named_by_a_uri_is_watched_too(here: Path, run: Run) -> None:
    code, err = run(REMOVED, "sqlite:///file:tuner.db?uri=true")
    assert code == 2
    assert "tuner.db was removed" in err
    assert states(here / "tuner.rescued.db")[:TAKEN_AT] == ["COMPLETE"] * TAKEN_AT


def test_a_copy_goes_to_the_state_folder_where_that_of_the_database_is_gone(here: Path, run: Run) -> None:
    Path("data").mkdir()
    code, err = run('import shutil; shutil.rmtree("data")', "sqlite:///data/tuner.db")
    assert code == 2
    copy = here.parent / "state" / "tuner.rescued.db"
    assert f"--storage sqlite:///{copy}" in err
    assert states(copy)[:TAKEN_AT] == ["COMPLETE"] * TAKEN_AT


def test_a_copy_that_has_no_room_is_said(here: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "file").touch()
    monkeypatch.setenv("TUNER_SPILL", str(here / "file"))
    Path("data").mkdir()
    code, err = run('import shutil; shutil.rmtree("data"); Path("data").touch()', "sqlite:///data/tuner.db")
    assert code == 2
    assert "what it held is lost" in err
    assert str(here / "file") in err
    assert err.count("\n") == 1


def test_a_second_copy_leaves_the_first_and_has_the_mode_of_the_database(here: Path, run: Run) -> None:
    Path("tuner.rescued.db").write_text("mine")
    Database("sqlite:///tuner.db").dispose()
    os.chmod("tuner.db", 0o600)
    assert "tuner.rescued-2.db" in run(REMOVED)[1]
    assert Path("tuner.rescued.db").read_text() == "mine"
    assert Path("tuner.rescued-2.db").stat().st_mode & 0o777 == 0o600


def test_nothing_is_acknowledged_after_the_file_is_gone(here: Path) -> None:
    sql = SqlStorage("sqlite:///tuner.db")
    study = optuna.create_study(study_name="s", storage=sql)
    with sql.lease("s"):
        study.tell(study.ask(), 1.0)
        trial = study.ask()
        os.unlink("tuner.db")
        with pytest.raises(Displaced, match=r"tuner\.rescued\.db"):
            study.tell(trial, 2.0)
    assert states(here / "tuner.rescued.db") == ["COMPLETE", "RUNNING"]
    with pytest.raises(Displaced):  # without a lease, too
        optuna.create_study(study_name="t", storage=sql)
    assert sorted(path.name for path in here.iterdir()) == ["train.py", "tuner.rescued.db"]
    sql.remove_session()


def test_a_commit_during_which_the_file_goes_is_kept_and_not_acknowledged(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sql = SqlStorage("sqlite:///tuner.db")
    study = optuna.create_study(study_name="s", storage=sql)
    with sql.lease("s"):
        trial = study.ask()
        monkeypatch.setattr(
            fence,
            "reach",
            lambda point: Path("tuner.db").unlink(missing_ok=True) if point == "written" else None,
        )
        with pytest.raises(Displaced):
            study.tell(trial, 2.0)
    assert states(here / "tuner.rescued.db") == ["COMPLETE"]
    sql.remove_session()


def test_a_lease_that_is_only_renewed_notices_too(here: Path) -> None:
    sql = SqlStorage("sqlite:///tuner.db")
    optuna.create_study(study_name="s", storage=sql)
    with sql.lease("s", duration=0.5):
        os.unlink("tuner.db")
        deadline = time.monotonic() + 30
        while not (here / "tuner.rescued.db").exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
    sql.remove_session()


def test_one_who_watches_a_removed_database_ends_with_a_line(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    sql = SqlStorage("sqlite:///tuner.db")
    optuna.create_study(study_name="s", storage=sql)
    monkeypatch.setattr(status_module.time, "sleep", lambda seconds: os.unlink("tuner.db"))
    with sql.lease("s"):
        assert main(["status", "s", "--watch", "--storage", "sqlite:///tuner.db"]) == 2
        err = capsys.readouterr().err
        with contextlib.suppress(Displaced):
            sql.get_all_studies()
    assert "tuner.db was removed while it was in use" in err
    assert err.count("\n") == 1
    sql.remove_session()


def test_the_dashboard_shows_what_is_there_now(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{here}/tuner.db"
    monkeypatch.setenv("TUNER_STORAGE", url)
    for names, said in (("a", "1 study"), ("bc", "2 studies")):
        sql = SqlStorage(url)
        for name in names:
            optuna.create_study(study_name=name, storage=sql)
        sql.remove_session()
        assert said in texts(page())
        Path("tuner.db").unlink()
        assert "there is no database" in texts(page())
