"""What serves a database: its version, its clock, whether it can be written to."""

from __future__ import annotations

import time
from dataclasses import dataclass

import sqlalchemy as sa

from storage.database import Database

__all__ = ["Server", "look"]


@dataclass(frozen=True, kw_only=True)
class Server:
    """What was found; of SQLite, which has no server, the version and nothing else.

    Attributes:
        version: such as ``"PostgreSQL 17.2"``.
        ahead: seconds that its clock is ahead of this machine's; ``unsure``: how wrong that may be.
        read_only: it is a replica, or set so.
        connections_left: that another program may open.
    """

    version: str
    ahead: float | None = None
    unsure: float = 0.0
    read_only: bool = False
    connections_left: int | None = None


def look(database: Database) -> Server:
    """What serves the database; nothing is written.

    Raises:
        Unavailable: it does not answer.
    """
    with database.errors(), database.read() as connection:

        def ask(text: str) -> str:
            return str(connection.execute(sa.text(text)).scalar_one())

        if database.is_sqlite:
            mode = ask("PRAGMA journal_mode").upper()
            return Server(version=f"SQLite {ask('SELECT sqlite_version()')}, journal {mode}")
        began = time.time()
        there = float(ask("SELECT extract(epoch FROM clock_timestamp())"))
        ended = time.time()
        left = "SELECT current_setting('max_connections')::int - count(*) FROM pg_stat_activity"
        return Server(
            version=f"PostgreSQL {ask('SHOW server_version').split()[0]}",
            ahead=there - (began + ended) / 2,
            unsure=(ended - began) / 2,
            read_only=ask("SELECT pg_is_in_recovery() OR current_setting('transaction_read_only') = 'on'")
            == "True",
            connections_left=int(ask(left)),
        )
