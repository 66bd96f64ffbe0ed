"""The commands that move studies and look after the schema: what they write, say, and refuse."""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa

from storage import Database, SqlStorage, migrations
from storage.owner import identity
from tests.test_moving import filled, plain
from tuner.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a study of every kind of trial."""
    file = tmp_path_factory.mktemp("moving") / "tuner.db"
    filled(f"sqlite:///{file}")
    return file


@pytest.fixture
def run(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs a command in an empty folder, on a copy of the database: (exit code, stdout, stderr)."""
    with (
        contextlib.closing(sqlite3.connect(made)) as source,
        contextlib.closing(sqlite3.connect(tmp_path / "tuner.db")) as target,
    ):
        source.backup(target)  # with what is in its WAL
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(arguments)
        out, err = capsys.readouterr()
        return code, out, err

    return call


def one_line(err: str) -> str:
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


# ---------------------------------------------------------------------- export


def test_csv_has_a_row_a_trial(run: Run) -> None:
    code, out, _ = run("export", "s")
    rows = list(csv.DictReader(out.splitlines()))
    assert code == 0
    assert [row["number"] for row in rows] == [str(number) for number in range(8)]
    assert (rows[0]["state"], rows[7]["state"]) == ("COMPLETE", "WAITING")
    assert (rows[1]["attempts"], rows[2]["reason"]) == ("2", "exception")
    assert rows[0]["params_x"] == rows[0]["value"]
    assert json.loads(rows[0]["user_attrs_note"]) == {"number": 0}
    assert rows[0]["start"].endswith("+00:00")


def test_export_takes_the_filters_of_trials(run: Run) -> None:
    def numbers(*arguments: str) -> list[int]:
        code, out, err = run("export", "s", *arguments)
        assert (code, err) == (0, "")
        return [int(row["number"]) for row in csv.DictReader(out.splitlines())]

    everything = numbers()
    complete = numbers("--state", "complete")
    assert 0 < len(complete) < len(everything)
    assert numbers("--where", "number>=3", "--state", "COMPLETE") == [one for one in complete if one >= 3]
    assert numbers("--where", "number>=999") == []


def test_json_is_strict_and_has_everything(run: Run, tmp_path: Path) -> None:
    code, out, _ = run("export", "s", "--format", "json", "--output", "s.json")

    def refuse(text: str) -> None:
        raise AssertionError(text)

    read = json.loads((tmp_path / "s.json").read_text(), parse_constant=refuse)
    assert (code, out) == (0, "wrote s.json\n")
    assert read["study"]["user_attrs"] == {"team": "blue"}
    assert len(read["trials"]) == 8
    assert [step for step, _ in read["trials"][0]["reports"]] == [0, 1, 2, 3]
    assert read["trials"][0]["reports"][2][1] == "nan"
    assert set(read["trials"][0]["distributions"]) == {"x", "k"}


def test_a_spreadsheet_runs_nothing_from_a_study(run: Run, tmp_path: Path) -> None:
    study = optuna.create_study(study_name="evil", storage=f"sqlite:///{tmp_path}/tuner.db")
    trial = study.ask()
    trial.set_user_attr("link", '=HYPERLINK("http://x")')
    trial.suggest_categorical("k", ["@SUM(1)", "-1+1"])
    study.tell(trial, -1.5)
    _, out, _ = run("export", "evil")
    (row,) = csv.DictReader(out.splitlines())
    assert row["user_attrs_link"].startswith("'=")
    assert row["params_k"].startswith("'")
    assert row["value"] == "-1.5"


@pytest.mark.parametrize(
    ("arguments", "says", "code"),
    [
        (["export", "s", "--format", "xml"], "'xml'", 2),
        (["export", "s", "--format", "parquet"], "parquet needs a file", 2),
        (["export", "none"], "'none'", 2),
        (["export", "s", "--output", "no/where.csv"], "no/where.csv", 2),
        (["copy", "sqlite:///tuner.db", "mysql://x/y"], "mysql", 2),
        (["copy", "sqlite:///none.db", "sqlite:///new.db"], "none.db", 2),
        (["copy", "sqlite:///tuner.db", "sqlite:///tuner.db"], "--name NEW", 2),
        (["copy", "sqlite:///tuner.db", "sqlite:///new.db", "--study", "none"], "'none'", 2),
        (["copy", "sqlite:///tuner.db", "sqlite:///new.db", "--name", "t"], "--study", 2),
        (["fork", "s", "s"], "already", 2),
        (["fork", "none", "t"], "'none'", 2),
        (["fork", "s", "t", "--space", "none.py:space"], "none.py", 2),
        (["delete", "none", "--yes"], "'none'", 2),
        (["delete", "s"], "--yes", 2),
        (["db", "check", "--storage", "sqlite:///none.db"], "none.db", 2),
    ],
)
def test_bad_use_is_one_line(run: Run, arguments: list[str], says: str, code: int) -> None:
    got, _, err = run(*arguments)
    assert (got, says in one_line(err)) == (code, True), err


