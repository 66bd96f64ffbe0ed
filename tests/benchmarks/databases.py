"""Empty databases for a run: SQLite files and databases of a PostgreSQL server, gone at its end."""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg

from tests.postgres import postgres_server

__all__ = ["Databases", "temporary"]


class Databases:
    """Makes databases in one folder, and on one server that is started when it is first needed."""

    def __init__(self, folder: Path, cleanup: contextlib.ExitStack) -> None:
        self._folder = folder
        self._cleanup = cleanup
        self._server = ""

    @contextlib.contextmanager
    def empty(self, kind: str) -> Iterator[str]:
        """The URL of an empty database, ``"sqlite"`` or ``"postgres"``, dropped after the block."""
        name = f"bench_{uuid.uuid4().hex[:12]}"
        if kind == "sqlite":
            try:
                yield f"sqlite:///{self._folder}/{name}.db"
            finally:
                for file in self._folder.glob(f"{name}.db*"):
                    file.unlink()
            return
        self._server = self._server or self._start()
        self._on_server(f"CREATE DATABASE {name}")
        try:
            yield _database_url(self._server, name)
        finally:
            self._on_server(f"DROP DATABASE {name} WITH (FORCE)")

    def _start(self) -> str:
        given = os.environ.get("TUNER_TEST_POSTGRES")
        if given:
            return given.replace("postgresql+psycopg://", "postgresql://")
        server = self._cleanup.enter_context(postgres_server())
        return str(server.get_uri())

    def _on_server(self, statement: str) -> None:
        with psycopg.connect(self._server, autocommit=True) as connection:
            connection.execute(statement.encode())


def _database_url(server: str, name: str) -> str:
    """A server's URL for SQLAlchemy with psycopg 3, and another database of it.

    Example:
        >>> _database_url("postgresql://ann:@/postgres?host=/tmp/pg", "bench")
        'postgresql+psycopg://ann:@/bench?host=/tmp/pg'
    """
    place, _, options = server.partition("?")
    place = place.rpartition("/")[0] + f"/{name}" + (f"?{options}" if options else "")
    return place.replace("postgresql://", "postgresql+psycopg://", 1)


@contextlib.contextmanager
def temporary() -> Iterator[Databases]:
    """Databases below a temporary folder (``$TMPDIR``), which is removed with all it holds."""
    with (
        tempfile.TemporaryDirectory(prefix="tuner-bench-", ignore_cleanup_errors=True) as folder,
        contextlib.ExitStack() as cleanup,
    ):
        yield Databases(Path(folder), cleanup)
