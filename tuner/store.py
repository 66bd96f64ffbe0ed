"""The door to ``storage``: opens a database, and gives its errors the names that users catch."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import storage
from tuner import config
from tuner.errors import BadInput, StoreUnavailable, StudyHeld, StudyNotFound

__all__ = [
    "check_kept",
    "check_place",
    "checkpoint_root",
    "default_url",
    "errors",
    "files",
    "open_database",
    "sqlite_file",
]


def default_url() -> str:
    """``$TUNER_STORAGE``, else that of ``tuner.toml``, else ``sqlite:///tuner.db`` in the current folder.

    Raises:
        BadInput: the ``tuner.toml`` that counts here cannot be used.
    """
    return os.environ.get("TUNER_STORAGE") or config.read().values.get("storage") or "sqlite:///tuner.db"


@contextlib.contextmanager
def errors() -> Iterator[None]:
    """Maps storage's errors to the public ones, with the same one-line message."""
    try:
        yield
    except (storage.Held, storage.LeaseLost) as error:
        raise StudyHeld(str(error)) from error
    except storage.UnknownStudy as error:
        raise StudyNotFound(str(error)) from error
    except storage.Refused as error:
        raise BadInput(str(error)) from error
    except storage.StorageError as error:
        raise StoreUnavailable(str(error)) from error


def open_database(url: str | None = None, *, create: bool = False) -> storage.Database:
    """The database at ``url``, or at :func:`default_url`.

    Raises:
        StoreUnavailable: it cannot be reached, is not there (unless ``create``), or is of
            another schema.
        BadInput: it lies where a Ray job's files are.
    """
    text = url or default_url()
    check_place(text)
    with errors():
        return storage.Database(text, create=create)


def check_place(url: str) -> None:
    """Refuse a SQLite file that would be lost.

    Raises:
        StoreUnavailable: it is no URL of a database that Tuner can use.
        BadInput: it lies where a Ray job's files are.
    """
    if file := sqlite_file(url):
        check_kept(str(file), "the database", "name one elsewhere with --storage or $TUNER_STORAGE")


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite database; None for another one.

    Raises:
        StoreUnavailable: it is no URL of a database that Tuner can use.
    """
    from storage.database import normalise_url  # heavy, for what completes names in a shell
    from storage.sqlite_file import path_of

    with errors():
        found = normalise_url(url)
    return path_of(found) if found.get_backend_name() == "sqlite" else None


def checkpoint_root(url: str, given: str | None) -> str:
    """Where a study's checkpoints go: what was given, else a folder beside a SQLite file.

    Args:
        url: of the study's database, which need not be there yet.
    """
    if given is not None:
        return given if "://" in given else str(Path(given).absolute())
    file = sqlite_file(url)
    if file is not None:
        return str(file.with_name(f"{file.stem}-checkpoints"))
    return str(Path("tuner-checkpoints").absolute())


def files(database: storage.Database) -> list[str]:
    """The files of a SQLite database; none of another."""
    if database.file is None:
        return []
    file = os.path.realpath(database.file)
    return [file, f"{file}-wal", f"{file}-shm", f"{file}-journal"]


def check_kept(path: str, what: str, step: str) -> None:
    """Refuse what would be lost: Ray deletes the folder of a job after it.

    Raises:
        BadInput: names the path, and the next step.
    """
    if "/runtime_resources/working_dir_files/" in path:
        raise BadInput(f"{what} {path} would go with this Ray job's own folder; {step}")