# ---------------------------------------------------------------------- copy, fork, delete


def test_copy_takes_all_studies(run: Run, tmp_path: Path) -> None:
    optuna.create_study(study_name="p", storage=f"sqlite:///{tmp_path}/tuner.db").add_trial(
        optuna.trial.create_trial(value=1.0)
    )
    code, out, _ = run("copy", "sqlite:///tuner.db", "sqlite:///new.db")
    assert (code, out) == (0, "copied s: 8 trials, 28 reports\ncopied p: 1 trials, 0 reports\n")
    assert len(plain(f"sqlite:///{tmp_path}/new.db", "s").trials) == 8


def test_a_copy_that_fails_leaves_no_file_and_can_be_done_again(run: Run, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/tuner.db"
    sql = SqlStorage(url)
    optuna.create_study(study_name="t", storage=sql)
    with sql.lease("t"):
        code, out, err = run("copy", url, "sqlite:///new.db")
    sql.remove_session()
    assert (code, out) == (3, "")
    assert "held by a live driver" in one_line(err)
    assert not list(tmp_path.glob("new.db*"))
    Path("new.db.partial").write_text("what a killed one left")
    assert run("copy", url, "sqlite:///new.db")[0] == 0
    assert [path.name for path in tmp_path.glob("new.db*")] == ["new.db"]
    assert len(plain(f"sqlite:///{tmp_path}/new.db", "s").trials) == 8


def test_a_copy_that_is_killed_or_has_no_room_leaves_nothing_in_the_way(run: Run, tmp_path: Path) -> None:
    program = (
        "import sys; from storage import bulk; from tuner.cli import main; insert = bulk.insert\n"
        "def inserted(connection, table, *rest):\n"
        "    if table.name == 'trial_params': exec(sys.argv[1])\n"
        "    return insert(connection, table, *rest)\n"
        "bulk.insert = inserted\n"
        "sys.exit(main(['copy', 'sqlite:///tuner.db', 'sqlite:///new.db']))"
    )
    full = "import sqlite3; raise sqlite3.OperationalError('database or disk is full')"
    for fault, code in (("import os; os.kill(os.getpid(), 9)", -9), (full, 2)):
        ended = subprocess.run(
            [sys.executable, "-c", program, fault], cwd=tmp_path, capture_output=True, text=True
        )
        assert ended.returncode == code, ended.stderr
        assert not Path("new.db").exists()
    assert "make room on its disk" in one_line(ended.stderr)
    assert not list(tmp_path.glob("new.db*"))
    assert run("copy", "sqlite:///tuner.db", "sqlite:///new.db")[0] == 0
    assert len(plain(f"sqlite:///{tmp_path}/new.db", "s").trials) == 8


def test_fork_says_what_it_left_out(run: Run, tmp_path: Path) -> None:
    (tmp_path / "spaces.py").write_text(
        "from optuna.distributions import *\n"
        "narrow = {'x': FloatDistribution(0, 0.0001), 'k': CategoricalDistribution(['a', None, True])}\n"
    )
    code, out, _ = run("fork", "s", "t", "--space", "spaces.py:narrow")
    assert code == 0
    assert out.startswith("t has 0 trials of s; 8 left out\n")
    assert "  trial 7: is WAITING\n" in out
    assert "is outside FloatDistribution(high=0.0001" in out
    code, out, _ = run("fork", "s", "all", "--json")
    assert json.loads(out)["trials"] == 7


def test_delete_takes_the_study_and_nothing_else(run: Run, tmp_path: Path) -> None:
    run("fork", "s", "t")
    code, out, _ = run("delete", "s", "--yes")
    assert (code, out) == (0, "deleted s with its 8 trials\n")
    assert len(plain(f"sqlite:///{tmp_path}/tuner.db", "t").trials) == 7
    assert run("status", "s")[0] == 2


@pytest.mark.parametrize(
    "command", [["delete", "s", "--yes"], ["copy", "sqlite:///tuner.db", "sqlite:///n.db"]]
)
def test_a_driven_study_is_left_alone(run: Run, tmp_path: Path, command: list[str]) -> None:
    with SqlStorage(f"sqlite:///{tmp_path}/tuner.db").lease("s"):
        code, _, err = run(*command)
    assert code == 3
    assert "'s'" in one_line(err)
    assert len(plain(f"sqlite:///{tmp_path}/tuner.db", "s").trials) == 8


# ---------------------------------------------------------------------- schema


def test_check_and_upgrade_of_a_database_that_is_as_it_should_be(run: Run) -> None:
    code, out, _ = run("db", "check")
    assert code == 0
    assert "nothing is wrong" in out
    code, out, _ = run("db", "upgrade", "--json")
    found = json.loads(out)
    assert (code, found["optuna"], found["revision"], found["problems"]) == (0, 12, migrations.head(), [])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("UPDATE version_info SET schema_version = 13", "upgrade Tuner"),
        ("UPDATE version_info SET schema_version = 11", "optuna storage upgrade"),
        ("UPDATE tuner_alembic_version SET version_num = '9999'", "newer Tuner"),
    ],
)
def test_another_schema_is_refused_before_anything_is_written(
    run: Run, tmp_path: Path, change: str, says: str
) -> None:
    file = tmp_path / "tuner.db"
    connection = sqlite3.connect(file)
    connection.execute(change)
    connection.commit()
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    before = file.read_bytes()
    code, out, _ = run("db", "check")
    assert (code, says in out) == (1, True), out
    for command in (
        ["db", "upgrade"],
        ["status", "s"],
        ["resume", "s"],
        ["copy", "sqlite:///tuner.db", "sqlite:///n.db"],
    ):
        code, _, err = run(*command)
        assert (code, says in one_line(err)) == (2, True), err
    assert file.read_bytes() == before


