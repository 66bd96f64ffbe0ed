"""The database: SQLite's library, the server, the schema, the room for it, its clock, killed drivers."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from tuner.cli.checks.finding import GIB, Finding
from tuner.errors import TunerError

if TYPE_CHECKING:
    from storage import Database
    from storage.server import Server
    from storage.views import StudyRow

__all__ = ["clock_finding", "database", "sqlite_finding"]

_FIXED_SQLITE = (3, 51, 3)
CLOCK = 2.0  # seconds that clocks may differ before a person is told


def sqlite_finding(version: tuple[int, ...]) -> Finding:
    """SQLite's library: up to 3.51.2 a rare race on a WAL reset can corrupt a database."""
    text = ".".join(map(str, version))
    if version >= _FIXED_SQLITE:
        return Finding(name="SQLite", state="ok", detail=text)
    return Finding(
        name="SQLite",
        state="warning",
        detail=f"{text}, in which two processes that reset the WAL at once can, rarely, corrupt the database",
        fix="use a Python with SQLite 3.51.3 or newer, or PostgreSQL; keep copies of studies that matter",
    )


def database(storage: str | None) -> Iterable[Finding]:
    """The database of ``--storage``, or of the settings."""
    from storage import Database, mask_url
    from storage.database import normalise_url
    from storage.sqlite_file import path_of
    from tuner import store

    try:
        text = storage or store.default_url()
        with store.errors():
            url = normalise_url(text)
    except TunerError as error:
        yield _wrong(str(error), "set --storage, $TUNER_STORAGE, or storage in tuner.toml")
        return
    shown = mask_url(text)
    if url.get_backend_name() == "postgresql" and importlib.util.find_spec("psycopg") is None:
        yield _wrong(f"{shown} needs the package psycopg", "run \"pip install 'tuner[postgres]'\"")
        return
    file = path_of(url) if url.get_backend_name() == "sqlite" else None
    if file is not None and not file.exists() and file.parent.is_dir():
        yield Finding(
            name="database", state="ok", detail=f"{shown} is not there yet; the first run creates it"
        )
        yield from _room(file.parent)
        return
    try:
        with store.errors():
            opened = Database(text, create=False, checked=False, timeout=10.0)
    except TunerError as error:
        yield _wrong(str(error))
        return
    try:
        yield from _opened(opened, shown)
    finally:
        opened.dispose()
    if file is not None:
        yield from _room(file.parent)


def clock_finding(whose: str, ahead: float, unsure: float = 0.0) -> Finding:
    """Another machine's clock beside this one's.

    Args:
        ahead: seconds that it is ahead of ours.
        unsure: seconds by which that may be wrong.
    """
    if abs(ahead) - unsure <= CLOCK:
        within = max(0.1, abs(ahead) + unsure)
        return Finding(name="clock", state="ok", detail=f"{whose} within {within:.1f} s of this machine's")
    which = "ahead of" if ahead > 0 else "behind"
    return Finding(
        name="clock",
        state="warning",
        detail=f"{whose} is {abs(ahead):.0f} s {which} this machine's, and so are times that are shown",
        fix="set both by NTP (timedatectl set-ntp true); trials and leases do not depend on it",
    )


def _wrong(detail: str, fix: str = "") -> Finding:
    return Finding(name="database", state="wrong", detail=detail, fix=fix)


def _opened(opened: Database, shown: str) -> Iterable[Finding]:
    from storage import reads, schema, server
    from tuner import store

    try:
        with store.errors(), opened.errors():
            found = server.look(opened)
            problems = schema.look(opened, integrity=False).problems
            rows = [] if problems or reads.is_empty(opened.engine) else reads.studies(opened.engine)
    except TunerError as error:
        yield _wrong(str(error))
        return
    yield Finding(name="database", state="ok", detail=f"{shown}: {found.version}, {len(rows)} studies")
    yield from _of_server(found)
    for problem in problems:
        yield Finding(name="schema", state="wrong", detail=problem)
    yield from _killed(rows)


def _of_server(found: Server) -> Iterable[Finding]:
    if found.read_only:
        yield _wrong("the server takes no writes: it is a replica, or read-only", "name the primary server")
    if found.ahead is not None:
        yield clock_finding("the database's clock", found.ahead, found.unsure)
    if found.connections_left is not None and found.connections_left < 10:
        yield Finding(
            name="database",
            state="warning",
            detail=f"the server has {found.connections_left} connections left; a driver takes a few",
            fix="raise max_connections, or put pgbouncer before it",
        )


def _killed(rows: Iterable[StudyRow]) -> Iterable[Finding]:
    """Studies whose drivers were killed."""
    from storage import owner
    from tuner.cli.source import command, driver_of

    for row in rows:
        if driver_of(row) == "gone":
            yield Finding(
                name=f"study {row.name}",
                state="warning",
                detail=f"its driver, {owner.shown(row.owner)}, ended without letting go",
                fix=f"run {command('resume', row.name)!r}; nothing is lost",
            )


def _room(folder: Path) -> Iterable[Finding]:
    """The file system under a SQLite file."""
    from storage.sqlite_file import file_system

    free, kind = shutil.disk_usage(folder).free, file_system(folder)
    if free < GIB:
        yield Finding(
            name="database",
            state="warning",
            detail=f"{folder} has {free / GIB:.2f} GiB left",
            fix="a full disk stops a study: make room, or put the database elsewhere",
        )
    if kind in ("tmpfs", "ramfs"):
        yield Finding(
            name="database",
            state="warning",
            detail=f"{folder} is in memory ({kind}): a restart of the machine loses the database",
            fix="put it on a disk",
        )
