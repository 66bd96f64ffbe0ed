"""Commands to the driver of a study: rows that it reads, carries out and answers.

A row also keeps what any program did to a study on a person's word without a driver
(:mod:`storage.enqueue`): it is answered from the start.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Engine

from storage import selects
from storage.clock import utcnow
from storage.database import Database
from storage.errors import UnknownStudy
from storage.tables import commands, studies
from storage.views import CommandRow

__all__ = ["arguments_of", "recent", "result", "send", "withdraw"]


def send(database: Database, study_uid: str, name: str, arguments: Mapping[str, Any], author: str) -> int:
    """Leave a command for the driver and return its id; the driver looks twice a second.

    ============= ========================= ==================================================
    name          arguments                 what the driver does
    ============= ========================= ==================================================
    stop          ``{"now": bool}``         starts nothing new and ends once the running trials
                                            have; now: they save a checkpoint and go
    stop_trial    ``{"number": int}``       asks a running trial to stop; the study goes on
    pause         ``{}``                    starts nothing new and stays; running trials go on
    resume        ``{}``                    starts trials again
    concurrency   ``{"most": int | None}``  runs so many trials at once at most, until it ends;
                                            None: as the run was started
    ============= ========================= ==================================================

    Args:
        author: ``host:pid`` of a command line, or the user of the dashboard.

    Raises:
        UnknownStudy: it was deleted.
    """
    row = {
        "study_uid": study_uid,
        "name": name,
        "arguments": json.dumps(dict(arguments)),
        "author": author,
        "created_at": utcnow(),
    }
    known = sa.select(studies.c.study_uid).where(studies.c.study_uid == study_uid)
    with database.errors(), database.write() as connection:
        if connection.execute(known.with_for_update()).first() is None:
            raise UnknownStudy("the study was deleted by another program meanwhile")
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


def recent(engine: Engine, name: str, limit: int = 20) -> list[CommandRow]:
    """The newest commands of the study of that name, newest first: what was asked, and what came of it."""
    with selects.view(engine) as connection:
        _, uid = selects.study_ids(connection, name)
        if not uid or not selects.have_ours(connection):
            return []
        query = sa.select(*(commands.c[field] for field in CommandRow.__dataclass_fields__))
        query = query.where(commands.c.study_uid == uid).order_by(commands.c.command_id.desc()).limit(limit)
        return [
            CommandRow(
                **{
                    **row,
                    "arguments": arguments_of(row["arguments"]) or {},
                    "result": row["result"] or ("" if row["done_at"] is None else "done"),
                }
            )
            for row in connection.execute(query).mappings()
        ]


def arguments_of(text: str) -> dict[str, Any] | None:
    """The arguments of a row; None where they are no JSON object: rows may be written by hand."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):  # so deeply nested that Python gives up
        return None
    return found if isinstance(found, dict) else None
