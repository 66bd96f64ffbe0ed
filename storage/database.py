"""One database: its engine, its schema, and the checks before anything is written.

SQLite and PostgreSQL only. On SQLite every connection runs in WAL mode with
``synchronous=FULL`` and a write transaction starts with ``BEGIN IMMEDIATE``, so that two
processes queue for the lock instead of failing half-way. Connections are never used across a
fork: nothing in Tuner forks a process that holds one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL, Connection, Engine, make_url

from storage import migrations, remedies, spill, sqlite_file
from storage.errors import Displaced, Refused, Unavailable
from storage.masking import mask_url
from storage.shell import quoted
from storage.tables import OPTUNA_SCHEMA

__all__ = ["Database", "normalise_url"]

_PG_OPTIONS = "-c idle_in_transaction_session_timeout=10s"
"""Less than a lease: a driver that is stopped inside a transaction on another host cannot be ended
from here, and its locks would keep its successor out."""

_PG_SOCKET = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
"""A server behind a dead network is given up after 20 to 25 s instead of 15 minutes."""


def normalise_url(text: str) -> URL:
    """The SQLAlchemy URL of a database that Tuner can use.

    Raises:
        Unavailable: not a URL, or another database than SQLite and PostgreSQL.

    Example:
        >>> normalise_url("postgresql://ann@db/tuner").drivername
        'postgresql+psycopg'
    """
    try:
        url = make_url(text.strip())
        backend = url.get_backend_name()
    except (sa.exc.ArgumentError, ValueError):  # such as a port that is no number
        raise Unavailable(
            f"storage {mask_url(text)!r} is not a database URL; "
            "write sqlite:///FILE.db or postgresql://USER@HOST/NAME"
        ) from None
    if backend == "postgresql":
        return url.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise Unavailable(
            f"storage {mask_url(text)!r}: Tuner writes to SQLite and PostgreSQL, not to {backend}"
        )
    if url.host:  # sqlite://tuner.db: one slash too few makes a host of the file
        raise Unavailable(
            f"storage {mask_url(text)!r} lacks a slash; write sqlite:///FILE.db, or sqlite:////FOLDER/FILE.db"
        )
    if sqlite_file.path_of(url) is None:
        raise Unavailable("a SQLite database in memory is lost with its process; write sqlite:///FILE.db")
    return url


class Database:
    """A database that holds Optuna's tables and ours.

    Args:
        url: SQLAlchemy URL, or what :func:`normalise_url` accepts.
        create: make the file and the tables where there are none. With False a database
            without our tables can still be read.
        checked: refuse another schema. False for those who look at it or upgrade it.
        timeout: seconds to wait for another program's lock, and for a connection.
        read_only: the database itself refuses every change on these connections.

    Attributes:
        file: of a SQLite database; None of another.
        holders: how many leases are held through this object. With one, a copy of the database is
            saved when its file goes away: see :meth:`check_file`.

    Raises:
        Unavailable: cannot be reached; an older or newer schema, of Optuna or of ours: then
            nothing has been written.

    Example:
        >>> database = storage.Database("sqlite:///tuner.db")
        >>> str(database), database.is_sqlite
        ('sqlite:///tuner.db', True)
        >>> database.dispose()
    """

    def __init__(
        self,
        url: str | URL,
        *,
        create: bool = True,
        timeout: float = 30.0,
        checked: bool = True,
        read_only: bool = False,
    ) -> None:
        create = create and not read_only
        self.url = normalise_url(url if isinstance(url, str) else url.render_as_string(hide_password=False))
        self.is_sqlite = self.url.get_backend_name() == "sqlite"
        self._timeout = timeout
        self._read_only = read_only
        self._lock = threading.Lock()
        self._anchor: sqlite_file.Anchor | None = None
        self._displaced = ""
        self.file = sqlite_file.path_of(self.url) if self.is_sqlite else None
        self.holders = 0
        if self.file is not None:
            sqlite_file.check(self.file, create)
        self.engine: Engine = self._make_engine()
        self._dbapi: Any = self.engine.dialect.import_dbapi()
        if checked:
            with self.errors():
                self._check_schema(create)

    def __str__(self) -> str:
        return mask_url(self.text).replace("postgresql+psycopg:", "postgresql:", 1)  # as people write it

    @property
    def option(self) -> str:
        """``--storage URL`` for a command that a person pastes into a shell: without a password, which is
        left to ``~/.pgpass`` or ``$PGPASSWORD``.
        """
        secrets = [name for name in self.url.query if mask_url(f"{name}=x") != f"{name}=x"]
        url = self.url.set(password=None).difference_update_query(secrets)
        shown = url.render_as_string(hide_password=False).replace("postgresql+psycopg:", "postgresql:", 1)
        return f"--storage {quoted(shown)}"

    @property
    def text(self) -> str:
        """The URL with its password, for a process that we start; never for a log."""
        return self.url.render_as_string(hide_password=False)

    def _next_step(self, cause: str) -> str:
        if self.file is not None:
            return remedies.sqlite(cause, self.file)
        return remedies.postgresql(cause)

    @contextlib.contextmanager
    def errors(self) -> Iterator[None]:
        """Maps a database that is away, locked or full to :class:`Unavailable`, and a value that it
        cannot hold to :class:`Refused`, in one line.
        """
        try:
            yield
        except sa.exc.IntegrityError:
            raise  # a conflict of rows is the caller's to answer
        except (sa.exc.DataError, OverflowError, UnicodeError) as error:
            cause = str(getattr(error, "orig", None) or error).strip().splitlines()
            raise Refused(f"the database {self} cannot hold a value: {cause[0]}") from error
        except (sa.exc.InterfaceError, sa.exc.DatabaseError) as error:
            said = (str(error.orig or error).strip() or str(error)).splitlines()[0]
            raise Unavailable(
                f"the database {self} cannot be used: {said}{self._next_step(said)}",
                passing=isinstance(error, sa.exc.InterfaceError | sa.exc.OperationalError)
                or _was_ended(error.orig),
            ) from error
        except self._dbapi.DataError as error:  # of a cursor of the driver's own
            raise Refused(f"the database {self} cannot hold a value: {error}") from error
        except self._dbapi.Error as error:
            passing = isinstance(error, self._dbapi.InterfaceError | self._dbapi.OperationalError)
            passing = passing or _was_ended(error)
            text = " ".join(str(error).split())
            raise Unavailable(
                f"the database {self} cannot be used: {text}{self._next_step(text)}", passing=passing
            ) from error
        except optuna.exceptions.StorageInternalError as error:
            raise Unavailable(f"the database {self} cannot be used: {error.__cause__ or error}") from error

    @contextlib.contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection in a read transaction: one consistent view, no lock held on SQLite."""
        with self.engine.connect() as connection:
            if not self.is_sqlite:  # else each statement would see another state
                connection.execution_options(isolation_level="REPEATABLE READ")
            yield connection

    @contextlib.contextmanager
    def write(self) -> Iterator[Connection]:
        """A connection in a write transaction, committed at the end of the block.

        On SQLite the lock is taken at the start.
        """
        with self.engine.connect().execution_options(tuner_write=True) as connection, connection.begin():
            yield connection
        self.check_file()

    def check_file(self) -> None:
        """See that the file of a SQLite database is where it was, and that it is the same.

        It is called before each transaction, and after each commit: what is acknowledged is in a file
        that was there. That costs microseconds.

        Raises:
            Displaced: it was removed or replaced. Where a lease is held, what it held is in a copy, which
                the message names.
        """
        if self.file is None:
            return
        with self._lock:
            if not self._displaced:
                self._anchor = self._anchor or self._anchored(self.file)
                path = self._anchor.displaced() if self._anchor is not None else ""
                if not path:
                    return
                what = f"the database file {path} was {'replaced' if os.path.exists(path) else 'removed'}"
                self._displaced = f"{what} while it was in use; {self._saved()}"
            raise Displaced(self._displaced)

    def _anchored(self, file: Path) -> sqlite_file.Anchor | None:
        """None for a file that cannot be read: the statement that follows says why."""
        try:
            connection: Any = self.engine.raw_connection()
            connection.detach()
            return sqlite_file.Anchor(file, connection.dbapi_connection)
        except (sa.exc.DBAPIError, sqlite3.Error):
            return None

    def _saved(self) -> str:
        assert self._anchor is not None
        if not self.holders:
            return "start again with what is there now"
        folders = (self._anchor.file.parent, spill.folder())
        try:
            folders[-1].mkdir(mode=0o700, parents=True, exist_ok=True)
            copy = self._anchor.rescue(*folders)
        except (OSError, sqlite3.Error) as error:
            where = " or ".join(str(folder) for folder in folders)
            return f"what it held is lost, since no copy of it could be written to {where} ({error})"
        return f"all that it held is in {copy}: go on with --storage sqlite:///{copy}"

    def answers(self) -> bool:
        """Whether the database can be written to now."""
        try:
            with self.errors(), self.write() as connection:
                connection.execute(sa.select(1))
        except Unavailable:
            return False
        return True

    def refusal(self) -> str:
        """Why a driver here could not write to the database, or "". Nothing is changed."""
        try:
            with self.errors(), self.engine.connect().execution_options(tuner_write=True) as connection:
                if sa.inspect(connection).has_table("studies"):
                    connection.execute(sa.text("UPDATE studies SET study_name = study_name WHERE 1 = 0"))
                connection.rollback()
        except Unavailable as error:
            return str(error)
        return ""

    def optuna_storage(self) -> optuna.storages.RDBStorage:
        """Optuna's own storage on this database, for studies that no driver of ours holds."""
        arguments: dict[str, Any] = {"pool_pre_ping": True}
        if self.is_sqlite:
            arguments["connect_args"] = {"timeout": self._timeout}
        try:
            return optuna.storages.RDBStorage(self.text, engine_kwargs=arguments, skip_table_creation=True)
        except RuntimeError as error:  # a revision within a schema that it knows
            text = " ".join(str(error).split()).rstrip(".")
            raise Unavailable(f"the database {self} is refused by Optuna: {text}") from error

    def dispose(self) -> None:
        """Close every connection."""
        with self._lock:
            if self._anchor is not None and not self.holders:
                self._anchor.close()
                self._anchor, self._displaced = None, ""
        self.engine.dispose()

    def _make_engine(self) -> Engine:
        if not self.is_sqlite:
            if importlib.util.find_spec("psycopg") is None:
                raise Unavailable(
                    f"the database {self} needs the PostgreSQL driver: pip install 'tuner[postgres]'"
                )
            options = [self.url.query.get("options", ""), _PG_OPTIONS]
            if self._read_only:
                options.append("-c default_transaction_read_only=on")
            own = " ".join(filter(None, options))  # type: ignore[arg-type]
            return sa.create_engine(
                self.url,
                pool_pre_ping=True,
                pool_recycle=1800,
                connect_args={
                    **_PG_SOCKET,
                    "connect_timeout": max(2, int(self._timeout / 3)),
                    "options": own,
                },
            )
        engine = sa.create_engine(self.url, connect_args={"timeout": self._timeout})

        @event.listens_for(engine, "connect")
        def _connect(connection: sqlite3.Connection, record: object) -> None:
            connection.isolation_level = None  # we begin transactions ourselves
            connection.execute(f"PRAGMA busy_timeout={int(self._timeout * 1000)}")
            connection.execute("PRAGMA synchronous=FULL")
            if self._read_only:  # not mode=ro, which cannot open a WAL that nobody has open
                connection.execute("PRAGMA query_only=ON")

        @event.listens_for(engine, "do_connect")
        def _before(*_: object) -> None:  # SQLite would make a file that is not there
            if self._anchor is not None:
                self.check_file()

        @event.listens_for(engine, "begin")
        def _begin(connection: Connection) -> None:
            self.check_file()
            write = connection.get_execution_options().get("tuner_write", False)
            connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

        return engine

    def _check_schema(self, create: bool) -> None:
        deadline = time.monotonic() + _BEING_MADE
        while self._is_being_made() and time.monotonic() < deadline:
            time.sleep(0.05)
        with self.read() as connection:
            tables = set(sa.inspect(connection).get_table_names())
            if "studies" in tables:
                _check_optuna(connection, tables, str(self))
            current = migrations.revision(connection) if migrations.VERSION_TABLE in tables else None
        head = migrations.head()
        if current is not None and current not in migrations.known():
            raise Unavailable(
                f"the database {self} was written by a newer Tuner (revision {current}, "
                f"this one knows {head}): upgrade Tuner with 'pip install -U tuner'"
            )
        if current is not None and current != head:
            raise Unavailable(
                f"the database {self} is of an older Tuner (revision {current}); "
                f"run 'tuner db upgrade --storage {self}'"
            )
        if create and (current is None or "studies" not in tables):
            self._create(optuna_too="studies" not in tables)

    def _is_being_made(self) -> bool:
        """Another program has just made Optuna's tables, and has yet to write their version."""
        with self.read() as connection:
            if not sa.inspect(connection).has_table("version_info"):
                return False
            return connection.execute(sa.text("SELECT schema_version FROM version_info")).first() is None

    def _create(self, optuna_too: bool) -> None:
        if self.is_sqlite:
            with self.engine.connect() as connection:
                raw = connection.connection.dbapi_connection
                assert raw is not None
                raw.execute("PRAGMA journal_mode=WAL")
            self.dispose()  # the files are others from now on
        if optuna_too:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                _make(lambda: optuna.storages.RDBStorage(self.text).remove_session())
        with self.write() as connection:
            if not self.is_sqlite:  # two programs may start on an empty database at once
                connection.execute(sa.text("SELECT pg_advisory_xact_lock(7463625)"))
            migrations.upgrade(connection)