def test_a_damaged_file_is_said(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "tuner.db"
    content = bytearray(file.read_bytes())
    content[8192:12288] = b"\xff" * 4096
    file.write_bytes(content)
    code, out, err = run("db", "check")
    assert code != 0
    assert "damaged" in out or "cannot be used" in err


@pytest.mark.parametrize("revision", sorted(migrations.known()))
def test_a_database_of_each_revision_is_upgraded_and_read(run: Run, tmp_path: Path, revision: str) -> None:
    shutil.copy(Path(__file__).parent / "data" / f"revision_{revision}.db", tmp_path / "old.db")
    url = f"sqlite:///{tmp_path}/old.db"
    assert run("db", "upgrade", "--storage", url)[0] == 0
    assert run("db", "check", "--storage", url)[0] == 0
    study = plain(url, "s")
    assert [trial.state.name for trial in study.trials[:4]] == ["COMPLETE", "COMPLETE", "FAIL", "PRUNED"]
    assert run("show", "s", "1", "--storage", url)[0] == 0
    database = Database(url)
    with database.read() as connection:
        assert migrations.revision(connection) == migrations.head()
        assert migrations.differences(connection) == []
    database.dispose()


def test_a_study_whose_trials_may_still_run_somewhere_is_not_deleted(run: Run, tmp_path: Path) -> None:
    """As a driver that was killed on a standing cluster leaves it."""
    engine = sa.create_engine(f"sqlite:///{tmp_path}/tuner.db")
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "UPDATE tuner_attempts SET state = 'running', provenance = '{\"cluster\": \"standing/1\"}'"
        )
        owner = json.dumps({**identity("r"), "pid": 2**22, "start_time": "1"})
        connection.exec_driver_sql(
            "UPDATE tuner_leases SET owner = ?, renewed_at = datetime('now')", (owner,)
        )
    code, _, err = run("delete", "s", "--yes")
    assert code == 3
    assert "may still run on a cluster that outlives its driver" in err
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE tuner_leases SET renewed_at = datetime('now', '-2 minutes')")
    engine.dispose()
    assert run("delete", "s", "--yes")[0] == 0
