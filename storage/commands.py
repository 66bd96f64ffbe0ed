"""Commands to the driver of a study: rows that it reads, carries out and answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from storage.clock import utcnow
from storage.database import Database
from storage.tables import commands

__all__ = ["result", "send", "withdraw"]


def send(database: Database, study_uid: str, name: str, arguments: Mapping[str, Any], author: str) -> int:
    """Leave a command for the driver and return its id; the driver looks twice a second.

    Args:
        name: ``"stop"`` with ``{"now": bool}``, ``"stop_trial"`` with ``{"number": int}``.
        author: ``host:pid`` of a command line, or the user of the dashboard.
    """
    row = {
        "study_uid": study_uid,
        "name": name,
        "arguments": json.dumps(dict(arguments)),
        "author": author,
        "created_at": utcnow(),
    }
    with database.errors(), database.write() as connection:
        key = connection.execute(commands.insert().values(row)).inserted_primary_key
    assert key is not None
    return int(key[0])


def result(database: Database, command_id: int) -> str | None:
    """What the driver answered, ``"done"`` or why not; None as long as it has not."""
    query = sa.select(commands.c.result).where(
        commands.c.command_id == command_id, commands.c.done_at.is_not(None)
    )
    with database.errors(), database.read() as connection:
        row = connection.execute(query).one_or_none()
    return None if row is None else row.result or "done"


def withdraw(database: Database, command_id: int) -> bool:
    """Take back a command that no driver has answered, so that the next one does not obey it.

    Returns:
        False if a driver was first.
    """
    waiting = (commands.c.command_id == command_id) & commands.c.done_at.is_(None)
    with database.errors(), database.write() as connection:
        return connection.execute(commands.delete().where(waiting)).rowcount == 1