_BEING_MADE = 5.0  # seconds that another program may take between two steps of it


def _was_ended(error: BaseException | None) -> bool:
    """PostgreSQL ended the session because we slept inside a transaction; it calls that internal."""
    return getattr(error, "sqlstate", None) == "25P03"


def _make(call: Callable[[], None]) -> None:
    """Of programs that create Optuna's tables at once all but one fail, at any of its steps, and find
    what was made when they try again.
    """
    deadline = time.monotonic() + _BEING_MADE
    while True:
        try:
            call()
            return
        except Exception:
            if time.monotonic() >= deadline:
                raise
        time.sleep(0.05)


def _check_optuna(connection: Connection, tables: set[str], shown: str) -> None:
    """Refuse a schema of Optuna that this version was not tested to write."""
    if "version_info" not in tables:
        raise Unavailable(
            f"the database {shown} has a table 'studies' that is not Optuna's; use another database"
        )
    version = connection.execute(sa.text("SELECT schema_version FROM version_info")).scalar()
    if version != OPTUNA_SCHEMA:
        step = (
            "run 'optuna storage upgrade --storage URL'"
            if version is not None and version < OPTUNA_SCHEMA
            else "upgrade Tuner with 'pip install -U tuner'"
        )
        raise Unavailable(
            f"the database {shown} has Optuna's schema {version}, this Tuner writes {OPTUNA_SCHEMA}: {step}"
        )
