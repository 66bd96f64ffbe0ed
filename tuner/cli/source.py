"""What a command reads: the database that it was given, and a study in it."""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tuner.errors import StudyExists, StudyHeld, StudyNotFound
from tuner.plain import shortened

if TYPE_CHECKING:
    from storage import Database
    from storage.views import StudyDetail, StudyRow

__all__ = [
    "command",
    "driver_of",
    "driver_text",
    "existing",
    "known_study",
    "plain",
    "reading",
    "suffix",
    "taken",
]


@contextlib.contextmanager
def reading(storage: str | None) -> Iterator[Database]:
    """The database for the length of a block; whatever is wrong with it is a public error."""
    from tuner import store

    database = store.open_database(storage)
    try:
        with store.errors(), database.errors():
            yield database
    finally:
        database.dispose()


def known_study(database: Database, name: str) -> StudyDetail:
    """The study of that name.

    Raises:
        StudyNotFound: names those that are there.
    """
    from storage import reads
    from tuner.studies import unknown

    found = None if reads.is_empty(database.engine) else reads.study(database.engine, name)
    if found is None:
        if reads.is_empty(database.engine):
            raise StudyNotFound(f"there is no study {shortened(name)} in {database}; it has no study yet")
        raise unknown(database, name)
    return found


def existing(name: str, storage: str | None, load_if_exists: bool) -> StudyDetail | None:
    """The study that ``tuner run`` would go on with; None where it would be created.

    Raises:
        StudyExists: it is there, and was not asked for with ``--load-if-exists``.
        StudyHeld: a live driver of this host holds it.
        StoreUnavailable: the database cannot be used. A SQLite file that is not there can be made.
    """
    from storage import reads
    from storage.studies import check_name
    from tuner import store

    text = storage or store.default_url()
    with store.errors():
        check_name(name)
    file = store.sqlite_file(text)
    if file is not None and file.parent.is_dir() and not file.exists():
        return None
    with reading(storage) as database:
        study = None if reads.is_empty(database.engine) else reads.study(database.engine, name)
    if study is not None and not load_if_exists:
        raise taken(name, storage)
    if study is not None and driver_of(study) == "live":
        raise StudyHeld(
            f"study {name!r} is held by a live driver, {driver_text(study)}; "
            f"wait for it, or end it with {command('stop', name, storage)!r}"
        )
    return study


def taken(name: str, storage: str | None) -> StudyExists:
    """The error for a study that ``tuner run`` was to create, and that is there."""
    from storage import mask_url
    from tuner import store

    return StudyExists(
        f"study {name!r} exists already in {mask_url(storage or store.default_url())}; choose another name, "
        f"give --load-if-exists, or go on with {command('resume', name, storage)!r}"
    )


def driver_of(row: StudyRow) -> str:
    """``"live"``, ``"gone"`` (killed, and not taken over), ``"elsewhere"`` (another host: nobody here
    can say), or ``"none"``.
    """
    from storage import owner

    if not row.owner:
        return "none"
    return {True: "live", False: "gone", None: "elsewhere"}[owner.alive(row.owner)]


def driver_text(row: StudyRow) -> str:
    """The driver for a person."""
    from storage import owner
    from tuner.cli.printing import ago

    match driver_of(row):
        case "none":
            return "-"
        case "live":
            return owner.shown(row.owner)
        case "gone":
            return f"gone ({owner.shown(row.owner)}): {command('resume', row.name)!r} goes on"
    return f"{owner.shown(row.owner)}, lease renewed {ago(row.renewed_at)}"


def suffix(storage: str | None) -> str:
    """What a suggested command needs to reach the same database; never a password."""
    if storage is None:
        return ""
    from storage import mask_url

    return f" --storage {shlex.quote(storage)}" if mask_url(storage) == storage else ""


def command(verb: str, name: str, storage: str | None = None) -> str:
    """A command to suggest, as a shell takes it, such as ``tuner resume 'my study'``."""
    from storage.shell import quoted

    return f"tuner {verb} {quoted(name)}{suffix(storage)}"


def plain(row: StudyRow) -> dict[str, Any]:
    """A study for ``--json``."""
    from tuner.cli.printing import as_plain

    return {**as_plain(row), "driver": driver_of(row)}
