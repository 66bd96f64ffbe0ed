"""What is refused before anything is written, and the schema of our tables."""

from __future__ import annotations

import shutil
from pathlib import Path

import optuna
import pytest
import sqlalchemy as sa

from storage import Database, Unavailable, database, mask_url, migrations, sqlite_file


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("tuner.db", "not a database URL"),
        ("postgresql://ann:secret@db:port/tuner", r"ann:\*\*\*@db:port/tuner' is not a database URL"),
        ("mysql://ann:secret@host/db", "not to mysql"),
        ("sqlite://", "in memory is lost"),
        ("sqlite://tuner.db", "lacks a slash; write sqlite:///FILE.db"),
        ("sqlite://folder/tuner.db", "lacks a slash; write sqlite:///FILE.db"),
        ("sqlite:///file::memory:?cache=shared&uri=true", "in memory is lost"),
        ("sqlite:///file:x?mode=memory&cache=shared&uri=true", "in memory is lost"),
        ("sqlite:////nowhere/at/all/tuner.db", "does not exist"),
        ("postgresql://ann:secret@127.0.0.1:1/db", "cannot be used"),
    ],
)
def test_a_database_that_cannot_be_used_is_refused_in_one_line(url: str, part: str) -> None:
    with pytest.raises(Unavailable, match=part) as caught:
        Database(url, timeout=3)
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_file_that_is_no_database_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database, but a line of text\n" * 9)
    (tmp_path / "folder.db").mkdir()
    for name, step in (("text.db", "name a SQLite file"), ("folder.db", "it is a folder: name a file in it")):
        with pytest.raises(Unavailable, match=step):
            Database(f"sqlite:///{tmp_path}/{name}")


def test_of_many_who_make_a_database_at_once_each_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, failures = (
        optuna.storages.RDBStorage,
        [1, 2, 3],
    )  # another one was first, at one step after the other

    def makes(*given: object, **named: object) -> object:
        if failures:
            raise RuntimeError(f"UNIQUE constraint failed: {failures.pop()}")
        return make(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(optuna.storages, "RDBStorage", makes)
    found = Database(f"sqlite:///{tmp_path}/tuner.db")
    with found.read() as connection:
        assert {"studies", "tuner_studies"} <= set(sa.inspect(connection).get_table_names())
    found.dispose()


def test_reading_a_missing_file_does_not_make_it(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="there is no database"):
        Database(f"sqlite:///{tmp_path}/none.db", create=False)
    assert list(tmp_path.iterdir()) == []


def test_a_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_file, "file_system", lambda folder: "nfs4")
    with pytest.raises(Unavailable, match="network file system"):
        Database(f"sqlite:///{tmp_path}/tuner.db")
    assert list(tmp_path.iterdir()) == []


def test_the_models_and_the_head_revision_agree(empty_url: str) -> None:
    made = Database(empty_url)
    with made.read() as connection:
        assert migrations.differences(connection) == []
        assert migrations.revision(connection) == migrations.head()
    made.dispose()


@pytest.mark.parametrize(
    ("statement", "part"),
    [
        ("UPDATE version_info SET schema_version = 11", "optuna storage upgrade"),
        ("UPDATE version_info SET schema_version = 13", "upgrade Tuner"),
        ("UPDATE tuner_alembic_version SET version_num = '9999'", "upgrade Tuner"),
    ],
    ids=["older Optuna", "newer Optuna", "newer Tuner"],
)
@pytest.mark.fault("25: a database of another schema")
def test_another_schema_is_refused_and_nothing_is_written(tmp_path: Path, statement: str, part: str) -> None:
    path = tmp_path / "tuner.db"
    made = Database(f"sqlite:///{path}")
    with made.write() as connection:
        connection.execute(sa.text(statement))
    made.dispose()
    shutil.copy(path, tmp_path / "before.db")
    with pytest.raises(Unavailable, match=part):
        Database(f"sqlite:///{path}")
    assert path.read_bytes() == (tmp_path / "before.db").read_bytes()


def test_a_revision_that_only_a_newer_optuna_knows_is_one_line(sqlite_url: str) -> None:
    made = Database(sqlite_url)
    with made.write() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = 'v9.9.9.a'"))
    with pytest.raises(Unavailable, match="pip install -U optuna") as error:
        made.optuna_storage()
    assert "\n" not in str(error.value)
    made.dispose()


def test_tables_that_another_program_is_just_making_are_waited_for(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Database(sqlite_url)
    with made.write() as connection:
        row = connection.execute(sa.text("SELECT * FROM version_info")).one()
        connection.execute(sa.text("DELETE FROM version_info"))

    def other(seconds: float) -> None:
        with made.write() as connection:
            connection.execute(
                sa.text("INSERT INTO version_info VALUES (:a, :b, :c)"), dict(zip("abc", row, strict=True))
            )

    monkeypatch.setattr(database.time, "sleep", other)
    Database(sqlite_url).dispose()
    made.dispose()


def test_a_database_of_plain_optuna_gets_our_tables_beside_its_own(empty_url: str) -> None:
    if empty_url.startswith("sqlite"):
        plain = optuna.storages.RDBStorage(empty_url)
    else:
        plain = optuna.storages.RDBStorage(str(empty_url))
    optuna.create_study(study_name="before", storage=plain)
    made = Database(empty_url)
    with made.read() as connection:
        names = sa.inspect(connection).get_table_names()
    assert "tuner_attempts" in names
    assert optuna.load_study(study_name="before", storage=plain).trials == []
    plain.engine.dispose()
    made.dispose()


def test_sqlite_is_opened_for_durable_commits(sqlite_url: str) -> None:
    made = Database(sqlite_url)
    with made.read() as connection:
        assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("--storage=postgresql://ann:secret@db/tuner", "--storage=postgresql://ann:***@db/tuner"),
        ("postgresql+psycopg://ann:se@cr:et@db:5432/t", "postgresql+psycopg://ann:***@db:5432/t"),
        ("redis://:secret@host", "redis://:***@host"),
        ("postgresql://db/t?user=ann&password=secret&x=1", "postgresql://db/t?user=ann&password=***&x=1"),
        ("postgresql//ann:secret@db/t", "postgresql//ann:***@db/t"),
        ("postgresql://db/t?sslpassword=secret", "postgresql://db/t?sslpassword=***"),
        ("host=db PASSWORD=secret", "host=db PASSWORD=***"),
        ("s3://bucket/key", "s3://bucket/key"),
        ("ray://host:10001", "ray://host:10001"),
        ("sqlite:///tuner.db", "sqlite:///tuner.db"),
        ("lr=0.1", "lr=0.1"),
    ],
)
def test_passwords_are_masked(text: str, masked: str) -> None:
    assert mask_url(text) == masked
